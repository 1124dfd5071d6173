"""Which known architecture a checkpoint's tensors look like, for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import Config
from .registry import ARCHITECTURES, find
from .rules import WeightRules


@dataclass(frozen=True)
class Match:
    """kinds: how many different tensor names the checkpoint has, the numbers in them aside; known: how many
    the architecture has; unknown: those of the checkpoint that it does not have."""

    architecture: str
    kinds: int
    known: int
    unknown: list[str]

    def __str__(self) -> str:
        shared = self.kinds - len(self.unknown)
        shown = f"{self.architecture} ({shared} of {self.kinds} kinds of tensors)"
        if not self.unknown:
            return shown
        names = ", ".join(repr(name) for name in self.unknown[:5]) + (
            ", ..." if len(self.unknown) > 5 else ""
        )
        return f"{shown}, which does not have {names}"


def kind_of(name: str) -> str:
    """A tensor's name with N for the numbers in it: the same for all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name)


def _kinds_of(rules: WeightRules) -> set[str]:
    out = set()
    for rule in rules.rules:
        name = rule.name.replace("{i}", "N").replace("{e}", "N")
        for kind in ("weight", "bias") if "*" in name else ("",):
            full = name.replace("*", kind)
            out |= {full, full.removeprefix(rules.prefix)}
    return out


def _rules(architecture: str, config: Mapping[str, Any]) -> WeightRules:
    build = find(architecture)
    try:
        return build(Config(config), None)[1]
    except ValueError:  # the other family's fields mean something else there
        return build(Config({}), None)[1]


def match(architecture: str, config: Mapping[str, Any], names: Iterable[str]) -> Match:
    """What of the names an architecture has, whatever the config says of biases, layers and the like."""
    rules = _rules(architecture, config)
    known = _kinds_of(rules)
    ignored = [re.compile(pattern) for pattern in rules.ignore]
    kinds = sorted({kind_of(name) for name in names})
    unknown = [
        kind
        for kind in kinds
        if kind not in known
        and rules.prefix + kind not in known
        and not any(p.fullmatch(kind.replace(".N.", ".0.")) for p in ignored)
    ]
    return Match(architecture, len(kinds), len(known), unknown)


def nearest_by_tensors(config: Mapping[str, Any], names: Iterable[str]) -> Match | None:
    """The architecture that has most of the names; None where none has half of them. Among equals the one
    with the fewest other names, so a plain family before one with more variants; Llama, whose names are many
    others' too, before those."""
    names = list(names)
    matches = (match(architecture, config, names) for architecture in sorted(ARCHITECTURES))
    best = min(matches, key=lambda m: (len(m.unknown), m.known, m.architecture != "LlamaForCausalLM"))
    return best if names and 2 * len(best.unknown) <= best.kinds else None
