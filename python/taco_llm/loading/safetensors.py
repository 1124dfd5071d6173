"""A reader of safetensors files over a memory mapping.

Layout: header size u64, a JSON object name -> {dtype, shape, data_offsets: [begin, end]}, the data. The
safetensors package's NumPy interface has no bfloat16, so the header is read here; it is checked as the format
demands: at most 100 MB, spans without overlap or hole, each as long as dtype and shape say.
"""

from __future__ import annotations

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .mapping import Mapping
from .tensors import LoadError, StoredTensor

MAX_HEADER = 100_000_000

_DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
    return out


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], Mapping]:
    """Every tensor of a file, by name, in the file's order; bytes are only touched when read.

    Raises LoadError."""
    mapping = Mapping(path)
    if mapping.size < 8:
        raise LoadError(f"{path}: the safetensors header is truncated")
    (size,) = struct.unpack("<Q", mapping.bytes(0, 8))
    if size > MAX_HEADER:
        raise LoadError(
            f"{path}: a safetensors header of {size} bytes (at most {MAX_HEADER}): not a safetensors file?"
        )
    if size > mapping.size - 8:
        raise LoadError(
            f"{path}: the safetensors header is truncated: {size} bytes announced, {mapping.size - 8} there"
        )
    try:
        header = json.loads(mapping.bytes(8, 8 + size), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise LoadError(f"{path}: the safetensors header is not valid JSON: {e}") from None
    if not isinstance(header, dict):
        raise LoadError(f"{path}: the safetensors header is not an object")
    header.pop("__metadata__", None)
    start, tensors, spans = 8 + size, {}, []
    for name, entry in header.items():
        tensors[name], begin = _tensor(mapping, name, entry, start)
        spans.append((begin, begin + tensors[name].num_bytes, name))
    spans.sort()
    tensors = {name: tensors[name] for _, _, name in spans}
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            kind = "overlaps the one before" if begin < end else "leaves a hole before it"
            raise LoadError(f"{path}: tensor {name!r}: its data {kind} (offset {begin}, expected {end})")
        end = stop
    if end != mapping.size - start:
        raise LoadError(f"{path}: {mapping.size - start} bytes of data, but the tensors take {end}")
    return tensors, mapping


def _tensor(mapping: Mapping, name: str, entry: Any, start: int) -> tuple[StoredTensor, int]:
    def fail(why: str) -> LoadError:
        return LoadError(f"{mapping.path}: tensor {name!r}: {why}")

    if not isinstance(entry, dict):
        raise fail("its header entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise fail(f"unknown dtype {dtype!r}")

    def sizes(value: Any, what: str) -> list[int]:
        if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
            raise fail(f"{what} must be a list of sizes, it is {value!r}")
        return value

    shape, offsets = sizes(shape, "shape"), sizes(offsets, "data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"bad data_offsets {offsets}")
    num_bytes = _DTYPE_BYTES[dtype]
    for d in shape:
        num_bytes *= d
    begin, end = offsets
    if end - begin != num_bytes:
        raise fail(f"{dtype} of shape {shape} takes {num_bytes} bytes, its data_offsets span {end - begin}")
    if start + end > mapping.size:
        raise fail(f"the file is truncated: data up to byte {start + end}, but it has {mapping.size}")
    raw = mapping.array[start + begin : start + end]
    read = partial(_float32, raw) if dtype == "F64" else (lambda: raw)
    format = "F32" if dtype == "F64" else dtype
    return StoredTensor(name, mapping.path, format, tuple(shape), num_bytes, read), begin


def _float32(raw: np.ndarray) -> np.ndarray:
    return np.frombuffer(raw.tobytes(), dtype="<f8").astype("<f4").view(np.uint8)
