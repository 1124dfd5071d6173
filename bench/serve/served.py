"""A server of the experiments, in a process of its own, and one request to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """seconds: from the request to its first token, and to its last."""

    first: float
    total: float
    text: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int

    @property
    def decode(self) -> float:
        return self.total - self.first


class Server:
    def __init__(self, model: str, words: Sequence[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "taco_llm", "serve", model, "--host", "127.0.0.1", "--no-page"]
        self.log = log
        self.started = time.perf_counter()
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *words], stdout=file, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 300
        while True:
            try:
                if self.get("/ready")[0] == 200:
                    break
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"a server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        self.ready_after = time.perf_counter() - self.started

    def cpu_seconds(self) -> float:
        """What its threads have computed so far; a machine that others disturb does not count."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def cache(self) -> dict[str, Any]:
        return json.loads(self.get("/v1/cache")[1])

    def reset(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/reset_prefix_cache")
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"/reset_prefix_cache: {response.status} {response.read()[:200]!r}")

    def complete(self, prompt: str | list[int], max_tokens: int, **more: Any) -> Answer:
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        begin = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {response.read()[:500]!r}")
        first, last, text, usage = 0.0, 0.0, [], {}
        while line := response.readline():
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            data = json.loads(line[6:])
            usage = data.get("usage") or usage
            for choice in data.get("choices", ()):
                first = first or now
                last = now
                text.append(choice["text"])
        connection.close()
        return Answer(
            first - begin,
            last - begin,
            "".join(text),
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"],
        )

    def kill(self) -> None:
        """As a crash would: nothing is saved or finished."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
