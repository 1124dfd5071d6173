"""Prompts that share prefixes: BIG-bench Hard's few-shot prompts, and conversations that go on.

Without the data's archive a small stand-in of our own is made up.
"""

from __future__ import annotations

import json
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """One shared prefix, and questions that are asked after it."""

    name: str
    prefix: str
    questions: list[str]


def few_shot(archive: Path | None, questions: int) -> list[Task]:
    """The tasks of bbh_tasks_and_cot_prompts.tar.gz, each with so many questions; None: made up."""
    if archive is None:
        return [_made_up(number, questions) for number in range(4)]
    tasks = []
    with tarfile.open(archive) as tar:
        for name in sorted(tar.getnames()):
            if not name.startswith("cot-prompts/") or not name.endswith(".txt"):
                continue
            task = Path(name).stem
            prefix = _text(tar, name)
            if "-----" in prefix:  # a line for the data's users stands above the prompt
                prefix = prefix.split("-----", 1)[1]
            examples: list[dict[str, Any]] = json.loads(_text(tar, f"bbh/{task}.json"))["examples"]
            asked = [f"\n\nQ: {e['input']}\nA: Let's think step by step.\n" for e in examples[:questions]]
            tasks.append(Task(task, prefix.strip(), asked))
    return tasks


def _text(tar: tarfile.TarFile, name: str) -> str:
    file = tar.extractfile(name)
    assert file is not None, name
    return file.read().decode()


def _made_up(number: int, questions: int) -> Task:
    """Sums of words, with examples."""
    rng = random.Random(number)
    words = "apples pears plums figs dates limes melons grapes cherries peaches".split()

    def question() -> tuple[str, int]:
        counts = [(rng.randint(1, 9), rng.choice(words)) for _ in range(4)]
        return ", ".join(f"{n} {w}" for n, w in counts), sum(n for n, _ in counts)

    shots = [
        f"Q: How many fruits are {text}?\nA: There are {total}."
        for text, total in (question() for _ in range(20))
    ]
    asked = [f"\n\nQ: How many fruits are {question()[0]}?\nA:" for _ in range(questions)]
    return Task(f"fruits-{number}", "\n\n".join(shots), asked)
