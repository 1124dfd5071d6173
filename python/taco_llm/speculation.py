"""Speculation by its flags: what is asked for, what cannot be, and the core's settings for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from taco_llm import lookahead_config
from taco_llm.flag_table import flags_given, option_name
from taco_llm.logging import get_logger
from taco_llm.memory import available_bytes, part_of_memory, total_bytes

if TYPE_CHECKING:
    from taco_llm import _core

logger = get_logger(__name__)

NGRAM = "[ngram]"
TYPICAL = "typical_acceptance_sampler"
_LOOKAHEAD_FLAGS = ("ignore_prompt_for_lookahead_cache", "cpu_decoding_memory_utilization")
_NGRAM_FLAGS = ("num_speculative_tokens", "ngram_prompt_lookup_max", "ngram_prompt_lookup_min")
_TYPICAL_FLAGS = (
    "typical_acceptance_sampler_posterior_threshold",
    "typical_acceptance_sampler_posterior_alpha",
)
_LEAST_BYTES = 16 << 20


def method(args: Any) -> str:
    """ "none", "lookahead" or "ngram". args: EngineArgs."""
    if args.lookahead_cache_config_dir is not None:
        return "lookahead"
    return "ngram" if args.speculative_model is not None else "none"


def check(args: Any) -> None:
    """ValueError for flags that contradict each other, lack one another or are out of range, and for a
    lookahead_cache_config.json that is wrong. args: EngineArgs."""
    how = method(args)
    if how == "lookahead" and args.speculative_model is not None:
        raise ValueError(
            "--lookahead-cache-config-dir and --speculative-model are two ways to draft; choose one (the "
            "lookahead cache drafts from prompts, too)"
        )
    if how == "lookahead":
        _check_lookahead(args)
    elif args.lookahead_cache_save is not None:
        raise ValueError(
            "--lookahead-cache-save needs the lookahead cache: add --lookahead-cache-config-dir FOLDER, or "
            "leave it out"
        )
    _check_ngram(args, how)
    _check_shared(args, how)


def _check_lookahead(args: Any) -> None:
    for name in flags_given(args, _NGRAM_FLAGS):
        instead = "copy_length" if name == "num_speculative_tokens" else "turbo_match_length"
        raise ValueError(
            f"{option_name(name)} is for --speculative-model {NGRAM}; how the lookahead cache drafts is said "
            f"in {lookahead_config.FILE_NAME} ({instead} and others): leave it out"
        )
    part = args.cpu_decoding_memory_utilization
    if not 0 < part <= 1:
        raise ValueError(
            f"cpu_decoding_memory_utilization={part} should be above 0 and at most 1: the part of the memory "
            "that the lookahead cache may fill"
        )
    lookahead_config.read(args.lookahead_cache_config_dir)
    if args.lookahead_cache_save is not None:
        path = Path(args.lookahead_cache_save).expanduser()
        if path.is_dir():
            raise ValueError(f"--lookahead-cache-save {path} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise ValueError(f"--lookahead-cache-save {path}: there is no folder {path.parent}; make it")
    if not 0 <= args.lookahead_cache_save_interval < 1e6:
        raise ValueError(
            f"lookahead_cache_save_interval={args.lookahead_cache_save_interval} should be minutes, or 0 to "
            "save at the end only"
        )


def _check_ngram(args: Any, how: str) -> None:
    if how == "none":
        for name in flags_given(args, _NGRAM_FLAGS):
            raise ValueError(
                f"{option_name(name)} is for n-gram speculation: add --speculative-model {NGRAM}, or leave "
                "it out"
            )
    if how != "ngram":
        return
    if args.num_speculative_tokens is None:
        raise ValueError(
            f"--speculative-model {NGRAM} needs --num-speculative-tokens: how many to draft, such as 5"
        )
    if not 1 <= args.num_speculative_tokens <= 63:
        raise ValueError(f"num_speculative_tokens={args.num_speculative_tokens} should be from 1 to 63")
    longest, shortest = args.ngram_prompt_lookup_max, args.ngram_prompt_lookup_min
    if longest is None:
        raise ValueError(
            f"--speculative-model {NGRAM} needs --ngram-prompt-lookup-max: the longest n-gram to look up, "
            "such as 4"
        )
    if longest < 1:
        raise ValueError(f"ngram_prompt_lookup_max={longest} should be 1 or more")
    if shortest is not None and not 1 <= shortest <= longest:
        raise ValueError(
            f"ngram_prompt_lookup_min={shortest} should be from 1 to ngram_prompt_lookup_max={longest}"
        )


def _check_shared(args: Any, how: str) -> None:
    most = args.speculative_disable_by_batch_size
    if how != "none" and most is not None and most < 2:
        raise ValueError(
            f"speculative_disable_by_batch_size={most} should be 2 or more: in steps of more sequences "
            "nothing is drafted"
        )
    for name in _TYPICAL_FLAGS:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}={value} should be from 0 to 1")


def notes(args: Any) -> list[str]:
    """A sentence for each flag that was given and changes nothing beside the others. args: EngineArgs."""
    how = method(args)
    found = []
    if how != "lookahead":
        found += [
            f"{option_name(name)}: there is no lookahead cache without --lookahead-cache-config-dir"
            for name in flags_given(args, _LOOKAHEAD_FLAGS)
        ]
    typical = args.spec_decoding_acceptance_method == TYPICAL
    if how == "none":
        if flags_given(args, ("speculative_disable_by_batch_size",)):
            found.append("--speculative-disable-by-batch-size: nothing drafts anyway")
        if typical:
            found.append(f"--spec-decoding-acceptance-method {TYPICAL}: nothing drafts, so all is exact")
    if how == "none" or not typical:
        found += [
            f"{option_name(name)}: is for --spec-decoding-acceptance-method {TYPICAL} while something drafts"
            for name in flags_given(args, _TYPICAL_FLAGS)
        ]
    return found


def settings(
    args: Any,
    *,
    vocab_size: int,
    max_model_len: int,
    eos_token_ids: list[int],
    reserved: int = 0,
    fingerprint: str = "",
) -> _core.SpeculationConfig | None:
    """The core's settings; None: no speculation. args: EngineArgs that were checked. reserved: bytes of free
    memory that something else is going to fill. fingerprint: of the model; a lookahead cache that was saved
    under another one is refused."""
    from taco_llm import _core

    how = method(args)
    if how == "none":
        return None
    config = _core.SpeculationConfig(method=how)
    config.disable_by_batch_size = args.speculative_disable_by_batch_size or 0
    if args.spec_decoding_acceptance_method == TYPICAL:
        logger.warning(
            "%s is lossy: answers are not those of the model alone; rejection_sampler's are", TYPICAL
        )
        config.typical_acceptance = True
        if args.typical_acceptance_sampler_posterior_threshold is not None:
            config.typical_threshold = args.typical_acceptance_sampler_posterior_threshold
        if args.typical_acceptance_sampler_posterior_alpha is not None:
            config.typical_alpha = args.typical_acceptance_sampler_posterior_alpha
    if how == "ngram":
        config.ngram_max = args.ngram_prompt_lookup_max
        config.ngram_min = args.ngram_prompt_lookup_min or 1
        config.num_speculative_tokens = args.num_speculative_tokens
        config.lookahead = _core.LookaheadConfig(voc_size=vocab_size, max_seq_len=max_model_len)
        return config
    given = lookahead_config.read(args.lookahead_cache_config_dir)
    config.cost_model = given.pop("cost_model", True)
    config.lookahead = _lookahead(
        given, args, vocab_size=vocab_size, max_model_len=max_model_len, eos_token_ids=eos_token_ids
    )
    config.memory_bytes = memory_bound(
        args.cpu_decoding_memory_utilization, total_bytes(), available_bytes() - reserved
    )
    config.fingerprint = fingerprint
    return config


def _lookahead(
    given: dict[str, Any], args: Any, *, vocab_size: int, max_model_len: int, eos_token_ids: list[int]
) -> _core.LookaheadConfig:
    from taco_llm import _core

    eos = given.pop("eos_token_id", None)
    most = min(given.get("voc_size") or vocab_size, vocab_size)
    if eos is None:
        ids = [id for id in eos_token_ids if id < most][:16]
    else:
        ids = eos if isinstance(eos, list) else [eos]
        if eos_token_ids and not set(ids) & set(eos_token_ids):
            logger.warning(
                "eos_token_id %s of %s is not the model's (%s): leave the key out to have the model's",
                eos,
                lookahead_config.FILE_NAME,
                ", ".join(map(str, eos_token_ids)),
            )
    config = _core.LookaheadConfig(**given)
    config.eos_token_id = ids
    config.voc_size = most
    config.max_seq_len = min(config.max_seq_len or max_model_len, max_model_len)
    config.ignore_prompt = config.ignore_prompt or args.ignore_prompt_for_lookahead_cache
    return config


def memory_bound(part: float, total: int, available: int) -> int:
    """Bytes that the lookahead cache may fill, as it learns: `part` of the `total` memory that this process
    may have, but not more than half of what is `available`. MemoryError where that is next to nothing."""
    wanted = part_of_memory(
        part, total, available, what="the lookahead cache", flag="--cpu-decoding-memory-utilization"
    )
    if wanted < _LEAST_BYTES:
        raise MemoryError(
            f"the lookahead cache would have {wanted / 2**20:.1f} MiB, too little to be of use: free some "
            "memory, raise --cpu-decoding-memory-utilization, or leave out --lookahead-cache-config-dir"
        )
    return wanted
