"""Start the server with its default model, stream one chat answer over HTTP, print it and its speed, stop.

Needs nothing but the standard library and an installed taco_llm:

    python scripts/demo.py                                    starts a server of its own on a free port
    python scripts/demo.py --url http://127.0.0.1:8000        asks a server that runs already
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

PROMPT = "In two sentences: why is the sky blue?"


class DemoError(Exception):
    """What went wrong, in words for the person who ran the demo."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_command(port: int) -> list[str]:
    beside = Path(sys.executable).with_name("taco_llm")
    program = str(beside) if beside.exists() else shutil.which("taco_llm")
    if not program:
        raise DemoError("taco_llm is not installed here; run `make install` first")
    return [program, "serve", "--host", "127.0.0.1", "--port", str(port)]


def connect(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=timeout)


def wait_until_ready(url: str, server: subprocess.Popen[bytes], limit: float) -> None:
    """Returns when GET /health answers 200. DemoError: the server ended, or took longer."""
    deadline = time.monotonic() + limit
    while True:
        if server.poll() is not None:
            raise DemoError(f"the server ended with exit status {server.returncode} before it was ready")
        try:
            connection = connect(url, 2)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() > deadline:
            raise DemoError(f"the server was not ready after {limit:.0f} s")
        time.sleep(0.05)


def events(response: http.client.HTTPResponse) -> Iterator[dict]:
    """The JSON objects of a server-sent event stream, up to [DONE]. DemoError: it ended before."""
    for raw in response:
        line = raw.decode("utf-8").strip()
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        yield json.loads(data)
    raise DemoError("the stream ended without [DONE]")


def stream_chat(url: str, prompt: str, max_tokens: int, api_key: str | None) -> tuple[int, float, float]:
    """Prints one answer as it comes. Returns (tokens, seconds to the first token, seconds after it)."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = connect(url, 120)
    start = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        text = response.read().decode("utf-8", "replace")
        raise DemoError(f"the server answered {response.status}: {text}")
    first = last = 0.0
    tokens, text = 0, ""
    for event in events(response):
        if "error" in event:
            raise DemoError(f"the server broke the stream off: {event['error']}")
        for choice in event.get("choices", ()):
            piece = choice["delta"].get("content") or ""
            if piece:
                last = time.monotonic()
                first = first or last
                text += piece
                print(piece, end="", flush=True)
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
    print(flush=True)
    if not text.strip():
        raise DemoError("the answer was empty")
    if not tokens:
        raise DemoError("the stream held no usage")
    return tokens, first - start, last - first


def stop(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, as a service manager would send it. DemoError: the server did not end well within 20 s."""
    server.send_signal(signal.SIGTERM)
    try:
        status = server.wait(20)
    except subprocess.TimeoutExpired:
        raise DemoError("the server did not stop within 20 s of SIGTERM") from None
    if status not in (0, -signal.SIGTERM):
        raise DemoError(f"the server stopped with exit status {status}")


def ask(url: str, args: argparse.Namespace) -> None:
    print(f"> {args.prompt}", flush=True)
    tokens, to_first, after = stream_chat(url, args.prompt, args.max_tokens, args.api_key)
    # The first token's time is the prompt's; speed is that of the tokens after it.
    speed = f"{(tokens - 1) / after:.1f} tokens/s" if tokens > 1 and after > 0 else "one chunk"
    print(f"\n{tokens} tokens, {speed}, first token after {to_first * 1000:.0f} ms", flush=True)


def run_own_server(args: argparse.Namespace) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="taco_llm-demo-") as folder:
        log = Path(folder) / "server.log"
        start = time.monotonic()
        with log.open("wb") as sink:
            server = subprocess.Popen(
                server_command(port),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        try:
            wait_until_ready(url, server, args.start_limit)
            print(f"server ready on {url} after {time.monotonic() - start:.1f} s\n", flush=True)
            ask(url, args)
            stop(server)
        except BaseException as error:
            if server.poll() is None:
                server.kill()
                server.wait()
            if not isinstance(error, KeyboardInterrupt):
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
                print("\n--- the server's log ends so:", *lines, "---", sep="\n", file=sys.stderr)
            raise


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="ask this server instead of starting one")
    parser.add_argument("--api-key", help="its key, where it wants one")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--start-limit", type=float, default=120, help="seconds to wait for the server")
    args = parser.parse_args(argv)
    try:
        if args.url:
            ask(args.url, args)
        else:
            run_own_server(args)
    except KeyboardInterrupt:
        return 130
    except (DemoError, OSError, ValueError, KeyError, http.client.HTTPException) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
