"""The server over the real core with the null model, whose answer is a function of prompt and position:
streams that got mixed up, lost a token or kept a block would show."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests
from conftest import HAVE_CORE, Server, serving
from served_process import ServedProcess
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(not HAVE_CORE, reason="taco_llm._core is not built")


def null_handle(step_seconds: float = 0.0, **args: Any) -> Any:
    from taco_llm.engine import build
    from taco_llm.engine_args import EngineArgs

    os.environ["TACO_NULL_STEP_SECONDS"] = str(step_seconds)
    try:
        return build(EngineArgs(model="null", **args))
    finally:
        del os.environ["TACO_NULL_STEP_SECONDS"]


@pytest.fixture(scope="module")
def null() -> Iterator[Server]:
    with serving(null_handle(0.0005, max_num_seqs=64)) as server:
        yield server


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def wait_until_idle(server: Server) -> None:
    """Until neither the engine nor the server has anything left of any request."""

    def left() -> list[int]:
        stats, state = server.handle.core.stats(), server.state
        held = stats.num_blocks - stats.free_blocks
        return [held, stats.running, stats.waiting, len(state.hub), len(state.jobs), state.requests_running]

    wait_until(lambda: not any(left()), left)


def test_streams_are_not_mixed_up(null: Server) -> None:
    prompts = [f"prompt number {i}" for i in range(64)]
    alone = [
        client(null).completions.create(model="null", prompt=p, max_tokens=40).choices[0].text
        for p in prompts
    ]
    assert len(set(alone)) == 64

    async def together() -> list[str]:
        c = openai.AsyncOpenAI(base_url=null.url + "/v1", api_key="none", max_retries=0, timeout=60)

        async def one(prompt: str, chat: bool) -> str:
            parts = []
            async for chunk in await c.completions.create(
                model="null", prompt=prompt, max_tokens=40, stream=True
            ):
                parts.append(chunk.choices[0].text)
            return "".join(parts)

        return await asyncio.gather(*(one(p, i % 2 == 0) for i, p in enumerate(prompts)))

    assert asyncio.run(together()) == alone
    wait_until_idle(null)


def test_chat_stream_equals_whole(null: Server) -> None:
    ask: dict[str, Any] = {
        "model": "null",
        "messages": [{"role": "user", "content": "é \U0001f600"}],
        "max_tokens": 50,
    }
    whole = client(null).chat.completions.create(**ask)
    stream = list(
        client(null).chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        == whole.choices[0].message.content
    )
    assert stream[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 50


def test_stop_string_and_token(null: Server) -> None:
    c = client(null)
    text = c.completions.create(model="null", prompt="stop me", max_tokens=30).choices[0].text
    words = text.split()
    stop = f" {words[10]}"
    cut = c.completions.create(model="null", prompt="stop me", max_tokens=30, stop=stop).choices[0]
    assert cut.finish_reason == "stop" and cut.text == text[: text.index(stop)]
    assert cut.model_extra["stop_reason"] == stop
    parts = list(c.completions.create(model="null", prompt="stop me", max_tokens=30, stop=stop, stream=True))
    assert (
        "".join(p.choices[0].text for p in parts) == cut.text and parts[-1].choices[0].finish_reason == "stop"
    )
    ids = c.completions.create(
        model="null", prompt="stop me", max_tokens=30, extra_body={"return_token_ids": True}
    )
    token = ids.choices[0].model_extra["token_ids"][5]
    by_id = c.completions.create(
        model="null", prompt="stop me", max_tokens=30, extra_body={"stop_token_ids": [token]}
    )
    assert by_id.choices[0].finish_reason == "stop" and by_id.usage.completion_tokens <= 6
    assert by_id.choices[0].model_extra["stop_reason"] == token


def test_logprobs_and_echo(null: Server) -> None:
    got = (
        client(null)
        .completions.create(model="null", prompt="abc", max_tokens=3, logprobs=2, echo=True)
        .choices[0]
    )
    lp = got.logprobs
    assert lp.tokens[:3] == ["a", "b", "c"] and len(lp.tokens) == 6 and lp.token_logprobs[0] is None
    assert "".join(lp.tokens) == got.text
    assert [got.text[o : o + len(t)] for o, t in zip(lp.text_offset, lp.tokens, strict=True)] == lp.tokens
    assert all(len(t) >= 2 for t in lp.top_logprobs[1:])
    chat = client(null).chat.completions.create(
        model="null", messages=[{"role": "user", "content": "x"}], max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert [bytes(t.bytes).decode() for t in content] == [t.token for t in content] and len(content) == 3
    assert "".join(t.token for t in content) == chat.choices[0].message.content


def test_n_best_of_and_seed(null: Server) -> None:
    c = client(null)
    r = c.completions.create(model="null", prompt="x", max_tokens=5, n=2, best_of=4, temperature=1.0, seed=3)
    assert [ch.index for ch in r.choices] == [0, 1] and all(ch.text for ch in r.choices)
    wait_until_idle(null)


def test_errors_from_the_core_are_400(null: Server) -> None:
    for ask in (
        {"prompt": "x", "bad_words": ["\u0000"], "max_tokens": 2},
        {"prompt": [4095], "max_tokens": 2},
        {"prompt": [4096], "max_tokens": 2},
        {"prompt": "x", "allowed_token_ids": [4096]},
        {"prompt": "x", "logit_bias": {"4096": 1}},
        {"prompt": "x" * 5000},
        {"prompt": "x", "max_tokens": 4096},
    ):
        assert requests.post(null.url + "/v1/completions", json=ask, timeout=60).status_code in (200, 400), (
            ask
        )


def test_priority_is_refused_where_it_has_no_effect(null: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="--scheduling-policy"):
        client(null).completions.create(model="null", prompt="x", extra_body={"priority": 1})
    with serving(null_handle(scheduling_policy="priority")) as server:
        client(server).completions.create(model="null", prompt="x", extra_body={"priority": 1})


def test_legacy_stream_of_the_old_client(null: Server) -> None:
    ask = {"prompt": "Hello!", "stream": True, "max_tokens": 20}
    with requests.post(null.url + "/generate", json=ask, stream=True, timeout=60) as response:
        seen = [
            json.loads(chunk.decode())["text"][0]
            for chunk in response.iter_lines(chunk_size=8192, decode_unicode=False, delimiter=b"\0")
            if chunk
        ]
    assert all(b.startswith(a) for a, b in zip(seen, seen[1:], strict=False))
    whole = (
        client(null)
        .completions.create(model="null", prompt="Hello!", max_tokens=20, echo=True)
        .choices[0]
        .text
    )
    assert seen[-1] == whole


# --- clients that go away


def ask_bytes(path: str, **body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def cut(connection: socket.socket, reset: bool) -> None:
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_cut_connections_leave_nothing_behind() -> None:
    """1,000 connections cut at random moments: mid-request, queued, prefilling, streaming; FIN and RST.
    None of their requests would end by itself within a minute, and none may end but by being aborted."""
    rng = random.Random(7)
    settings = {"max_num_seqs": 32, "max_num_batched_tokens": 64, "max_model_len": 1 << 17}
    with serving(null_handle(0.001, **settings)) as server:
        paths = ("/v1/completions", "/v1/chat/completions", "/generate", "/v1/completions")

        def one(whole: bool = False) -> None:
            path = rng.choice(paths)
            body: dict[str, Any] = {
                "max_tokens": 100_000,
                "stream": rng.random() < 0.7,
                "n": rng.choice((1, 1, 3)),
            }
            body["temperature"] = 1.0
            if "chat" in path:
                body["messages"] = [{"role": "user", "content": "x" * rng.randrange(1, 400)}]
            else:
                body["prompt"] = "x" * rng.randrange(1, 400)
            if path == "/v1/completions" and rng.random() < 0.3:
                body["best_of"] = body["n"] + 1
            data = ask_bytes(path, **body)
            with_body = rng.random()
            connection = socket.create_connection(("127.0.0.1", server.port))
            connection.sendall(data if whole or with_body > 0.1 else data[: rng.randrange(len(data))])
            open_ones.append((time.monotonic() + rng.choice((0, 0.001, 0.02, 0.1)), connection))

        open_ones: list[tuple[float, socket.socket]] = []
        for _ in range(1000):
            one()
            now = time.monotonic()
            for entry in [e for e in open_ones if e[0] <= now] if len(open_ones) < 100 else open_ones[:]:
                open_ones.remove(entry)
                cut(entry[1], rng.random() < 0.5)
        for _, connection in open_ones:
            cut(connection, rng.random() < 0.5)
        # A connection that came last is answered last: nothing of the others is still to come.
        answer = client(server).completions.create(model="null", prompt="x", max_tokens=2)
        assert answer.usage.completion_tokens == 2
        wait_until_idle(server)
        # How many of those the server had read when they were cut is up to the machine. These it has read.
        aborted, open_ones[:] = server.handle.core.stats().finished_abort, []
        for _ in range(100):
            one(whole=True)
        wait_until(lambda: len(server.state.jobs) == 100, lambda: len(server.state.jobs))
        for _, connection in open_ones:
            cut(connection, rng.random() < 0.5)
        wait_until_idle(server)
        stats = server.handle.core.stats()
        assert stats.finished_abort == aborted + 100 and stats.finished_length == 1


def test_client_that_does_not_read_is_dropped() -> None:
    from taco_llm.server.options import Limits

    limits = Limits(soft_buffer_bytes=1 << 12, hard_buffer_bytes=1 << 14, stalled_reader_timeout=1.0)
    with serving(null_handle(max_model_len=1 << 20, max_num_seqs=4), limits=limits) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        ask = ask_bytes("/v1/completions", prompt="x", max_tokens=1 << 19, stream=True, ignore_eos=True)
        connection.sendall(ask)
        wait_until(lambda: server.handle.core.stats().finished_abort == 1, "the stream still runs")
        wait_until_idle(server)
        connection.close()


def test_slow_reader_gets_everything() -> None:
    """Text that was coalesced while the client lagged behind is all there, and in order."""
    from taco_llm.server.options import Limits

    limits = Limits(soft_buffer_bytes=1 << 10, hard_buffer_bytes=1 << 24)
    with serving(null_handle(0.0002, max_num_seqs=4), limits=limits) as server:
        whole = client(server).completions.create(model="null", prompt="lag", max_tokens=4000).choices[0].text
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(ask_bytes("/v1/completions", prompt="lag", max_tokens=4000, stream=True))
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            part = connection.recv(3000)
            assert part, "the server closed"
            data += part
            time.sleep(0.0005)
        connection.close()
    frames = [json.loads(f) for f in re.findall(rb"data: (\{.*?\})\n\n", data.partition(b"\r\n\r\n")[2])]
    assert "".join(f["choices"][0]["text"] for f in frames) == whole


# --- fuzz


def mutations(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Bodies near a good one: fields of wrong types and sizes, and then bytes flipped, cut and repeated."""
    odd: list[Any] = [
        None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, 5e-324, "", "x",
        "é\U0001f600", "\u0000", "x" * 3000, [], [[]], [None], [1, "a"], [[1, 2]], [-1], [4096], ["a"] * 70,
        {}, {"a": 1}, {"1": 5}, {"type": "text"}, {"type": "json_object"}, {"include_usage": True},
        [{"role": "user", "content": "x"}],
        [{"role": "user"}], [{"type": "text", "text": "x"}], "null", "auto", "none", "\u2028", [[[[[]]]]],
    ]  # fmt: skip
    fields = (
        "model prompt messages max_tokens max_completion_tokens min_tokens n best_of stream stream_options "
        "temperature top_p top_k min_p seed stop stop_token_ids ignore_eos logprobs top_logprobs echo suffix "
        "prompt_logprobs presence_penalty frequency_penalty repetition_penalty logit_bias bad_words priority "
        "allowed_token_ids return_token_ids truncate_prompt_tokens no_repeat_ngram_size tools tool_choice "
        "response_format guided_json documents chat_template chat_template_kwargs add_generation_prompt "
        "continue_final_message add_special_tokens skip_special_tokens include_stop_str_in_output modalities "
        "tokens user prompt_token_ids use_beam_search"
    ).split()
    paths = ("/v1/completions", "/v1/chat/completions", "/generate", "/tokenize", "/detokenize")
    while True:
        path = rng.choice(paths)
        body: dict[str, Any] = {"max_tokens": 3}
        if "chat" in path:
            body["messages"] = [{"role": "user", "content": "hello"}]
        elif path == "/detokenize":
            body["tokens"] = [1, 2]
        else:
            body["prompt"] = "hello"
        for _ in range(rng.randrange(0, 4)):
            body[rng.choice(fields)] = rng.choice(odd)
        data = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode()
        if rng.random() < 0.4:
            raw = bytearray(data)
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(raw) or 1)
                kind = rng.randrange(5) if len(raw) > 8 else 2
                if kind == 0:
                    raw[at] = rng.randrange(256)
                elif kind == 1:
                    del raw[at : at + rng.randrange(1, 5)]
                elif kind == 2:
                    raw[at:at] = rng.choice(
                        [b"NaN", b"\\ud800", b"[", b"{", b'"', b"\xff", b"1e999", b"\0", b"9" * 40]
                    )
                elif kind == 3:
                    raw[at:at] = raw[at : at + 20]
                else:
                    raw = raw[: max(1, at)]
            data = bytes(raw)
        yield path, data


