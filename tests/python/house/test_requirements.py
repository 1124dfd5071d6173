"""scripts/requirements.py reads pyproject.toml; torch is pinned for the tests and nobody else."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def requirements(name: str) -> list[str]:
    command = [sys.executable, str(ROOT / "scripts/requirements.py"), name]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_build() -> None:
    assert any(line.startswith("scikit-build-core") for line in requirements("build"))


def test_torch_is_pinned_for_the_tests() -> None:
    assert [line for line in requirements("test") if line.startswith("torch")] == ["torch==2.13.0"]


def test_unknown_extra_fails() -> None:
    command = [sys.executable, str(ROOT / "scripts/requirements.py"), "absent"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0
