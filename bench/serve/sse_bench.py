"""CPU time of the HTTP server per streamed token, with the null model as engine.

    python bench/serve/sse_bench.py [--streams 256] [--tokens 512] [--step 0.005] [--uvloop] [--route chat]

Starts `taco_llm serve null` in a process of its own, opens N streams from this process over raw sockets, and
counts the server's user + system time (/proc, all its threads: event loop, engine thread, kernel sends)
between the first and the last token. With --step 0 the engine runs flat out, so that several tokens of a
stream may share a frame; with --step s every token is a frame, as with a real model of that speed, as long as
the machine keeps up. bare_send_us is what one write to such a socket costs a plain loop on the same machine:
the floor, and a measure of how busy the machine is. The goal is under 10 us per token at 256 streams.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_server(args: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "taco_llm", "serve", "null", "--host", "127.0.0.1", "--port", "0"]
    command += ["--max-num-seqs", str(args.streams), "--disable-log-requests"]
    command += ["--uvloop"] if args.uvloop else []
    environment = {**os.environ, "TACO_NULL_STEP_SECONDS": str(args.step)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return server, int(found[1])
    raise SystemExit("the server did not start")


def request_bytes(args: argparse.Namespace) -> bytes:
    body: dict[str, object] = {
        "max_tokens": args.tokens,
        "ignore_eos": True,
        "stream": True,
        "temperature": 0,
    }
    if args.route == "chat":
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "Say something."}]
    else:
        path, body["prompt"] = "/v1/completions", "Say something."
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def bare_send_us(streams: int, rounds: int = 60) -> float:
    """CPU time of one os.write of a frame's size to each of many loopback sockets that somebody reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=streams) as listener:
        child = os.fork()
        if child == 0:
            selector = selectors.DefaultSelector()
            for _ in range(streams):
                selector.register(socket.create_connection(listener.getsockname()), selectors.EVENT_READ)
            left = streams
            while left:
                for key, _ in selector.select():
                    if not os.read(key.fd, 1 << 18):
                        selector.unregister(key.fd)
                        left -= 1
            os._exit(0)
        sockets = [listener.accept()[0] for _ in range(streams)]
    started, frame = time.process_time(), b"x" * 230
    for _ in range(rounds):
        for connection in sockets:
            os.write(connection.fileno(), frame)
        time.sleep(0.01)
    seconds = time.process_time() - started
    for connection in sockets:
        connection.close()
    os.waitpid(child, 0)
    return seconds / rounds / streams * 1e6


def run(args: argparse.Namespace) -> dict[str, object]:
    server, port = start_server(args)
    try:
        selector = selectors.DefaultSelector()
        request, tails = request_bytes(args), {}
        for _ in range(args.streams):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(request)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
            tails[connection] = b""
        frames = received = 0
        first = started_cpu = 0.0
        skipped = 0
        while tails:
            for key, _ in selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = connection.recv(1 << 18)
                received += len(data)
                frames += data.count(b"data: {")
                tails[connection] = (tails[connection] + data)[-64:]
                if not data or tails[connection].endswith(b"0\r\n\r\n"):
                    assert b"[DONE]" in tails[connection], tails[connection]
                    selector.unregister(connection)
                    connection.close()
                    del tails[connection]
            if not first and frames >= args.streams:  # all are under way, more or less
                first, started_cpu, skipped = time.perf_counter(), cpu_seconds(server.pid), frames
        seconds, cpu = time.perf_counter() - first, cpu_seconds(server.pid) - started_cpu
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
    tokens = args.streams * args.tokens - skipped
    return {
        "route": args.route,
        "streams": args.streams,
        "step_ms": args.step * 1e3,
        "loop": "uvloop" if args.uvloop else "asyncio",
        "tokens": tokens,
        "frames_per_token": round((frames - skipped) / tokens, 3),
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds),
        "server_cpu_s": round(cpu, 2),
        "bare_send_us": round(bare_send_us(args.streams), 2),
        "us_cpu_per_token": round(cpu / tokens * 1e6, 2),
        "exit_status": server.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--step", type=float, default=0.005, help="seconds of an engine step")
    parser.add_argument("--route", choices=("chat", "completions"), default="chat")
    parser.add_argument("--uvloop", action="store_true")
    print(json.dumps(run(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
