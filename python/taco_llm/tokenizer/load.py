"""Finds and builds the tokenizer of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .tokenizer import Backend, Tokenizer

if TYPE_CHECKING:
    import tokenizers

MAX_FILE_BYTES = 512 << 20
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(ValueError):
    """The checkpoint has no tokenizer that can be used; the message says why."""


class HasTokenizer(Protocol):
    """The part of a checkpoint that is looked at."""

    gguf_metadata: dict[str, Any] | None
    tokenizer_files: Path | None


def load_tokenizer(
    checkpoint: HasTokenizer,
    *,
    mode: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Args:
        mode: "auto" takes tokenizer.json, then a file of ranks (tiktoken.py), then tokenizer.model, then
            vocab.json with merges.txt; "slow" takes tokenizer.model first.
        revision: not needed here: the checkpoint's files are already those of the revision.
        trust_remote_code: code of a checkpoint is never run, whatever this says.

    Raises:
        TokenizerError: no tokenizer, or one that is damaged or of an unknown kind.
    """
    if mode not in ("auto", "slow"):
        hint = " (not built yet)" if mode == "mistral" else ""
        raise TokenizerError(f"tokenizer mode {mode!r} is not supported{hint}: use auto or slow")
    if checkpoint.gguf_metadata is not None:
        from .gguf import from_gguf

        try:
            return from_gguf(checkpoint.gguf_metadata)
        except TokenizerError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
            raise TokenizerError(f"the GGUF file's tokenizer cannot be built: {e}") from e
    if checkpoint.tokenizer_files is None:
        raise TokenizerError(
            "the checkpoint has no tokenizer files: name a folder or hub id with --tokenizer"
        )
    return from_folder(Path(checkpoint.tokenizer_files), slow=mode == "slow")


def from_folder(folder: Path, *, slow: bool = False) -> Tokenizer:
    """A Hugging Face folder's tokenizer. See load_tokenizer."""
    config = _read_object(folder / "tokenizer_config.json")
    roles = _roles(folder, config)
    fast, spm = folder / "tokenizer.json", folder / "tokenizer.model"
    backend: Backend
    ranks = _tiktoken_class(folder, config)
    if ranks is not None and not fast.is_file():
        backend = _from_ranks(folder, ranks, config, roles)
    elif spm.is_file() and (slow or not fast.is_file()):
        backend = _from_spm(folder, config, roles)
    elif fast.is_file():
        backend = _from_json(fast, config, roles)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _from_vocab_and_merges(folder, config, roles)
    else:
        raise TokenizerError(_why_none(folder, config))
    special = [id for token in roles.values() if (id := backend.token_to_id(token)) is not None]
    return Tokenizer(
        backend, special_tokens=roles, chat_templates=_templates(folder, config), special_ids=special
    )


def _why_none(folder: Path, config: Mapping[str, Any]) -> str:
    if found := sorted(path.name for path in folder.glob("*.tiktoken")):
        return (
            f"{folder}: {found[0]} holds the ranks of a tokenizer of a kind that is not known "
            f"({_class_name(config) or 'no tokenizer_class'}): how it cuts text and its special tokens are "
            "Python code inside the checkpoint, which is never run, not even with --trust-remote-code. "
            f"Known: {', '.join(_tiktoken_classes())}. Name a folder or hub id with a tokenizer.json with "
            "--tokenizer"
        )
    if "AutoTokenizer" in (config.get("auto_map") or {}):
        return (
            f"{folder}: its tokenizer is Python code inside the checkpoint, which is never run, not even "
            "with --trust-remote-code: name a repository with a tokenizer.json with --tokenizer"
        )
    return (
        f"{folder}: no tokenizer.json, no tokenizer.model, and no vocab.json with merges.txt: add one of "
        "them, or name a folder or hub id that has it with --tokenizer"
    )


def _class_name(config: Mapping[str, Any]) -> str:
    """The tokenizer's class; where only the code's place is given, the class of that."""
    name = config.get("tokenizer_class")
    if isinstance(name, str) and name:
        return name
    found = (config.get("auto_map") or {}).get("AutoTokenizer")
    if isinstance(found, list):  # [slow, fast]
        found = found[0] if found else None
    return found.rpartition(".")[2] if isinstance(found, str) else ""


