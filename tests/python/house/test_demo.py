"""scripts/demo.py against small servers of our own: what it prints, and that it fails when it should.

Needs nothing but the standard library.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/demo.py"


def delta(text: str) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


USAGE = {"choices": [], "usage": {"completion_tokens": 3}}


class Server(ThreadingHTTPServer):
    events: list[dict]
    done = True
    status = 200
    requests: list[dict]
    headers: list[dict]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.headers.append(dict(self.headers))
        self.send_response(self.server.status)
        self.end_headers()
        if self.server.status != 200:
            self.wfile.write(b'{"error": {"message": "no such thing"}}')
            return
        for event in self.server.events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if self.server.done:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.events, server.requests, server.headers = [], [], []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def demo(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    command = [sys.executable, str(SCRIPT), "--url", url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_prints_the_answer_and_its_speed(server: Server) -> None:
    server.events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]},
                     delta("Blue "), delta("light "), delta("scatters."), USAGE]  # fmt: skip
    done = demo(server, "--prompt", "Why?", "--api-key", "secret")
    assert done.returncode == 0, done.stderr
    assert "> Why?\nBlue light scatters.\n" in done.stdout
    assert "3 tokens" in done.stdout and "tokens/s" in done.stdout
    request = server.requests[0]
    assert request["messages"] == [{"role": "user", "content": "Why?"}]
    assert request["stream"] is True and request["stream_options"] == {"include_usage": True}
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("events", "ends", "complaint"),
    [
        ([delta("Blue")], False, "without [DONE]"),
        ([delta("Blue"), {"error": {"message": "engine died"}}], True, "engine died"),
        ([USAGE], True, "the answer was empty"),
        ([delta("Blue")], True, "no usage"),
    ],
)
def test_broken_streams_fail(server: Server, events: list[dict], ends: bool, complaint: str) -> None:
    server.events, server.done = events, ends
    done = demo(server)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_an_error_answer_is_shown(server: Server) -> None:
    server.status = 400
    done = demo(server)
    assert done.returncode == 1
    assert "answered 400" in done.stderr and "no such thing" in done.stderr


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    program = tmp_path / "taco_llm"
    program.write_text("#!/bin/sh\necho 'no model at all' >&2\nexit 3\n")
    program.chmod(0o755)
    # demo.py takes the program beside the interpreter: a link to this one stands beside the fake.
    (tmp_path / "python").symlink_to(sys.executable)
    done = subprocess.run([str(tmp_path / "python"), str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no model at all" in done.stderr
    assert "exit status 3" in done.stderr
