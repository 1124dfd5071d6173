"""Writes a GGUF with another's metadata and shapes, but random weights of a chosen type.

    python bench/offline/random_gguf.py SOURCE.gguf OUT.gguf --type F16|Q8_0|Q4_1 [--header-only]

For speed measurements on machines where the real weights are not at hand: a dense model's speed does not
depend on its weights' values. SOURCE may be cut off after its tensor list (--header-only writes such a file).
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import numpy as np

TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_1": (3, 32, 20), "Q8_0": (8, 32, 34)}
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def unpack(self, fmt: str) -> int:
        (value,) = struct.unpack_from("<" + fmt, self.data, self.at)
        self.at += struct.calcsize("<" + fmt)
        return value

    def string(self) -> bytes:
        size = self.unpack("Q")
        self.at += size
        return self.data[self.at - size : self.at]

    def skip_value(self, kind: int) -> None:
        if kind == 8:
            self.string()
        elif kind == 9:
            element, count = self.unpack("I"), self.unpack("Q")
            if element in SCALARS:
                self.at += SCALARS[element] * count
            else:
                for _ in range(count):
                    self.skip_value(element)
        else:
            self.at += SCALARS[kind]


def random_tensor(kind: str, count: int, rng: np.random.Generator) -> bytes:
    if kind == "F32":  # the norms
        return np.ones(count, np.float32).tobytes()
    if kind == "F16":
        return (rng.standard_normal(count, np.float32) * 0.02).astype(np.float16).tobytes()
    blocks = count // 32
    if kind == "Q8_0":
        out = np.zeros(blocks, np.dtype([("d", np.float16), ("q", np.int8, 32)]))
        out["q"] = rng.integers(-127, 128, (blocks, 32), np.int8)
        out["d"] = 0.02 / 64
        return out.tobytes()
    out = np.zeros(blocks, np.dtype([("d", np.float16), ("m", np.float16), ("q", np.uint8, 16)]))
    out["q"] = rng.integers(0, 256, (blocks, 16), np.uint8)
    out["d"], out["m"] = 0.02 / 4, -0.04
    return out.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=["F16", "Q8_0", "Q4_1"], default="Q4_1")
    parser.add_argument(
        "--header-only", action="store_true", help="copy SOURCE's header and tensor list, no data"
    )
    args = parser.parse_args()
    reader = Reader(args.source.read_bytes())
    magic, version = reader.unpack("I"), reader.unpack("I")
    if magic != 0x46554747 or version not in (2, 3):
        raise SystemExit(f"{args.source} is not a GGUF of version 2 or 3")
    num_tensors, num_values = reader.unpack("Q"), reader.unpack("Q")
    for _ in range(num_values):
        reader.string()
        reader.skip_value(reader.unpack("I"))
    header_end = reader.at
    tensors = []
    for _ in range(num_tensors):
        name = reader.string()
        dims = [reader.unpack("Q") for _ in range(reader.unpack("I"))]
        reader.unpack("I"), reader.unpack("Q")
        tensors.append((name, dims))
    if args.header_only:
        args.out.write_bytes(reader.data[: reader.at])
        return
    rng = np.random.default_rng(0)
    infos, offset, kinds = b"", 0, []
    for name, dims in tensors:
        kind = (
            "F32"
            if len(dims) == 1
            else ("Q8_0" if args.type == "Q4_1" and name == b"token_embd.weight" else args.type)
        )
        number, block, size = TYPES[kind]
        infos += (
            struct.pack("<Q", len(name))
            + name
            + struct.pack("<I", len(dims))
            + struct.pack(f"<{len(dims)}Q", *dims)
        )
        infos += struct.pack("<IQ", number, offset)
        nbytes = int(np.prod(dims)) // block * size
        kinds.append((kind, int(np.prod(dims)), nbytes))
        offset += -(-nbytes // 32) * 32
    with args.out.open("wb") as out:
        out.write(reader.data[:header_end] + infos)
        out.write(b"\0" * (-out.tell() % 32))
        for kind, count, nbytes in kinds:
            out.write(random_tensor(kind, count, rng) + b"\0" * (-nbytes % 32))


if __name__ == "__main__":
    main()
