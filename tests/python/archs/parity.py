"""Loading a checkpoint and running it on the core, for the parity tests. No torch here: also run in
subprocesses.

TACO_TEST_DEVICE=cuda (or cuda:N) runs everything on that device, float32 weights and activations included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from taco_llm import _core, cuda
from taco_llm.loading import load_model, resolve

TOLERANCE = 1e-4  # of the largest logit, in float32


DEVICE = os.environ.get("TACO_TEST_DEVICE", "cpu")


@lru_cache(maxsize=1)
def backend() -> _core.Backend:
    """One for all models of a process: a device's context takes longer to make than a tiny model to run."""
    device, _ = cuda.choose(DEVICE)
    if device == "cpu":
        return _core.Backend("cpu", threads=1)
    return _core.Backend(device, plugin=str(cuda.plugin_path()), cublaslt=cuda.cublaslt_path())


def load(path: Path | str, **options: Any) -> Any:
    options = {"dtype": "float32", "show_progress": False, **options}
    return load_model(resolve(str(path)), backend=backend(), **options)


def run(
    model: Any,
    ids: Sequence[int],
    chunks: Sequence[int] | None = None,
    block_size: int = 16,
    max_len: int = 0,
) -> np.ndarray:
    """Logits of every position, with the KV cache in float32."""
    length = max_len or len(ids)
    executor = _core.ModelExecutor(
        model,
        max_model_len=length,
        block_size=block_size,
        num_blocks=-(-length // block_size) + 2,
        kv_dtype="float32",
        max_num_batched_tokens=max(length, 8),
        max_num_seqs=4,
    )
    return np.array(executor.forward(list(ids), list(chunks) if chunks else None))


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value. Infinities must be the same."""
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    if not (actual[~finite] == expected[~finite]).all():
        return float("inf")
    return float(np.abs(actual[finite] - expected[finite]).max() / np.abs(expected[finite]).max())


def split(total: int, sizes: Sequence[int]) -> list[int]:
    """The sizes again and again until total is covered."""
    out: list[int] = []
    while sum(out) < total:
        out.append(min(sizes[len(out) % len(sizes)], total - sum(out)))
    return out


def main() -> None:
    """parity.py OUT FOLDER...: logits of each folder's model for the ids in its ids.npy, into OUT (npz)."""
    out = {}
    for folder in sys.argv[2:]:
        ids = [int(i) for i in np.load(Path(folder) / "ids.npy")]
        out[Path(folder).name] = run(load(folder), ids, split(len(ids), [13, 1, 1, 5]))
    np.savez(sys.argv[1], isa=np.array(_core.cpu_info()["isa"]), **out)


if __name__ == "__main__":
    main()
