"""EngineHandle: a running engine with all that its users ask about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from taco_llm import lookahead, prefix_cache
from taco_llm.device_memory import MemoryPlan
from taco_llm.engine_args import EngineArgs

if TYPE_CHECKING:
    from taco_llm import _core
    from taco_llm.loading import Checkpoint
    from taco_llm.tokenizer import Tokenizer


@dataclass
class EngineHandle:
    """A running engine and what its users need to know about it.

    model_name: the first name the API offers the model under; served_names: all of them.
    tokenizer is None under skip_tokenizer_init; checkpoint is None for the null model.
    """

    core: _core.Engine
    tokenizer: Tokenizer | None
    checkpoint: Checkpoint | None
    model_name: str
    served_names: list[str]
    max_model_len: int
    eos_token_ids: list[int]
    generation_config: dict[str, Any]
    args: EngineArgs
    vocab_size: int
    num_kv_blocks: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    memory_plan: MemoryPlan | None = None  # of a GPU
    hf_config: dict[str, Any] = field(default_factory=dict)
    speculation: _core.SpeculationConfig | None = None
    companion: lookahead.Companion | None = None
    tiers: prefix_cache.Tiers = field(default_factory=prefix_cache.Tiers)
    disk: _core.DiskStore | None = None
    log: prefix_cache.EngineLog | None = None

    def shutdown(self) -> None:
        """Aborts what runs, stops the engine's thread and saves the draft memory; can be called again."""
        self.core.shutdown()
        if self.companion is not None:
            self.companion.stop()
        if self.disk is not None:
            self.disk.close()
        if self.log is not None:
            self.log.stop()
