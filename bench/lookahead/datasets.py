"""Prompts of the experiments: Spec-Bench, GSM8K and HumanEval, as conversations of one turn.

Each file is optional; a task's requests are divided into two disjoint halves, "warm" (what a cache may have
seen before) and "test", by their place in the file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPEC_BENCH = "specbench_question.jsonl"
GSM8K = "gsm8k_test.jsonl"
HUMAN_EVAL = "HumanEval.jsonl.gz"

# Categories of Spec-Bench that are tasks of their own; all others are MT-bench's ("chat").
SPEC_BENCH_TASKS = {
    "translation": "translation",
    "summarization": "summarization",
    "qa": "qa",
    "math_reasoning": "math",
    "rag": "rag",
}


@dataclass(frozen=True)
class Question:
    task: str
    name: str  # unique
    half: str  # "warm" or "test"
    text: str  # the user's message


def read_lines(path: Path) -> Iterator[Any]:
    """The JSON values of a .jsonl or .jsonl.gz file."""
    opened: Any = (
        gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    )
    with opened as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _questions(folder: Path, gsm8k: int) -> Iterator[tuple[str, str, str]]:
    if (folder / SPEC_BENCH).exists():
        for row in read_lines(folder / SPEC_BENCH):
            yield (
                SPEC_BENCH_TASKS.get(row["category"], "chat"),
                f"spec-bench/{row['question_id']}",
                row["turns"][0],
            )
    if (folder / GSM8K).exists():
        for number, row in enumerate(read_lines(folder / GSM8K)):
            if number >= gsm8k:
                break
            yield "gsm8k", f"gsm8k/{number}", row["question"]
    if (folder / HUMAN_EVAL).exists():
        for row in read_lines(folder / HUMAN_EVAL):
            code = f"```python\n{row['prompt']}```"
            text = f"Complete this Python function. Answer with the whole function.\n\n{code}"
            yield "code", row["task_id"], text


def questions(folder: Path, *, gsm8k: int = 300, per_task: int = 0) -> list[Question]:
    """All questions, tasks taking turns, so that a run cut short has something of each.

    gsm8k: how many of GSM8K's; per_task: at most so many of each task, half warm and half test; 0: all.
    """
    tasks: dict[str, list[Question]] = {}
    for task, name, text in _questions(folder, gsm8k):
        rows = tasks.setdefault(task, [])
        if not per_task or len(rows) < per_task:
            rows.append(Question(task, name, ("warm", "test")[len(rows) % 2], text))
    longest = max((len(rows) for rows in tasks.values()), default=0)
    return [rows[i] for i in range(longest) for rows in tasks.values() if i < len(rows)]
