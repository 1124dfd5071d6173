"""A reader of GGUF v2 and v3 files over a memory mapping.

Layout: "GGUF", version u32, tensor count u64, metadata count u64; metadata: key, type u32, value; for each
tensor its name, rank u32, dims u64 (columns first), type u32, offset u64 into the data, which starts at the
next multiple of general.alignment (32). Strings are u64 length and UTF-8. All little-endian.

Nothing in the file is trusted: every count is checked against the bytes that are left before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .mapping import Mapping
from .tensors import LoadError, StoredTensor

# ggml type -> (name, columns of a block, bytes of a block)
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
# Handed to the core as they are; the others become bfloat16.
NATIVE = frozenset({"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"})

MAX_RANK = 4
MAX_KEY = 65535
MAX_ARRAY_DEPTH = 4
_WINDOW = 1 << 22

_STRING, _ARRAY = 8, 9
# Metadata value type -> struct format.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_NUMPY = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass
class GgufFile:
    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    mapping: Mapping


class _Reader:
    """A cursor over the header. `what` says, for messages, what is being read."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping, self.raw, self.at, self.end = mapping, memoryview(mapping.array.data), 0, mapping.size
        self.what = "header"

    def fail(self, why: str) -> LoadError:
        return LoadError(f"{self.mapping.path}: GGUF {self.what}: {why}")

    def take(self, n: int) -> int:
        """Moves past n bytes and gives where they begin."""
        at = self.at
        if n > self.end - at:
            raise self.fail(f"the file is truncated: {n} bytes needed at offset {at}, {self.end - at} left")
        self.at = at + n
        return at

    def u32(self) -> int:
        return int(struct.unpack_from("<I", self.raw, self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack_from("<Q", self.raw, self.take(8))[0])

    def count(self, least_bytes: int) -> int:
        """A u64 count of things that take at least so many bytes each."""
        n = self.u64()
        if n * least_bytes > self.end - self.at:
            raise self.fail(f"a count of {n} is more than the file can hold")
        return n

    def key(self) -> str:
        n = self.u64()
        if n > MAX_KEY:
            raise self.fail(f"a name of {n} bytes (at most {MAX_KEY})")
        at = self.take(n)
        try:
            return str(self.raw[at : at + n], "utf-8")
        except UnicodeDecodeError:
            raise self.fail("a name is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        fmt = _SCALARS.get(kind)
        if fmt is not None:
            return struct.unpack_from(fmt, self.raw, self.take(struct.calcsize(fmt)))[0]
        if kind == _STRING:
            n = self.u64()
            at = self.take(n)
            return str(self.raw[at : at + n], "utf-8", "surrogateescape")
        if kind != _ARRAY:
            raise self.fail(f"unknown value type {kind}")
        if depth >= MAX_ARRAY_DEPTH:
            raise self.fail(f"arrays nested more than {MAX_ARRAY_DEPTH} deep")
        kind = self.u32()
        if kind in _NUMPY:
            dtype = np.dtype(_NUMPY[kind])
            n = self.count(dtype.itemsize)
            at = self.take(n * dtype.itemsize)
            return self.mapping.array[at : at + n * dtype.itemsize].view(dtype).tolist()
        if kind == _STRING:
            return self.strings(self.count(8))
        if kind != _ARRAY:
            raise self.fail(f"unknown array type {kind}")
        return [self.value(_ARRAY, depth + 1) for _ in range(self.count(12))]

    def strings(self, n: int) -> list[str]:
        """n strings. A vocabulary has 100,000 of them: the loop runs over plain bytes, a window at a time."""
        out: list[str] = []
        unpack = struct.Struct("<Q").unpack_from
        start, at = self.at, 0
        window = self.mapping.bytes(start, start + _WINDOW)
        for _ in range(n):
            if len(window) - at < 8:
                start, at, window = self._refill(start + at, 8)
            (size,) = unpack(window, at)
            at += 8
            if size > len(window) - at:
                start, at, window = self._refill(start + at, size)
            text = window[at : at + size]
            try:
                out.append(text.decode())
            except UnicodeDecodeError:
                out.append(text.decode("utf-8", "surrogateescape"))
            at += size
        self.at = start + at
        return out

    def _refill(self, at: int, need: int) -> tuple[int, int, bytes]:
        self.at = at
        self.take(need)  # or the file is truncated
        return at, 0, self.mapping.bytes(at, at + max(need, _WINDOW))


def read_gguf(path: Path) -> GgufFile:
    """Parses and checks a GGUF file's header; tensors are only read when asked for. Raises LoadError."""
    mapping = Mapping(path)
    r = _Reader(mapping)
    if mapping.size < 24:
        raise r.fail("the file is truncated")
    if mapping.bytes(0, 4) != b"GGUF":
        raise r.fail(f"not a GGUF file (it starts with {mapping.bytes(0, 4)!r})")
    r.at = 4
    version = r.u32()
    if version not in (2, 3):
        big_endian = version & 0xFFFF == 0
        raise r.fail(
            "big-endian files are not supported" if big_endian else f"version {version} (2 and 3 are known)"
        )
    num_tensors, num_values = r.count(24), r.count(13)

    metadata: dict[str, Any] = {}
    for i in range(num_values):
        r.what = f"metadata entry {i}"
        key = r.key()
        r.what = f"metadata {key!r}"
        if key in metadata:
            raise r.fail("given twice")
        metadata[key] = r.value(r.u32())

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        r.what = "metadata 'general.alignment'"
        raise r.fail(f"must be a power of two, it is {alignment!r}")

    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for i in range(num_tensors):
        r.what = f"tensor entry {i}"
        name = r.key()
        r.what = f"tensor {name!r}"
        if name in infos:
            raise r.fail("given twice")
        rank = r.u32()
        if not 1 <= rank <= MAX_RANK:
            raise r.fail(f"{rank} dimensions (1 to {MAX_RANK} are allowed)")
        dims = struct.unpack_from(f"<{rank}Q", r.raw, r.take(8 * rank))
        if 0 in dims:
            raise r.fail(f"a dimension of 0 in {dims}")
        infos[name] = (tuple(reversed(dims)), r.u32(), r.u64())

    start = -(-r.at // alignment) * alignment
    tensors = {name: _tensor(r, name, info, start, alignment) for name, info in infos.items()}
    _check_overlap(r, infos, tensors)
    return GgufFile(path, version, metadata, tensors, mapping)


def _tensor(
    r: _Reader, name: str, info: tuple[tuple[int, ...], int, int], start: int, alignment: int
) -> StoredTensor:
    shape, kind, offset = info
    r.what = f"tensor {name!r}"
    if kind not in TYPES:
        raise r.fail(f"type {kind} is not known or not supported")
    type_name, block_cols, block_bytes = TYPES[kind]
    cols = shape[-1]
    if cols % block_cols:
        raise r.fail(f"{cols} columns are no multiple of {type_name}'s block of {block_cols}")
    blocks = cols // block_cols
    for d in shape[:-1]:
        blocks *= d
    num_bytes = blocks * block_bytes
    if offset % alignment:
        raise r.fail(f"offset {offset} is not a multiple of the alignment {alignment}")
    if start + offset + num_bytes > r.end:
        raise r.fail(
            f"the file is truncated: {num_bytes} bytes of data at offset {start + offset}, "
            f"but it has {r.end} bytes"
        )
    raw = r.mapping.array[start + offset : start + offset + num_bytes]
    if type_name in NATIVE:
        return StoredTensor(name, r.mapping.path, type_name, shape, num_bytes, lambda: raw)
    return StoredTensor(
        name,
        r.mapping.path,
        "BF16",
        shape,
        num_bytes,
        partial(_dequantize, raw, kind, shape, name, r.mapping.path),
    )


def _check_overlap(
    r: _Reader, infos: dict[str, tuple[tuple[int, ...], int, int]], tensors: dict[str, StoredTensor]
) -> None:
    end, previous = 0, ""
    for name in sorted(infos, key=lambda n: infos[n][2]):
        if infos[name][2] < end:
            r.what = f"tensor {name!r}"
            raise r.fail(f"its data overlaps that of tensor {previous!r}")
        end, previous = infos[name][2] + tensors[name].num_bytes, name


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits, to nearest even; a NaN stays one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, bits >> np.uint32(16) | np.uint32(0x40), rounded).astype("<u2")


def _dequantize(raw: np.ndarray, kind: int, shape: tuple[int, ...], name: str, path: Path) -> np.ndarray:
    """A tensor of a type that the core does not have, as bfloat16 bytes."""
    type_name = TYPES[kind][0]
    if type_name == "F64":
        return to_bfloat16(raw.view("<f8").astype(np.float32)).view(np.uint8)
    try:
        import gguf
    except ImportError:
        raise LoadError(
            f"{path}: tensor {name!r} is stored as {type_name}, which the gguf package "
            "converts to bfloat16: run `pip install gguf`, or use a file of Q8_0, Q4_0, Q4_1, Q4_K or Q6_K"
        ) from None
    rows = raw.reshape(int(np.prod(shape[:-1], dtype=np.int64)), -1)
    out = np.empty((rows.shape[0], shape[-1]), dtype="<u2")
    step = max(1, (1 << 24) // shape[-1])  # float32 values of at most 64 MiB at a time
    for start in range(0, rows.shape[0], step):
        part = np.ascontiguousarray(rows[start : start + step])
        try:
            values = gguf.quants.dequantize(part, gguf.GGMLQuantizationType(kind))
        except (NotImplementedError, ValueError) as e:
            raise LoadError(
                f"{path}: tensor {name!r}: the gguf package cannot convert {type_name}: {e}"
            ) from None
        out[start : start + step] = to_bfloat16(values)
    return out.reshape(-1).view(np.uint8)
