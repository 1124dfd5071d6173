"""Slopes of attention with linear biases."""

from __future__ import annotations

import math

import numpy as np


def alibi_slopes(heads: int) -> list[float]:
    """A geometric series for the largest power of two of heads, then every other one of the next finer
    series.
    """
    power = 2 ** math.floor(math.log2(heads))

    def series(n: int) -> np.ndarray:
        base = np.float32(2 ** (-(2 ** -(math.log2(n) - 3))))
        return np.power(base, np.arange(1, n + 1, dtype=np.int32), dtype=np.float32)

    slopes = np.concatenate([series(power), series(2 * power)[0 : 2 * (heads - power) : 2]])
    return [float(s) for s in slopes]
