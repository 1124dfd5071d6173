"""MXFP4 weights (OCP Microscaling Formats 1.0): blocks of 32 four-bit floats with one power of two each.

A checkpoint stores a matrix as two uint8 tensors: `NAME_blocks` [..., blocks, 16], two values a byte, the
lower four bits first, and `NAME_scales` [..., blocks], exponents with a bias of 127. They are joined to one
bfloat16 tensor `NAME_blocks` [..., 32 * blocks]: exact, since a value has two significant bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .tensors import LoadError, StoredTensor

# e2m1: sign, two bits of exponent, one of mantissa.
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
_PAIRS = np.empty((256, 2), dtype=np.float32)
for _byte in range(256):
    for _half, _code in enumerate((_byte & 15, _byte >> 4)):
        _PAIRS[_byte, _half] = _VALUES[_code & 7] * (-1 if _code & 8 else 1)
_SCALES = np.exp2(np.arange(256, dtype=np.float64) - 127)[:255].astype(np.float32)
_SCALES = np.append(_SCALES, np.float32(np.nan))
_BLOCK = 16  # bytes


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 [n, 16] and uint8 [n] -> bfloat16 bits as uint16 [n, 32]."""
    out = np.empty((len(scales), 2 * _BLOCK), dtype=np.uint16)
    step = 1 << 16  # bounds the float32 copies
    for at in range(0, len(scales), step):
        values = _PAIRS[blocks[at : at + step]].reshape(-1, 2 * _BLOCK)
        values = values * _SCALES[scales[at : at + step], None]
        out[at : at + step] = values.view(np.uint32) >> 16
    return out


def join_mxfp4(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with every pair of blocks and scales joined. LoadError for one without the other."""
    out = dict(tensors)
    for name, blocks in tensors.items():
        if not name.endswith("_blocks"):
            continue
        scales = out.pop(name.removesuffix("_blocks") + "_scales", None)
        if scales is None:
            raise LoadError(f"{blocks.file}: tensor {name!r} has no scales beside it")
        if (
            blocks.format != "U8"
            or scales.format != "U8"
            or len(blocks.shape) < 3
            or blocks.shape[-1] != _BLOCK
            or scales.shape != blocks.shape[:-1]
        ):
            raise LoadError(
                f"{blocks.file}: tensor {name!r} ({blocks.format} {blocks.shape}) and its scales "
                f"({scales.format} {scales.shape}) are no MXFP4: uint8 [..., blocks, 16] and [..., blocks]"
            )

        def read(blocks: StoredTensor = blocks, scales: StoredTensor = scales) -> np.ndarray:
            return dequantize(blocks.read().reshape(-1, _BLOCK), scales.read()).reshape(-1).view(np.uint8)

        shape = (*blocks.shape[:-2], blocks.shape[-2] * 2 * _BLOCK)
        out[name] = StoredTensor(name, blocks.file, "BF16", shape, blocks.num_bytes + scales.num_bytes, read)
    return out