def _tiktoken_classes() -> list[str]:
    from .tiktoken import STYLES

    return sorted(STYLES)


def _tiktoken_class(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The class of a tokenizer whose file of ranks is in the folder; without a class, by the file's name."""
    from .tiktoken import STYLES

    name = _class_name(config)
    if name in STYLES:
        return name if (folder / STYLES[name].file).is_file() else None
    for known, style in STYLES.items():
        if not name and style.file.endswith(".tiktoken") and (folder / style.file).is_file():
            return known
    return None


def _from_ranks(folder: Path, name: str, config: Mapping[str, Any], roles: dict[str, str]) -> Backend:
    """Fills in the end of sequence that the class has of its own."""
    from .tiktoken import STYLES, build, read_ranks

    style = STYLES[name]
    try:
        ranks = read_ranks(_read_bytes(folder / style.file))
        special = {text: len(ranks) + i for text, i in style.special.items()}
        special.update((token.content, id) for id, token in _added_tokens(config))
        if style.eos in special:
            roles.setdefault("eos_token", style.eos)
        return build(ranks, style, special)
    except ValueError as e:
        if isinstance(e, TokenizerError):
            raise
        raise TokenizerError(f"{folder / style.file}: {e}") from None


# The class of ChatGLM 2 and 3: these stand behind the model's pieces, in this order; the roles from 3 on.
_CHATGLM_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CHATGLM_PREFIX = ("[gMASK]", "sop")


def _has_chatglm_roles(config: Mapping[str, Any]) -> bool:
    listed = json.dumps([config.get(k) for k in ("added_tokens_decoder", "chat_template", "name_or_path")])
    return "<|user|>" in listed or "chatglm3" in listed.lower()


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as e:
        raise TokenizerError(f"{path}: cannot be read: {e.strerror}") from None


def _read_object(path: Path) -> dict[str, Any]:
    """Empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as e:
        if isinstance(e, TokenizerError):
            raise
        raise TokenizerError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _content(token: Any) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _roles(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for source in (_read_object(folder / "special_tokens_map.json"), config):
        for role in _ROLES:
            if (text := _content(source.get(role))) is not None:
                roles[role] = text
    return roles


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    for source in (config, _read_object(folder / "chat_template.json")):
        found = source.get("chat_template")
        if isinstance(found, str):
            templates["default"] = found
        elif isinstance(found, list):
            for entry in found:
                if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                    templates[str(entry.get("name", "default"))] = entry["template"]
    files = {"default": folder / "chat_template.jinja"}
    more = folder / "additional_chat_templates"
    if more.is_dir():
        files.update((path.stem, path) for path in sorted(more.glob("*.jinja")))
    for name, path in files.items():
        if path.is_file():
            try:
                templates[name] = _read_bytes(path).decode("utf-8")
            except UnicodeDecodeError:
                raise TokenizerError(f"{path}: not valid UTF-8") from None
    return templates


def _added_tokens(config: Mapping[str, Any]) -> list[tuple[int, tokenizers.AddedToken]]:
    """tokenizer_config.json's added_tokens_decoder, in the order of ids."""
    from tokenizers import AddedToken

    found = []
    for key, entry in (config.get("added_tokens_decoder") or {}).items():
        if not isinstance(entry, Mapping) or not str(key).isdecimal() or (text := _content(entry)) is None:
            continue
        flags = {
            name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")
        }
        found.append((int(key), AddedToken(text, normalized=bool(entry.get("normalized", False)), **flags)))
    return sorted(found, key=lambda pair: pair[0])


def _add_tokens(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """What the config adds to tokenizer.json. A token already there is left as it is."""
    from tokenizers import AddedToken

    known = tokenizer.get_added_tokens_decoder()
    present = {token.content for token in known.values()}
    for id, token in _added_tokens(config):
        if token.content in present:
            continue
        if tokenizer.token_to_id(token.content) not in (None, id):
            continue
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        present.add(token.content)
    for text in roles.values():
        if text not in present and tokenizer.token_to_id(text) is not None:
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
            present.add(text)


def _ids_around(
    backend_id: Any, config: Mapping[str, Any], roles: Mapping[str, str], add_bos: bool, add_eos: bool
) -> tuple[list[int], list[int]]:
    """The ids put before and after a text."""
    around: list[list[int]] = []
    for role, add in (
        ("bos_token", bool(config.get("add_bos_token", add_bos))),
        ("eos_token", bool(config.get("add_eos_token", add_eos))),
    ):
        id = backend_id(roles[role]) if add and role in roles else None
        around.append([] if id is None else [id])
    return around[0], around[1]


def _from_json(path: Path, config: Mapping[str, Any], roles: Mapping[str, str]) -> Backend:
    import tokenizers

    from .fast import FastBackend

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(_read_bytes(path))
    except TokenizerError:
        raise
    except Exception as e:  # the library raises Exception itself
        raise TokenizerError(f"{path}: not a tokenizer: {e}") from None
    _add_tokens(tokenizer, config, roles)
    return FastBackend(tokenizer)


def _from_spm(folder: Path, config: Mapping[str, Any], roles: dict[str, str]) -> Backend:
    from .spm import AddedToken, SentencePieceBackend

    model = _read_bytes(folder / "tokenizer.model")
    added: dict[str, AddedToken] = {}
    for text, id in _read_object(folder / "added_tokens.json").items():
        if isinstance(id, int) and text:
            added[text] = AddedToken(id, special=text in roles.values())
    for id, token in _added_tokens(config):
        added[token.content] = AddedToken(id, token.special, token.lstrip, token.rstrip)
    try:
        plain = SentencePieceBackend(model, added)
        if _class_name(config) == "ChatGLMTokenizer":
            size = SentencePieceBackend(model, {}).size
            names = _CHATGLM_SPECIAL + (_CHATGLM_ROLES if _has_chatglm_roles(config) else ())
            for i, text in enumerate(names):
                added.setdefault(text, AddedToken(size + i))
            roles.setdefault("eos_token", "</s>")
            roles.setdefault("unk_token", "<unk>")
            return SentencePieceBackend(model, added, prefix=[added[text].id for text in _CHATGLM_PREFIX])
        for text in roles.values():
            id = plain.token_to_id(text)
            if text not in added and id is not None:
                added[text] = AddedToken(id)
        prefix, suffix = _ids_around(plain.token_to_id, config, roles, add_bos=True, add_eos=False)
        return SentencePieceBackend(
            model, added, after_special=bool(config.get("legacy", True)), prefix=prefix, suffix=suffix
        )
    except ValueError as e:
        raise TokenizerError(f"{folder / 'tokenizer.model'}: {e}") from None


def _from_vocab_and_merges(folder: Path, config: Mapping[str, Any], roles: Mapping[str, str]) -> Backend:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    from .fast import FastBackend
    from .pretokenizers import byte_level

    kind = str(config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    styles = {"GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
    if kind not in styles:
        raise TokenizerError(
            f"{folder}: {kind} with vocab.json and merges.txt is not supported: add a tokenizer.json "
            "(save_pretrained of the tokenizer in transformers writes one)"
        )
    vocab = _read_object(folder / "vocab.json")
    lines = _read_bytes(folder / "merges.txt").decode("utf-8", "replace").split("\n")
    merges = [(a, b) for a, _, b in (ln.partition(" ") for ln in lines if not ln.startswith("#version")) if b]
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as e:  # the library raises Exception itself
        raise TokenizerError(f"{folder}: vocab.json and merges.txt do not fit together: {e}") from None
    style = styles[kind]
    if style == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = byte_level(style, bool(config.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, config, roles)
    prefix, suffix = _ids_around(tokenizer.token_to_id, config, roles, add_bos=False, add_eos=False)
    return FastBackend(tokenizer, prefix, suffix)
