"""Prompts to measure with: made-up ones of a given length, or those of a file."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def random_token_ids(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts of random token ids, away from the special tokens at the vocabulary's ends."""
    draw = random.Random(seed)
    low, high = vocab_size // 10, max(vocab_size // 10 + 1, vocab_size * 9 // 10)
    return [[draw.randrange(low, high) for _ in range(length)] for _ in range(count)]


def random_texts(count: int, words: int, seed: int) -> list[str]:
    """Prompts of made-up words, about one token each."""
    draw = random.Random(seed)
    stock = (
        "time year people way day man thing woman life child world school state family student group".split()
    )
    return [" ".join(draw.choice(stock) for _ in range(words)) for _ in range(count)]


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """The prompts of a ShareGPT file, of JSON lines, of a list in JSON, or of a text file (one on a line)."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the prompts of {path}: {error}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        entries = json.loads(text)
        entries = entries if isinstance(entries, list) else [entries]
    except ValueError:
        try:
            entries = [json.loads(line) for line in lines]
        except ValueError:
            entries = lines
    prompts = [prompt for entry in entries if (prompt := _prompt_of(entry))]
    if not prompts:
        raise ValueError(
            f"{path} has no prompts: it should have text lines, or JSON with 'prompt', 'turns', 'question', "
            "'text', 'messages' or 'conversations'"
        )
    return prompts[:limit]


def _prompt_of(entry: Any) -> str | None:
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, dict):
        return None
    for name in ("prompt", "question", "text", "input"):
        if isinstance(entry.get(name), str):
            return str(entry[name])
    for name in ("turns", "messages", "conversations"):
        turns = entry.get(name)
        if isinstance(turns, list) and turns:
            first = turns[0]
            if isinstance(first, str):
                return first
            if isinstance(first, dict):
                return first.get("content") or first.get("value")
    return None


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile between the two nearest values; nan of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def cycle(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items, over and over."""
    return [items[index % len(items)] for index in range(count)]
