"""The table of architectures: docs/architectures.md and `taco_llm doctor --models`.

Names and example checkpoints are the registry's; what was verified was recorded by
tests/python/archs/device_parity.py in verified.json beside this file.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from .registry import ALIASES, ARCHITECTURES

VERIFIED = Path(__file__).with_name("verified.json")


@cache
def verified() -> dict[str, dict[str, dict[str, Any]]]:
    """device -> architecture -> {"reference", "cases", "passed", "worst"}, as recorded."""
    return json.loads(VERIFIED.read_text(encoding="utf-8")) if VERIFIED.is_file() else {}


def _result(device: str, architecture: str) -> str:
    found = verified()[device].get(architecture)
    if found is None:
        return "not run"
    shown = (
        f"{found['passed']}" if found["passed"] == found["cases"] else f"{found['passed']}/{found['cases']}"
    )
    return f"{shown} configs, {found['worst']:.0e}"


def rows() -> list[tuple[str, ...]]:
    """The table: a heading, then one row for each registered architecture by its family's name."""
    devices = list(verified())
    table = [("models", "architecture", "checkpoints, for example", "reference", *devices)]
    other = {target: name for name, target in ALIASES.items()}
    for architecture in sorted(ARCHITECTURES, key=lambda a: (ARCHITECTURES[a][2].lower(), a)):
        _, _, models, examples = ARCHITECTURES[architecture]
        names = architecture + (f", {other[architecture]}" if architecture in other else "")
        found = [run[architecture]["reference"] for run in verified().values() if architecture in run]
        results = [_result(device, architecture) for device in devices]
        table.append((models, names, ", ".join(examples.split()), found[0] if found else "", *results))
    return table


def records() -> list[dict[str, str]]:
    """The same for programs."""
    heading, *table = rows()
    return [dict(zip(heading, row, strict=True)) for row in table]


HOW = (
    "Verified with tiny random models in every way in which configs of the family differ (grouped and "
    "multi-query heads, biases, tied or not, windows, rope scaling, experts): float32 logits at every "
    "position within 1e-4 of the largest, 32 greedy tokens equal, prefill whole and in odd chunks, "
    "against transformers or, where the published code is in the checkpoints, against a plain float32 "
    "model written for it. The last columns: how many such configs passed on a device, and the largest "
    "error. The published checkpoints are examples of what loads; they were not all run."
)


def text() -> str:
    """For a terminal: an architecture a paragraph."""
    heading, *table = rows()
    out = []
    for name, architecture, examples, reference, *results in table:
        shown = "; ".join(f"{d}: {r}" for d, r in zip(heading[4:], results, strict=True))
        out.append(f"{name} ({architecture})\n  {examples}\n  against {reference or 'nothing yet'}; {shown}")
    return "\n".join([*out, "", HOW]) + "\n"


def markdown() -> str:
    """docs/architectures.md."""
    heading, *table = rows()
    out = [
        "# Architectures",
        "",
        "Made by `python scripts/architectures.py`; `taco_llm doctor --models` prints the same.",
        "",
        HOW,
        "",
        "| " + " | ".join(heading) + " |",
        "|" + "---|" * len(heading),
        *("| " + " | ".join(row) + " |" for row in table),
    ]
    return "\n".join(out) + "\n"
