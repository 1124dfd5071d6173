"""Fixtures of the loading tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoint import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "checkpoint"
    path.mkdir()
    return Folder(path)
