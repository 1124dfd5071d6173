"""load_format dummy: random weights, to measure speed without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .gguf import to_bfloat16
from .tensors import StoredTensor

# Random values are drawn once and repeated from a changing offset: drawing billions would take minutes.
_POOL = 1 << 22


def dummy_tensors(
    slots: Mapping[str, Sequence[int]], dtype: str, seed: int, path: Path
) -> dict[str, StoredTensor]:
    """A tensor for every slot, uniform in +-1e-3, the same for the same seed. dtype: the core's name."""
    values = np.random.default_rng(seed).uniform(-1e-3, 1e-3, _POOL).astype(np.float32)
    format, pool = {
        "float32": ("F32", values),
        "float16": ("F16", values.astype("<f2")),
        "bfloat16": ("BF16", to_bfloat16(values)),
    }[dtype]
    out: dict[str, StoredTensor] = {}
    offset = 0
    for slot, shape in slots.items():
        count = int(np.prod(shape, dtype=np.int64))
        out[slot] = StoredTensor(
            slot, path, format, tuple(shape), count * pool.itemsize, _read(pool, offset, count)
        )
        offset = (offset + count * 7 + 1) % _POOL
    return out


def _read(pool: np.ndarray, offset: int, count: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if offset + count <= len(pool):
            return pool[offset : offset + count].view(np.uint8)
        return np.resize(np.roll(pool, -offset), count).view(np.uint8)

    return read
