"""The tokenizer that the engine's settings name, and the ids that end an answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taco_llm.loading import Checkpoint
    from taco_llm.tokenizer import Tokenizer


def choose_tokenizer(args: Any, checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's own, or that of --tokenizer. args: EngineArgs. FileNotFoundError: there is none."""
    from taco_llm.tokenizer import load_tokenizer

    source = checkpoint
    if args.tokenizer is not None and args.tokenizer != args.model:
        source = _other_tokenizer(args, checkpoint)
    return load_tokenizer(
        source,
        mode=args.tokenizer_mode,
        revision=args.tokenizer_revision or args.revision,
        trust_remote_code=args.trust_remote_code,
    )


# What a tokenizer can be made of; nothing else is fetched for --tokenizer.
_FILES = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*",
          "merges.txt", "*.model"]  # fmt: skip


def _other_tokenizer(args: Any, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the tokenizer of --tokenizer in place of its own."""
    name = str(args.tokenizer)
    folder = Path(name).expanduser()
    if folder.suffix == ".gguf":
        from taco_llm.loading import resolve

        return resolve(name, download_dir=args.download_dir)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=args.tokenizer_revision or args.revision,
                    cache_dir=args.download_dir,
                    allow_patterns=_FILES,
                )
            )
        except (
            Exception
        ) as error:  # the hub's errors have no common base: no network, no such name, no access
            raise FileNotFoundError(
                f"no tokenizer at {name!r}: it is no folder of this machine, and the hub says: {error}"
            ) from error
    return dataclasses.replace(checkpoint, tokenizer_files=folder, gguf_metadata=None, format="safetensors")


def eos_token_ids(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> list[int]:
    """The ids that end an answer: the generation config's, else the model config's, and the tokenizer's."""
    found: list[int] = []

    def add(value: Any) -> None:
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, int) and not isinstance(one, bool) and one >= 0 and one not in found:
                found.append(one)

    add((checkpoint.generation_config or {}).get("eos_token_id"))
    if not found:
        add(checkpoint.hf_config.get("eos_token_id"))
    if tokenizer is not None:
        add(tokenizer.eos_token_id)
    metadata = checkpoint.gguf_metadata or {}
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        add(metadata.get(f"tokenizer.ggml.{key}"))
    return found
