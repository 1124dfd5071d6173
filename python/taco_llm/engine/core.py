"""The core's engine over an executor, by the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taco_llm.engine.drafting import Drafting
from taco_llm.engine_args import EngineArgs

if TYPE_CHECKING:
    from taco_llm import _core


def make_core(
    args: EngineArgs,
    executor: _core.Executor,
    vocabulary: _core.Vocabulary | None,
    *,
    batched: int,
    drafting: Drafting,
    caching: _core.PrefixCachingConfig | None,
    swap_blocks: int = 0,
) -> _core.Engine:
    """Starts the engine's thread. batched: most tokens of a step; swap_blocks: of the executor."""
    from taco_llm import _core

    return _core.Engine(
        executor,
        vocabulary,
        max_num_batched_tokens=batched,
        max_num_seqs=args.max_num_seqs,
        enable_chunked_prefill=args.enable_chunked_prefill is not False,
        priority_scheduling=args.scheduling_policy == "priority",
        seed=args.seed,
        speculation=drafting.config,
        drafter=drafting.drafter,
        prefix_caching=caching,
        swap_blocks=swap_blocks,
        preemption_mode=(args.preemption_mode if swap_blocks else None) or "auto",
    )
