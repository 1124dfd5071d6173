"""The README's Python examples run as they stand there.

Needs the embedded default model and the openai package (both installed by `make test`).
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from served_process import ServedProcess
from taco_llm import default_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
pytestmark = pytest.mark.skipif(default_model.find() is None, reason="the default model is not installed")
SMALL_CACHE = {"TACO_CPU_KVCACHE_SPACE": "0.5"}
ENVIRONMENT = {**os.environ, **SMALL_CACHE}


def example(word: str) -> str:
    found = [code for code in EXAMPLES if word in code]
    assert len(found) == 1, f"one example with {word!r} expected"
    return found[0]


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=folder, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_offline(tmp_path: Path) -> None:
    lines = run(example("from taco_llm import LLM"), tmp_path).splitlines()
    assert lines[0].startswith("The capital of France is -> ") and "Paris" in lines[0]
    assert any(line.startswith("2 + 2 = -> ") for line in lines)


def test_embedding(tmp_path: Path) -> None:
    lines = run(example("_core.ModelExecutor"), tmp_path).splitlines()
    assert "The capital of France is ... ' Paris'" in lines
    assert len([line for line in lines if line.startswith("Water boils at ... ")]) > 1


def test_openai_client(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    program = (str(Path(sys.executable).with_name("taco_llm")),)
    with ServedProcess(tmp_path / "log", program=program, **SMALL_CACHE) as server:
        code = example("from openai import OpenAI").replace("http://127.0.0.1:8000", server.url)
        assert run(code, tmp_path).strip()
        server.send(signal.SIGTERM)
        assert server.wait() == 0, server.text()
