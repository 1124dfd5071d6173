"""FP8 checkpoints (e4m3 weights with scales): what their config says, and their tensors as 16-bit ones.

A weight is its stored numbers times `NAME_scale` (one number, or one for each row) or `NAME_scale_inv` (one
for each block of rows and columns; it multiplies too, whatever its name says). On a GPU the products run in
FP8 again: with one scale for what is stacked into one matrix, the largest of its parts', as vLLM does it.
Activations are always scaled by their own rows' maxima, which a checkpoint's static `input_scale` only
estimates, so those are left out; and the KV cache's scales with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from taco_llm.archs.fp8 import Fp8Checkpoint

from .tensors import LoadError, StoredTensor

_SCALES = ("_scale", "_scale_inv")
# Scales of activations and of the KV cache, by the last part of the name.
_UNUSED = frozenset(
    ("input_scale", "output_scale", "activation_scale", "act_scale", "kv_scale", "k_scale", "v_scale",
     "q_scale", "prob_scale")
)  # fmt: skip


def widened(
    tensors: Mapping[str, StoredTensor], checkpoint: Fp8Checkpoint, format: str
) -> tuple[dict[str, StoredTensor], set[str]]:
    """(the tensors with FP8 weights as `format`, their scales gone; the names that were FP8).

    format: F32, F16 or BF16. Raises LoadError for a weight without a scale, or one whose scale does not fit.
    """
    out: dict[str, StoredTensor] = {}
    narrow: set[str] = set()
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] in _UNUSED or _weight_of(name, tensors) is not None:
            continue
        if tensor.format != "F8_E4M3":
            out[name] = tensor
            continue
        scale = next((tensors[name + end] for end in _SCALES if name + end in tensors), None)
        if scale is None:
            raise LoadError(
                f"{tensor.file}: tensor {name!r} is FP8, but there is no {name + _SCALES[0]!r} beside it"
            )
        narrow.add(name)
        values = _scale_values(tensor, scale, checkpoint.block)
        out[name] = StoredTensor(
            name,
            tensor.file,
            format,
            tensor.shape,
            tensor.num_bytes,
            partial(_widen, tensor, values, checkpoint.block, format),
        )
    return out, narrow


def _weight_of(name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
    for end in _SCALES:
        weight = name.removesuffix(end)
        if weight != name and weight in tensors:
            return weight
    return None


def _scale_values(tensor: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None) -> np.ndarray:
    """float32 [1, 1], [rows, 1] or one for each block."""

    def fail(expected: str) -> LoadError:
        return LoadError(
            f"{scale.file}: tensor {scale.name!r} is {scale.format} of shape {scale.shape}, but the weight "
            f"of shape {tensor.shape} needs {expected}"
        )

    if len(tensor.shape) != 2:
        raise fail("to be a matrix")
    raw = scale.read().tobytes()
    if scale.format == "F32":
        values = np.frombuffer(raw, "<f4")
    elif scale.format == "BF16":
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif scale.format == "F16":
        values = np.frombuffer(raw, "<f2").astype(np.float32)
    else:
        raise fail("scales in F32, F16 or BF16")
    if not np.all(np.isfinite(values)):
        raise fail("finite scales")
    rows, cols = tensor.shape
    if block is not None:
        blocks = (-(-rows // block[0]), -(-cols // block[1]))
        if scale.shape != blocks:
            raise fail(f"{blocks} scales, one for each block of {block}")
        return values.reshape(blocks)
    if values.size == 1:
        return values.reshape(1, 1)
    if values.size != rows or scale.shape[0] != rows:
        raise fail(f"one scale, or {rows}")
    return values.reshape(rows, 1)


def _table() -> np.ndarray:
    """The 256 numbers of e4m3 (no infinities; NaN at 0x7f and 0xff)."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, (bits & 7).astype(np.float32)
    values = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * np.exp2(exponent.astype(np.float32) - 7)
    )
    values[(bits & 127) == 127] = np.nan
    return np.where(bits >= 128, -values, values).astype(np.float32)


_VALUES = _table()


def _rounded(values: np.ndarray, format: str) -> np.ndarray:
    if format == "F32":
        return values
    if format == "F16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def _widen(
    tensor: StoredTensor, scales: np.ndarray, block: tuple[int, int] | None, format: str
) -> np.ndarray:
    codes = tensor.read().reshape(tensor.shape)
    if np.any((codes & 127) == 127):
        raise LoadError(f"{tensor.file}: tensor {tensor.name!r} holds NaN")
    if scales.size == 1:  # a table of the rounded numbers
        return _rounded(_VALUES * scales[0, 0], format)[codes].reshape(-1).view(np.uint8)
    rows, cols = tensor.shape
    out = np.empty((rows, cols), _rounded(np.empty(0, np.float32), format).dtype)
    step = block[0] if block is not None else max(1, (1 << 22) // cols)
    for start in range(0, rows, step):
        part = _VALUES[codes[start : start + step]]
        if block is not None:
            part *= np.repeat(scales[start // step], block[1])[:cols]
        else:
            part *= scales[start : start + step]
        out[start : start + step] = _rounded(part, format)
    return out.reshape(-1).view(np.uint8)