def test_fuzzed_bodies(null: Server) -> None:
    """3,000 mutated bodies: each is answered, none by a 5xx, and the engine lives."""
    codes: list[int] = []  # several threads append

    def work(seed: int) -> None:
        session = requests.Session()
        source = mutations(random.Random(seed))
        for _ in range(750):
            path, data = next(source)
            r = session.post(
                null.url + path, data=data, headers={"Content-Type": "application/json"}, timeout=60
            )
            codes.append(r.status_code)
            if r.status_code >= 500 or (r.status_code == 200 and b'"code":5' in r.content):
                failures.append((path, data, r.text))
            if r.status_code >= 400:
                assert r.json()["error"]["message"]

    failures: list[Any] = []
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not failures, failures[:3]
    assert len(codes) == 3000 and codes.count(200) > 300 and codes.count(400) > 300
    wait_until_idle(null)
    assert (
        client(null).completions.create(model="null", prompt="x", max_tokens=2).usage.completion_tokens == 2
    )


# --- a process of its own: signals


def start(tmp_path: Any, *flags: str, step: float = 0.01) -> ServedProcess:
    return ServedProcess(tmp_path / "log", "null", *flags, TACO_NULL_STEP_SECONDS=str(step))


def stream(server: ServedProcess, max_tokens: int) -> requests.Response:
    ask = {"prompt": "x", "max_tokens": max_tokens, "stream": True}
    return requests.post(server.url + "/v1/completions", json=ask, stream=True, timeout=60)


