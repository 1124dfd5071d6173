"""Recorded streams: reading, dividing, and telling those that loop."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import datasets

LOOP_GRAM, LOOP_TIMES = 20, 3


@dataclass(frozen=True)
class Stream:
    task: str
    name: str
    half: str
    prompt: list[int]
    output: list[int]
    looping: bool


def loops(output: Sequence[int]) -> bool:
    """A 20-gram occurs more than 3 times: the model repeats itself, which any drafter guesses."""
    grams = Counter(tuple(output[i : i + LOOP_GRAM]) for i in range(max(0, len(output) - LOOP_GRAM + 1)))
    return max(grams.values(), default=0) > LOOP_TIMES


def read(paths: Sequence[Path]) -> list[Stream]:
    """Streams of at least two tokens: the first comes with the prompt's step, and is never drafted.

    A file is record_streams.py's, or one of SpecDecode-Bench's simulator (`data/*/combined_*.jsonl`: prompt
    and generated ids of Llama-3.1-8B-Instruct), whose requests are divided in halves by turns.
    """
    found: list[Stream] = []
    for path in paths:
        for number, row in enumerate(datasets.read_lines(path)):
            if "generated_token_ids" in row:
                task = path.name.removeprefix("combined_").partition(".")[0]
                row = {
                    "task": task,
                    "name": f"{task}/{row['id']}",
                    "half": ("warm", "test")[number % 2],
                    "prompt": row["prompt_token_ids"],
                    "output": row["generated_token_ids"],
                }
            prompt, output = [int(t) for t in row["prompt"]], [int(t) for t in row["output"]]
            if len(output) >= 2:
                found.append(
                    Stream(row["task"], str(row["name"]), row["half"], prompt, output, loops(output))
                )
    return found


def warm_half(rows: Sequence[Stream]) -> list[Stream]:
    """The "warm" half, without what the "test" half asks as well (Spec-Bench has questions of GSM8K's)."""
    test = {tuple(row.prompt) for row in rows if row.half == "test"}
    return [row for row in rows if row.half == "warm" and tuple(row.prompt) not in test]


def tasks_of(rows: Sequence[Stream]) -> list[str]:
    return list(dict.fromkeys(row.task for row in rows))


def bootstrap(
    count: int, statistic: Callable[[Sequence[int]], float], times: int = 1000, seed: int = 1
) -> tuple[float, float, float]:
    """(value, low, high): a statistic of the indices 0 .. count - 1 and its 95 % interval over requests."""
    value = statistic(range(count))
    draw = random.Random(seed)
    drawn = sorted(statistic(draw.choices(range(count), k=count)) for _ in range(times))
    return value, drawn[int(0.025 * times)], drawn[min(times - 1, int(0.975 * times))]


def mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
