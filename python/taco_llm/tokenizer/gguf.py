"""The tokenizer that a GGUF file's metadata describes (keys ``tokenizer.*``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .load import TokenizerError
from .spm import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, AddedToken
from .tokenizer import Backend, Tokenizer

logger = logging.getLogger(__name__)

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelt so in the format
}
# Further tokens that end a turn or mark a place: never part of the text.
_CONTROL_KEYS = ("eot_token_id", "eom_token_id", "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id")


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Raises TokenizerError: no tokenizer, or one of an unknown kind."""
    model = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if model in (None, "none", "no_vocab") or not tokens:
        raise TokenizerError(
            "the GGUF file has no tokenizer: name a folder or hub id that has one with --tokenizer"
        )
    types = list(metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise TokenizerError(f"the GGUF file has {len(tokens)} tokens and {len(types)} token types")
    roles = {}
    for role, key in _ROLES.items():
        id = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(id, int) and 0 <= id < len(tokens):
            roles[role] = tokens[id]
    special = [i for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)]
    for key in _CONTROL_KEYS:
        id = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(id, int) and 0 <= id < len(tokens):
            special.append(id)
    if model == "gpt2":
        backend = _byte_level(metadata, tokens, types)
    elif model == "llama":
        backend = _sentencepiece(metadata, tokens, types)
    else:
        raise TokenizerError(
            f"the GGUF file's tokenizer model {model!r} is not supported (gpt2 and llama are): name a folder "
            "or hub id with a tokenizer.json with --tokenizer"
        )
    return Tokenizer(backend, special_tokens=roles, chat_templates=_templates(metadata), special_ids=special)


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    begin = "tokenizer.chat_template."
    for key, value in metadata.items():
        if isinstance(value, str) and key.startswith(begin):
            templates[key[len(begin) :]] = value
    default = metadata.get("tokenizer.chat_template")
    if isinstance(default, str):
        templates["default"] = default
    return templates


def _around(metadata: Mapping[str, Any], size: int, add_bos: bool) -> tuple[list[int], list[int]]:
    """The ids put before and after a text."""
    found: list[list[int]] = []
    for name, default in (("bos", add_bos), ("eos", False)):
        add = metadata.get(f"tokenizer.ggml.add_{name}_token", default)
        id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        found.append([id] if add and isinstance(id, int) and 0 <= id < size else [])
    return found[0], found[1]


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Backend:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    from . import pretokenizers
    from .fast import FastBackend

    style = metadata.get("tokenizer.ggml.pre")
    if style is None:
        logger.warning("The GGUF file does not name its pre-tokenizer: GPT-2's is used.")
        style = "default"
    try:
        pre_tokenizer = pretokenizers.byte_level(
            style, bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
        )
    except KeyError:
        raise TokenizerError(
            f"the GGUF file's pre-tokenizer {style!r} is not known "
            f"(known: {', '.join(pretokenizers.names())}): name "
            "a folder or hub id with a tokenizer.json with --tokenizer"
        ) from None
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    try:
        model = models.BPE(vocab, merges, ignore_merges=style in pretokenizers.IGNORE_MERGES)
    except Exception as e:  # the library raises Exception itself
        raise TokenizerError(f"the GGUF file's tokenizer cannot be built: {e}") from None
    tokenizer = tokenizers.Tokenizer(model)
    if style in pretokenizers.NFC:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for kinds, special in (((CONTROL, UNKNOWN), True), ((USER_DEFINED,), False)):
        added = [
            tokenizers.AddedToken(token, special=special, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in kinds and token
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    prefix, suffix = _around(metadata, len(tokens), style in pretokenizers.ADD_BOS)
    return FastBackend(tokenizer, prefix, suffix, tokens)


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Backend:
    from .spm import SentencePieceBackend, build_bpe_model

    scores = metadata.get("tokenizer.ggml.scores") or [-float(i) for i in range(len(tokens))]
    if len(scores) != len(tokens):
        raise TokenizerError(f"the GGUF file has {len(tokens)} tokens and {len(scores)} scores")
    added = {
        token: AddedToken(i, special=kind != USER_DEFINED)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and token
    }
    prefix, suffix = _around(metadata, len(tokens), add_bos=True)
    return SentencePieceBackend(
        build_bpe_model(tokens, scores, types),
        added,
        prefix_space=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        prefix=prefix,
        suffix=suffix,
    )