def test_sigterm_lets_what_runs_finish(tmp_path: Any) -> None:
    """Though it takes longer than the two seconds that closing the connections would leave it."""
    with start(tmp_path, step=0.02) as server:
        with stream(server, 200) as running:
            lines = running.iter_lines()
            next(lines)
            server.send(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == b"data: [DONE]" and b'"length"' in rest[-2]
        assert server.wait() == 0


def test_a_server_that_drains_takes_nothing_new(tmp_path: Any) -> None:
    with start(tmp_path, "--shutdown-timeout", "1000", step=0.1) as server:
        with stream(server, 4000) as running:
            lines = running.iter_lines()
            next(lines)
            server.send(signal.SIGTERM)
            wait_until(lambda: requests.get(server.url + "/ready", timeout=60).status_code == 503)
            assert requests.get(server.url + "/health", timeout=60).status_code == 200
            r = requests.post(server.url + "/v1/completions", json={"prompt": "x"}, timeout=60)
            assert r.status_code == 503 and "Retry-After" in r.headers
        assert server.wait() == 0  # the last client has gone: there is nothing to wait for


def test_sigterm_gives_up_after_the_timeout(tmp_path: Any) -> None:
    with start(tmp_path, "--shutdown-timeout", "0.3", step=0.1) as server:
        with stream(server, 4000) as running:
            lines = running.iter_lines()
            next(lines)
            server.send(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert b"shutting down" in rest[-2] and rest[-1] == b"data: [DONE]"
        assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_idle(tmp_path: Any, number: int) -> None:
    with start(tmp_path) as server:
        server.send(number)
        assert server.wait() == 0
        assert "Traceback" not in server.text() and "leaked" not in server.text()


def test_unix_socket(tmp_path: Any) -> None:
    path = tmp_path / "s.sock"
    with start(tmp_path, "--uds", str(path)) as server:
        assert server.url == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(path))
            s.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert s.recv(100).startswith(b"HTTP/1.1 200")
        assert path.stat().st_mode & 0o777 == 0o600
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    assert not path.exists()


def test_port_in_use(null: Server, tmp_path: Any) -> None:
    command = [sys.executable, "-m", "taco_llm", "serve", "null", "--host", "127.0.0.1", "--port"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(null.port)], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode != 0 and "choose another --port" in done.stderr
