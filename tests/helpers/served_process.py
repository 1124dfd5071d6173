"""`taco_llm serve` in a process of its own, on a port that the system chooses when it listens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from waiting import PATIENCE, wait_until


class ServedProcess:
    """Returns when the server listens. Its log is appended to a file; leaving a `with` block kills it."""

    def __init__(self, log: Path, *words: str, program: tuple[str, ...] = (), **environment: str) -> None:
        self.log = log
        known = len(self.text())
        program = program or (sys.executable, "-m", "taco_llm")
        where = () if "--uds" in words else ("--host", "127.0.0.1", "--port", "0")
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*program, "serve", *words, *where],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
            )
        try:
            self.url: str = wait_until(lambda: self._address(known), self.text)
        except BaseException:
            self.kill()
            raise

    def _address(self, known: int) -> str | None:
        running = self.process.poll() is None
        found = re.search(r"serving .* at ((?:http|unix):\S+)\n", self.text()[known:])
        assert running, self.text()
        return found[1] if found else None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, when it has ended."""
        return self.process.wait(PATIENCE)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal that ends the server, and waits for the end."""
        if self.process.poll() is None:
            self.send(number)
        self.wait()

    def __enter__(self) -> ServedProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
