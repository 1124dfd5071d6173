"""Tiny models of the architectures: checkpoints, and reference logits computed once by transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import arch_zoo  # noqa: E402
import torch  # noqa: E402


@dataclass
class Reference:
    """A saved model, a prompt with its greedy continuation, and transformers' logits at every position."""

    folder: Path
    ids: list[int]
    prompt_len: int
    logits: np.ndarray
    model: Any


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)  # tiny matrices: more threads only cost time


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """reference(name): the case of that name, made on first use."""
    made: dict[str, Reference] = {}
    root = tmp_path_factory.mktemp("archs")

    def get(name: str) -> Reference:
        if name not in made:
            case = arch_zoo.CASES[name]
            model = arch_zoo.make_model(case)
            arch_zoo.save(case, model, root / name)
            ids = arch_zoo.greedy(model, arch_zoo.prompt(), arch_zoo.NEW_TOKENS)
            logits = arch_zoo.logits(model, ids)
            made[name] = Reference(root / name, ids, arch_zoo.PROMPT, logits, model)
        return made[name]

    return get
