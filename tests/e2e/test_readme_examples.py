"""The README's Python examples run as they stand there.

Needs the embedded default model and the openai package (both installed by `make test`).
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from taco_llm import default_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
pytestmark = pytest.mark.skipif(default_model.find() is None, reason="the default model is not installed")
ENVIRONMENT = {**os.environ, "TACO_CPU_KVCACHE_SPACE": "0.5"}


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).with_name("taco_llm"))
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        code = example("from openai import OpenAI").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        assert run(code, tmp_path).strip()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, log.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
