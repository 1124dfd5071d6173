"""Who drafts tokens: the drafter that the settings ask for, what it knows from before, what it saves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taco_llm import lookahead, speculation
from taco_llm.engine_args import EngineArgs
from taco_llm.logging import get_logger
from taco_llm.memory import GIB

if TYPE_CHECKING:
    from taco_llm import _core
    from taco_llm.loading import Checkpoint

logger = get_logger(__name__)

# What makes ids of text. Not tokenizer_config.json: a chat template may change.
_VOCABULARY_FILES = (
    *("added_tokens.json", "merges.txt", "special_tokens_map.json", "spiece.model", "tekken.json"),
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
)
_VOCABULARY_KEYS = ("added_tokens", "merges", "model", "pre", "scores", "token_type", "tokens")


@dataclass
class Drafting:
    """How tokens are drafted; config is None where they are not. taught: by a warm-up, just now."""

    config: _core.SpeculationConfig | None = None
    drafter: _core.Drafter | None = None
    taught: bool = False

    @property
    def typical_acceptance(self) -> tuple[float, float] | None:
        config = self.config
        if config is None or not config.typical_acceptance:
            return None
        return config.typical_threshold, config.typical_alpha


def make_drafting(args: EngineArgs, *, reserved: int, vocab_size: int, **facts: Any) -> Drafting:
    """The drafter that the settings ask for, with what it knows from before. reserved: bytes of memory that
    something else is going to fill; facts: further arguments of speculation.settings."""
    from taco_llm import _core

    config = speculation.settings(args, reserved=reserved, vocab_size=vocab_size, **facts)
    if config is None:
        return Drafting()
    drafter = _core.make_drafter(config)
    assert drafter is not None
    if config.method == "ngram":
        logger.info("Drafting by n-grams: up to %d tokens a step", config.num_speculative_tokens)
        return Drafting(config, drafter)
    settings = config.lookahead
    logger.info(
        "Lookahead cache: mode %d, drafts of up to %d tokens with %d at each depth, up to %.2f GiB of memory",
        settings.cache_mode,
        settings.copy_length,
        settings.token_paths_top_k,
        config.memory_bytes / GIB,
    )
    taught = 0
    if (path := save_path(args)) is not None:
        lookahead.restore(drafter, path)
    if settings.warmup_file:
        taught = lookahead.warm_up(
            drafter, settings.warmup_file, vocab_size=vocab_size, memory_bytes=config.memory_bytes
        )
    return Drafting(config, drafter, taught > 0)


def fingerprint(checkpoint: Checkpoint) -> str:
    """Tells models apart whose token ids have nothing to teach each other: the configuration, and what the
    tokenizer's files hold, or a GGUF file's vocabulary."""
    config = json.dumps(checkpoint.hf_config or {}, sort_keys=True, default=str)
    digest = hashlib.sha256(config.encode())

    def add(name: str, content: bytes) -> None:
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)

    metadata = checkpoint.gguf_metadata or {}
    for key in _VOCABULARY_KEYS:
        if (value := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            value = value.tolist() if hasattr(value, "tolist") else value
            add(key, json.dumps(value, default=str).encode())
    if checkpoint.tokenizer_files is not None:
        folder = Path(checkpoint.tokenizer_files)
        for file in sorted([*(folder / name for name in _VOCABULARY_FILES), *folder.glob("*.tiktoken")]):
            if file.is_file():
                add(file.name, file.read_bytes())
    return digest.hexdigest()


def save_path(args: EngineArgs) -> str | None:
    """The file of --lookahead-cache-save, wherever the process goes later."""
    if args.lookahead_cache_save is None:
        return None
    return str(Path(args.lookahead_cache_save).expanduser().absolute())


def start_companion(args: EngineArgs, core: _core.Engine, drafting: Drafting) -> lookahead.Companion | None:
    """The thread that saves what a lookahead cache learns; None without one."""
    if drafting.config is None or drafting.drafter is None or drafting.config.method != "lookahead":
        return None
    companion = lookahead.Companion(
        drafting.drafter,
        lambda: core.stats().speculation,
        path=save_path(args),
        minutes=args.lookahead_cache_save_interval,
        debug=drafting.config.lookahead.is_debug,
    )
    companion.start(unsaved=drafting.taught)
    return companion
