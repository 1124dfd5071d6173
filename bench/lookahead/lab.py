"""An engine put together by hand, for measurements that the public interface has no place for."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "offline"))
import random_config  # noqa: E402
from taco_llm import _core, cuda  # noqa: E402
from taco_llm.loading import load_model, resolve  # noqa: E402

BLOCK = 16
FORCED = 1  # the only token that requests of `forced_params` get


class Lab:
    """A model of a shape with random weights (or a folder's), and executors and engines over it."""

    def __init__(self, model: str, *, device: str, dtype: str = "bfloat16") -> None:
        chosen, _ = cuda.choose(device)
        if chosen == "cpu":
            self.backend = _core.Backend("cpu")
        else:
            self.backend = _core.Backend(
                chosen, plugin=str(cuda.plugin_path()), cublaslt=cuda.cublaslt_path()
            )
        self.device = chosen
        with tempfile.TemporaryDirectory() as scratch:
            if Path(model).exists():
                checkpoint = resolve(model)
            else:
                folder = random_config.write(model, Path(scratch) / model)
                checkpoint = resolve(str(folder), load_format="dummy")
            self.model = load_model(checkpoint, backend=self.backend, dtype=dtype, show_progress=False)
        self.block_bytes = _core.ModelExecutor.block_bytes(self.model, BLOCK)

    def blocks_for(self, tokens: int, share: float = 0.9) -> int:
        """Blocks for so many tokens, or as many as fit a share of the free memory."""
        free = int(self.backend.memory[1] * share)
        return max(1, min(-(-tokens // BLOCK), free // self.block_bytes))

    def executor(
        self, *, num_blocks: int, max_len: int, sequences: int, batched: int, draft_rows: int = 0
    ) -> _core.ModelExecutor:
        return _core.ModelExecutor(
            self.model,
            max_model_len=max_len,
            num_blocks=num_blocks,
            max_num_batched_tokens=batched,
            max_num_seqs=sequences,
            max_draft_rows=draft_rows,
        )


def forced_params(max_tokens: int) -> _core.SamplingParams:
    """Greedy, and always the token FORCED, whatever the weights are."""
    return _core.SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        ignore_eos=True,
        detokenize=False,
        logit_bias=[(FORCED, 100.0)],
    )


def prompts(count: int, length: int, vocab: int) -> list[list[int]]:
    return [[2 + (7919 * i + 31 * s) % (vocab - 2) for i in range(length)] for s in range(count)]


def drop_outputs(engine: _core.Engine) -> None:
    while engine.poll():
        pass


def step_seconds(engine: _core.Engine, batch: int, context: int, *, steps: int = 40, warm: int = 8) -> float:
    """Seconds of a step of `batch` sequences that generate behind prompts of `context` tokens, as the engine
    makes them: scheduling, sampling and outputs included. They are aborted afterwards."""
    for prompt in prompts(batch, context, engine.vocab_size):
        engine.submit(prompt, forced_params(engine.max_model_len - context - 1))
    target = engine.stats().generation_tokens + 2 * batch
    deadline = time.monotonic() + 60
    while engine.stats().generation_tokens < target or engine.stats().running < batch:
        engine.poll(0.01)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{batch} sequences do not run together")

    def wait(count: int) -> tuple[int, float]:
        begin = engine.stats().steps
        while True:
            engine.poll(0.002)
            now = engine.stats()
            if now.steps >= begin + count:
                return now.steps, now.last_step_end

    first, begin = wait(warm)
    last, end = wait(steps)
    engine.abort_all()
    while engine.stats().running:
        engine.poll(0.01)
    drop_outputs(engine)
    return (end - begin) / (last - first)


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def speculation(drafter: _core.Drafter | None, **settings: Any) -> dict[str, Any]:
    """Arguments of an Engine: with the drafter, or without speculation."""
    if drafter is None:
        return {}
    config = _core.SpeculationConfig(method="lookahead", memory_bytes=1 << 30, **settings)
    return {"speculation": config, "drafter": drafter}
