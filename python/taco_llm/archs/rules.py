"""Weight rules: which checkpoint tensor fills which slot of the ModelSpec, and how it is cut.

A rule is a name pattern, the slots it fills and a cut. In patterns `{i}` is the layer, `{e}` the expert, and
`*` stands for weight or bias. Rules name every tensor that the family can have; those whose slots the spec
does not have fall away, so the spec alone decides about biases, tied heads and the like.

Cuts work on bytes: an unquantised tensor is an array of unsigned integers as wide as its elements, a
quantised one an array of blocks' bytes, its last axis a whole row. No element is converted, but by unit_rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]

# (columns of a block, bytes of a block)
FORMATS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}
_UNITS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Tensor:
    """A tensor as stored: `data` has the axes of `shape`; the last one counts bytes where the format has
    blocks.
    """

    format: str
    shape: Shape
    data: np.ndarray

    @staticmethod
    def from_bytes(format: str, shape: Shape, raw: np.ndarray) -> Tensor:
        """raw: flat uint8, exactly the tensor's bytes."""
        unit = _UNITS.get(format)
        if unit is not None:
            # Not every mapping is aligned to the element; a view of bytes by rows is, whatever its offset.
            if raw.ctypes.data % unit.itemsize == 0:
                return Tensor(format, shape, raw.view(unit).reshape(shape))
            return Tensor(format, shape, raw.copy().view(unit).reshape(shape))
        cols, size = FORMATS[format]
        return Tensor(format, shape, raw.reshape(shape[:-1] + (shape[-1] // cols * size,)))

    @property
    def quantized(self) -> bool:
        return FORMATS[self.format][0] > 1

    def bytes(self) -> np.ndarray:
        """A contiguous, flat uint8 view (a copy only where rows were moved)."""
        return np.ascontiguousarray(self.data).reshape(-1).view(np.uint8)

    def rows(self, index: slice | np.ndarray) -> Tensor:
        data = self.data[index]
        return Tensor(self.format, (data.shape[0],) + self.shape[1:], data)


class Misshapen(ValueError):
    """A tensor whose shape is not what its rule needs: `.expected` says what would be right."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


# A cut makes as many tensors as there are slots, in their order.
Cut = Callable[[Tensor, Sequence[Shape]], "list[Tensor]"]


def stacked(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Slots stand below each other by rows (fused gate|up, experts as a first axis)."""
    cols = shapes[0][1:]
    total = sum(s[0] for s in shapes)
    lead = len(tensor.shape) - len(cols)
    if lead < 1 or tensor.shape[lead:] != cols or int(np.prod(tensor.shape[:lead])) != total:
        raise Misshapen(f"{(total,) + cols}")
    flat = Tensor(tensor.format, (total,) + cols, tensor.data.reshape((total,) + tensor.data.shape[lead:]))
    out, start = [], 0
    for s in shapes:
        out.append(flat.rows(slice(start, start + s[0])))
        start += s[0]
    return out


def alternating(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """The slots take rows in turn: gate and up in pairs."""
    count = len(shapes)
    if any(s != shapes[0] for s in shapes) or tensor.shape != (count * shapes[0][0],) + shapes[0][1:]:
        raise Misshapen(f"{(sum(s[0] for s in shapes),) + shapes[0][1:]}")
    return [tensor.rows(slice(i, None, count)) for i in range(count)]


def transposed(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """[in, out] as in GPT-2's Conv1D; the slots stand side by side in the columns. A bias stays as it is."""
    if len(tensor.shape) == 1:
        return stacked(tensor, shapes)
    if (
        tensor.quantized
        or len(tensor.shape) != 2
        or tensor.shape[::-1] != (sum(s[0] for s in shapes), shapes[0][1])
    ):
        raise Misshapen(f"{(shapes[0][1], sum(s[0] for s in shapes))}")
    return stacked(Tensor(tensor.format, tensor.shape[::-1], tensor.data.T), shapes)


def _to_float32(tensor: Tensor) -> np.ndarray:
    if tensor.format == "BF16":
        return (tensor.data.astype(np.uint32) << 16).view(np.float32)
    return tensor.data.view({"F32": np.float32, "F16": np.float16}[tensor.format]).astype(np.float32)


def _from_float32(values: np.ndarray, format: str) -> np.ndarray:
    """The unsigned integers of a format, rounded to the nearest."""
    if format == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return values.astype({"F32": np.float32, "F16": np.float16}[format]).view(_UNITS[format])


def unit_rows(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """One slot whose rows are divided by their lengths; the one cut that computes."""
    if tensor.quantized or tensor.shape != shapes[0]:
        raise Misshapen(f"{shapes[0]} in F32, F16 or BF16")
    out = np.empty(tensor.shape, _UNITS[tensor.format])
    step = max(1, (1 << 22) // tensor.shape[1])
    for start in range(0, tensor.shape[0], step):
        rows = _to_float32(tensor.rows(slice(start, start + step)))
        length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        out[start : start + step] = _from_float32(rows / np.maximum(length, np.float32(1e-12)), tensor.format)
    return [Tensor(tensor.format, tensor.shape, out)]


def grouped_qkv(head_dim: int) -> Cut:
    """Fused query_key_value: for each key-value head its query heads, then its key, then its value.

    GPT-NeoX and Bloom have one query head in each group, Falcon several; one group is q|k|v plainly stacked.
    """

    def cut(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        q, k, v = (s[0] for s in shapes)
        if tensor.shape != (q + k + v,) + shapes[0][1:]:
            raise Misshapen(f"{(q + k + v,) + shapes[0][1:]}")
        groups, per_group = k // head_dim, q // k
        row = np.arange(q + k + v).reshape(groups, per_group + 2, head_dim)
        parts = row[:, :per_group], row[:, per_group], row[:, per_group + 1]
        return [tensor.rows(p.reshape(-1)) for p in parts]

    return cut


@dataclass(frozen=True)
class Rule:
    name: str
    slots: tuple[str, ...]
    cut: Cut = stacked


@dataclass
class WeightRules:
    """The rules of one model.

    prefix: what some checkpoints of the family leave out ("model.", "transformer."), or have where rules do
    not.
    ignore: patterns (regular expressions, full match) of buffers that are no weights.
    """

    rules: list[Rule]
    num_layers: int
    num_experts: int = 0
    prefix: str = ""
    ignore: tuple[str, ...] = ()
    slots: Mapping[str, Shape] = field(default_factory=dict)

    def bind(self, slots: Mapping[str, Sequence[int]]) -> BoundRules:
        """Expands the patterns over layers and experts for a spec's slots (`ModelBuilder.slots()`)."""
        shapes = {name: tuple(shape) for name, shape in slots.items()}
        table: dict[str, Rule] = {}
        ignored: set[str] = set()
        for rule in self.rules:
            for expanded in self._expand(rule):
                if all(s in shapes for s in expanded.slots):
                    table[expanded.name] = expanded
                elif expanded.slots == ("head.weight",):
                    ignored.add(expanded.name)  # tied: a copy of the token table, if it is there at all
        return BoundRules(table, shapes, self.prefix, ignored, [re.compile(p) for p in self.ignore])

    def _expand(self, rule: Rule) -> Iterable[Rule]:
        for kind in ("weight", "bias") if "*" in rule.name else ("",):
            for i in range(self.num_layers) if "{i}" in rule.name else (0,):
                for e in range(self.num_experts) if "{e}" in rule.name else (0,):

                    def fill(text: str, expert: int, i: int = i, kind: str = kind) -> str:
                        return text.replace("{i}", str(i)).replace("{e}", str(expert)).replace("*", kind)

                    if "{e}" not in rule.name and any("{e}" in s for s in rule.slots):
                        slots = tuple(fill(s, x) for x in range(self.num_experts) for s in rule.slots)
                    else:
                        slots = tuple(fill(s, e) for s in rule.slots)
                    yield Rule(fill(rule.name, e), slots, rule.cut)


@dataclass
class BoundRules:
    """Rules of one model for the slots of its spec, by full tensor name."""

    table: dict[str, Rule]
    shapes: dict[str, Shape]
    prefix: str
    ignored: set[str]
    ignore_patterns: list[re.Pattern[str]]

    def find(self, name: str) -> Rule | None:
        """The rule of a tensor, None for one to leave out. KeyError: no rule knows it."""
        rule = self.table.get(name)
        if rule is not None:
            return rule
        for other in self._names(name):
            rule = self.table.get(other)
            if rule is not None:
                return rule
            if other in self.ignored or any(p.fullmatch(other) for p in self.ignore_patterns):
                return None
        raise KeyError(name)

    def _names(self, name: str) -> tuple[str, ...]:
        if not self.prefix:
            return (name,)
        if name.startswith(self.prefix):
            return (name, name[len(self.prefix) :])
        return (name, self.prefix + name)

    def cut(self, rule: Rule, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """The tensor as (slot, part) pairs. Raises Misshapen."""
        shapes = [self.shapes[s] for s in rule.slots]
        parts = rule.cut(tensor, shapes)
        return list(zip(rule.slots, parts, strict=True))

    def sources(self, slot: str) -> list[str]:
        """Names of the tensors that could fill a slot: for messages."""
        return [name for name, rule in self.table.items() if slot in rule.slots]


_LAYER = re.compile(r"^layers\.(\d+)\.")


def load_order(rule: Rule) -> tuple[int, str]:
    """Sort key: embedding, then layer by layer, slots of one layer together; the last norm and the head at
    the end.
    """
    slot = rule.slots[0]
    match = _LAYER.match(slot)
    if match:
        return int(match.group(1)) + 1, slot
    return (0 if slot.startswith("embed.") else 1 << 30), slot
