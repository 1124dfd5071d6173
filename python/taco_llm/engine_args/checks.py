"""The ranges of the engine's settings, each by itself. What belongs together is checked where it is used:
taco_llm.speculation and taco_llm.prefix_cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taco_llm.engine_args.args import EngineArgs

_POSITIVE = (
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "num_gpu_blocks_override",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "sequence_parallel_size",
    "num_scheduler_steps",
)
_NOT_NEGATIVE = ("swap_space", "cpu_offload_gb", "scheduler_delay_factor")


def check_ranges(args: EngineArgs) -> None:
    """ValueError for a number that is out of its range."""
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} should be 1 or more")
    budget = args.max_num_batched_tokens
    if budget is not None and budget < args.max_num_seqs:
        raise ValueError(
            f"max_num_batched_tokens={budget} should be at least max_num_seqs={args.max_num_seqs}, so "
            "that every running sequence gets a token in each step; raise it, or lower --max-num-seqs"
        )
    if args.max_logprobs < 0:
        raise ValueError(f"max_logprobs={args.max_logprobs} should be 0 or more")
    if args.threads < 0:
        raise ValueError(f"threads={args.threads} should be 0 (one for each core) or more")
    if args.seed < 0 or args.seed >= 2**64:
        raise ValueError(f"seed={args.seed} should be from 0 to 2**64 - 1")
    if not 0 < args.gpu_memory_utilization <= 1:
        raise ValueError(
            f"gpu_memory_utilization={args.gpu_memory_utilization} should be above 0 and at most 1"
        )
    for name in _NOT_NEGATIVE:
        if getattr(args, name) < 0:
            raise ValueError(f"{name}={getattr(args, name)} should be 0 or more")
    if args.rope_theta is not None and args.rope_theta <= 0:
        raise ValueError(f"rope_theta={args.rope_theta} should be above 0")
