"""MXFP4 blocks and scales to bfloat16. Needs nothing but NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from taco_llm.loading.mxfp4 import dequantize, join_mxfp4
from taco_llm.loading.tensors import LoadError, StoredTensor


def stored(name: str, data: np.ndarray, format: str = "U8") -> StoredTensor:
    return StoredTensor(
        name, Path("x.safetensors"), format, data.shape, data.nbytes, lambda: data.reshape(-1)
    )


def as_floats(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def value(code: int) -> float:
    """e2m1: exponents 0 (no hidden bit) to 3 with a bias of 1."""
    sign, exponent, mantissa = -1 if code & 8 else 1, code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2))


def test_every_code_at_every_scale():
    blocks = np.array([[low | high << 4 for low in range(16)] for high in range(16)], dtype=np.uint8)
    for scale in (2, 100, 127, 130, 250):
        out = as_floats(dequantize(blocks, np.full(16, scale, dtype=np.uint8)))
        for high in range(16):
            for low in range(16):
                assert out[high, 2 * low] == value(low) * 2.0 ** (scale - 127)
                assert out[high, 2 * low + 1] == value(high) * 2.0 ** (scale - 127)


def test_pairs_are_joined_and_others_left_alone():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 3, 4, 16), dtype=np.uint8)
    scales = rng.integers(120, 130, (2, 3, 4), dtype=np.uint8)
    other = stored("norm", np.zeros(4, np.float32), "F32")
    out = join_mxfp4(
        {"w_blocks": stored("w_blocks", blocks), "w_scales": stored("w_scales", scales), "norm": other}
    )
    assert list(out) == ["w_blocks", "norm"] and out["norm"] is other
    assert out["w_blocks"].format == "BF16" and out["w_blocks"].shape == (2, 3, 128)
    bits = out["w_blocks"].read().view(np.uint16).reshape(2, 3, 4, 32)
    expected = dequantize(blocks[1, 2], scales[1, 2])
    assert (bits[1, 2] == expected).all()


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        ((2, 4, 16), None, "has no scales beside it"),
        ((2, 4, 8), (2, 4), "no MXFP4"),
        ((2, 4, 16), (2, 3), "no MXFP4"),
        ((4, 16), (4,), "no MXFP4"),
    ],
)
def test_what_does_not_fit_is_named(blocks, scales, message):
    tensors = {"w_blocks": stored("w_blocks", np.zeros(blocks, np.uint8))}
    if scales is not None:
        tensors["w_scales"] = stored("w_scales", np.zeros(scales, np.uint8))
    with pytest.raises(LoadError, match=message):
        join_mxfp4(tensors)
