"""HTTP below the API: keys, limits, malformed bodies, CORS, health, metrics. Over the fake engine."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from fake_engine import FakeEngine
from waiting import wait_until

POST = {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/generate"}
OPEN = {"/health", "/ready", "/ping", "/version", "/"}


def raw(server: Any, data: bytes) -> bytes:
    """Sends bytes, returns everything until the server closes. TimeoutError if it does not, and is silent for
    less than its usual limits (30 s) would need to make it close."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
        s.sendall(data)
        answer = b""
        while chunk := s.recv(65536):
            answer += chunk
        return answer


def body_of(method: str, path: str, body: bytes, headers: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"{headers}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# --- keys


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: Any) -> Any:
    from conftest import serving
    from fake_engine import fake_handle

    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("# comment\nfile-key\n")
    with serving(
        fake_handle(), api_key=["key-one", "key-two"], api_key_file=str(file), root_path="/p"
    ) as server:
        server.key_file = file
        yield server


def routes(server: Any) -> list[tuple[str, str]]:
    found = []
    for resource in server.app.router.resources():
        for route in resource:
            found.append((route.method, resource.canonical.replace("{model}", "fake")))
    return found


def test_every_route_needs_a_key_unless_it_is_listed_as_open(keyed: Any) -> None:
    seen = set()
    for method, path in routes(keyed):
        response = requests.request(
            method, keyed.url + path, json={} if method == "POST" else None, timeout=60
        )
        bare = path[2:] if path.startswith("/p/") else path
        seen.add(bare)
        if bare in OPEN:
            assert response.status_code != 401, (method, path)
        else:
            assert response.status_code == 401, (method, path)
    assert seen >= POST | OPEN | {"/metrics", "/v1/models", "/load"}
    assert requests.get(keyed.url + "/no/such/path", timeout=60).status_code == 401


def test_401_body_and_header(keyed: Any) -> None:
    r = requests.get(keyed.url + "/v1/models", timeout=60)
    assert r.json()["error"] == "Unauthorized" and r.json()["code"] == 401
    assert r.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["key-one", "key-two", "file-key"])
def test_each_key_opens(keyed: Any, key: str) -> None:
    r = requests.get(keyed.url + "/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=60)
    assert r.status_code == 200 and r.json()["data"][0]["id"] == "fake"


@pytest.mark.parametrize(
    "header", ["Bearer key-thre", "Bearer ", "Bearer", "key-one", "Basic key-one", "Bearer # comment", ""]
)
def test_wrong_keys(keyed: Any, header: str) -> None:
    r = requests.get(keyed.url + "/v1/models", headers={"Authorization": header}, timeout=60)
    assert r.status_code == 401


def test_key_file_is_read_again(keyed: Any) -> None:
    ask = {"Authorization": "Bearer later-key"}
    assert requests.get(keyed.url + "/v1/models", headers=ask, timeout=60).status_code == 401
    keyed.key_file.write_text("file-key\nlater-key\n")
    wait_until(lambda: requests.get(keyed.url + "/v1/models", headers=ask, timeout=60).status_code == 200)


def test_key_from_the_environment(make_fake: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-env")
    server = make_fake()
    assert requests.get(server.url + "/v1/models", timeout=60).status_code == 401
    ask = {"Authorization": "Bearer from-env"}
    assert requests.get(server.url + "/v1/models", headers=ask, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: a/health?x=\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x/health\r\nX-Forwarded-Prefix: /health\r\n",
        b"GET http://x/health/../v1/models HTTP/1.1\r\nHost: x\r\n",
        b"GET //v1/models HTTP/1.1\r\nHost: x\r\n",
        b"GET /health/../v1/models HTTP/1.1\r\nHost: x\r\n",
        b"GET /v1%2fmodels HTTP/1.1\r\nHost: x\r\n",
        b"GET /V1/models HTTP/1.1\r\nHost: x\r\n",
        b"GET /v1/models?/health HTTP/1.1\r\nHost: x\r\n",
        b"GET /v1/models;/health HTTP/1.1\r\nHost: x\r\n",
        b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n",
        b"OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: y\r\nAccess-Control-Request-Method: GET\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\n",
    ],
)
def test_no_way_around_the_keys(keyed: Any, line: bytes) -> None:
    answer = raw(keyed, line + b"Connection: close\r\n\r\n")
    assert status(answer) in (400, 401), answer[:200]
    assert b'"data"' not in answer


def test_metrics_can_be_opened(make_fake: Any) -> None:
    server = make_fake(api_key=["k"], open_metrics=True)
    assert requests.get(server.url + "/metrics", timeout=60).status_code == 200


def test_options_are_checked(make_fake: Any) -> None:
    for wrong, word in (
        ({"enable_auto_tool_choice": True}, "not built"),
        ({"lora_modules": ["a=b"]}, "not built"),
        ({"middleware": ["json.JSONDecoder"]}, "ASGI"),
        ({"middleware": ["no.such"]}, "imported"),
        ({"chat_template": "/no/such/file"}, "chat-template"),
        ({"allowed_origins": ["*"], "allow_credentials": True}, "origins"),
        ({"api_key": [" "]}, "empty"),
    ):
        with pytest.raises(ValueError, match=word):
            make_fake(**wrong)


# --- request ids, logs


@pytest.mark.parametrize("given", ["abc.DEF-1_2", "x" * 128])
def test_request_id_is_echoed(fake: Any, given: str) -> None:
    assert (
        requests.get(fake.url + "/ready", headers={"X-Request-Id": given}, timeout=60).headers["X-Request-Id"]
        == given
    )


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a/b", "é"])
def test_bad_request_id_is_replaced(fake: Any, given: str) -> None:
    headers = {"X-Request-Id": given.encode("latin-1")}
    got = requests.get(fake.url + "/ready", headers=headers, timeout=60).headers["X-Request-Id"]
    assert got != given and got.startswith("req-")


def test_log_has_neither_prompts_nor_keys_nor_forged_lines(make_fake: Any, caplog: Any) -> None:
    caplog.set_level("DEBUG")
    server = make_fake(api_key=["sesame"])
    headers = {"Authorization": "Bearer sesame"}
    ask = {"prompt": "secret words", "max_tokens": 2, "unknown": "secret too"}
    assert requests.post(server.url + "/v1/completions?key=sesame", json=ask, headers=headers, timeout=60).ok
    requests.get(server.url + "/a%0aFORGED%20line", headers=headers, timeout=60)
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("taco_llm"))
    assert "/v1/completions 200" in ours and "prompt_tokens=12" in ours
    assert "secret" not in ours and "sesame" not in ours and "\nFORGED" not in ours


# --- limits


def test_body_limit_before_buffering(fake: Any) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = raw(fake, head + b"Content-Length: 4194305\r\n\r\n")  # no body at all is sent
    assert status(answer) == 413 and b"4194304" in answer
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", fake.port), timeout=60) as s:
        s.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(200):
                s.sendall(chunk)
        except ConnectionError:
            pass
        try:
            assert status(s.recv(65536)) == 413
        except ConnectionResetError:
            pass  # closed while we were sending: fine as well


def test_a_body_just_inside_the_limit_is_read(fake: Any) -> None:
    pad = "x" * ((4 << 20) - 100)
    r = requests.post(
        fake.url + "/v1/completions", json={"prompt": "x", "max_tokens": 1, "user": pad}, timeout=60
    )
    assert r.status_code == 200


def test_header_limits(fake: Any) -> None:
    one = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-A: " + b"a" * 9000 + b"\r\n\r\n"
    assert status(raw(fake, one)) == 400
    many = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"X-A: " + b"a" * 2000 + b"\r\n"
    for i in range(5):
        many += b"X-%d: " % i + b"a" * 1800 + b"\r\n"
    assert status(raw(fake, many + b"\r\n")) in (400, 431)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "identity"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_content_type_and_encoding(fake: Any, headers: dict[str, str], code: int) -> None:
    body = b'{"prompt": "x", "max_tokens": 1}'
    assert (
        requests.post(fake.url + "/v1/completions", data=body, headers=headers, timeout=60).status_code
        == code
    )


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"null", "object"),
        (b'{"prompt": "x", "prompt": "y"}', "twice"),
        (b'{"prompt": "x", "a": {"b": 1, "b": 2}}', "twice"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN"),
        (b'{"prompt": "x", "temperature": Infinity}', "Infinity"),
        (b'{"prompt": "x", "temperature": -Infinity}', "Infinity"),
        (b'{"prompt": "x", "temperature": 1e999}', "double"),
        (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"prompt": "x", "max_tokens": 99999999999999999999999}', "between"),
        (b'{"prompt": "x", "seed": -9999999999999999999999}', "between"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": ["x", "a\\udfffb"]}', "surrogate"),
        (b'{"prompt": "x", "\\ud83d": 1}', "surrogate"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": "\xed\xa0\x80"}', "UTF-8"),
        (b'\xef\xbb\xbf{"prompt": "x"}', "JSON"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b"[" * 100000, "nested"),
        (b'{"a":' * 100000, "nested"),
        (b'{"prompt": ' + b"[" * 65 + b"]" * 65 + b"}", "nested"),
        (b'{"prompt": "x", "a": [' + b"[]," * 70000 + b"[]]}", "arrays"),
        (b'{"prompt": "x" "y"}', "JSON"),
        (b'{"prompt": "x\n"}', "JSON"),
        (b'{"prompt": "\\x"}', "JSON"),
    ],
)  # fmt: skip
def test_malformed_json(fake: Any, body: bytes, word: str) -> None:
    answer = raw(fake, body_of("POST", "/v1/completions", body))
    assert status(answer) == 400
    message = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]
    assert word in message, message


def test_good_json_that_looks_bad(fake: Any) -> None:
    for body in (
        {"prompt": "[" * 5000, "max_tokens": 1, "truncate_prompt_tokens": 5},
        {"prompt": '\\"' * 500 + "{" * 300, "max_tokens": 1, "truncate_prompt_tokens": 5},
        {"prompt": "\U0001f600 \u0000 é", "max_tokens": 1},
    ):
        r = requests.post(fake.url + "/v1/completions", json=body, timeout=60)
        assert r.status_code == 200, r.text
    ids = requests.post(fake.url + "/tokenize", json={"prompt": "\U0001f600"}, timeout=60).json()["tokens"]
    assert bytes(ids).decode() == "\U0001f600"


def test_slow_body_times_out(make_fake: Any) -> None:
    from taco_llm.server.options import Limits

    server = make_fake(limits=Limits(body_timeout=0.3, keepalive_timeout=0.5))
    half = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    half += b"Content-Length: 99\r\n\r\n{"
    assert status(raw(server, half)) == 408
    raw(server, b"GET /ready HTTP/1.1\r\nHo")  # half a header, and an idle connection, are closed too
    raw(server, b"")


def test_unknown_paths_and_methods(fake: Any) -> None:
    r = requests.get(fake.url + "/nothing", timeout=60)
    assert r.status_code == 404 and r.json()["error"]["type"] == "NotFoundError"
    r = requests.get(fake.url + "/v1/completions", timeout=60)
    assert r.status_code == 405 and "POST" in r.headers["Allow"]
    assert requests.get(fake.url + "/v1/models/fake", timeout=60).json()["id"] == "fake"
    assert requests.get(fake.url + "/v1/models/a/b", timeout=60).status_code == 404


# --- CORS


def test_no_cors_by_default(fake: Any) -> None:
    r = requests.get(fake.url + "/ready", headers={"Origin": "http://evil"}, timeout=60)
    assert not [h for h in r.headers if h.lower().startswith("access-control")]


def test_cors_for_listed_origins(make_fake: Any) -> None:
    server = make_fake(allowed_origins=["http://good"], allow_credentials=True, api_key=["k"])
    asked = {"Origin": "http://good", "Access-Control-Request-Method": "POST"}
    r = requests.options(server.url + "/v1/completions", headers=asked, timeout=60)
    assert r.status_code == 204 and r.headers["Access-Control-Allow-Origin"] == "http://good"
    assert "Authorization" in r.headers["Access-Control-Allow-Headers"]
    r = requests.get(server.url + "/v1/models", headers={"Origin": "http://good"}, timeout=60)
    assert r.status_code == 401 and r.headers["Access-Control-Allow-Origin"] == "http://good"
    r = requests.options(
        server.url + "/v1/completions", headers={**asked, "Origin": "http://evil"}, timeout=60
    )
    assert r.status_code == 401 and "Access-Control-Allow-Origin" not in r.headers


# --- health, tokens, metrics


def test_plain_routes(fake: Any) -> None:
    assert requests.get(fake.url + "/health", timeout=60).content == b""
    assert requests.get(fake.url + "/ready", timeout=60).json() == {"status": "ready"}
    assert requests.post(fake.url + "/ping", timeout=60).status_code == 200
    assert "version" in requests.get(fake.url + "/version", timeout=60).json()
    assert requests.get(fake.url + "/load", timeout=60).json() == {"server_load": 0}


def test_tokenize_and_back(fake: Any) -> None:
    r = requests.post(
        fake.url + "/tokenize", json={"prompt": "hé", "return_token_strs": True}, timeout=60
    ).json()
    assert r["count"] == 3 and r["max_model_len"] == 2048 and len(r["token_strs"]) == 3
    back = requests.post(fake.url + "/detokenize", json={"tokens": r["tokens"]}, timeout=60).json()
    assert back == {"prompt": "hé"}
    chat = requests.post(
        fake.url + "/tokenize", json={"messages": [{"role": "user", "content": "a"}]}, timeout=60
    )
    assert bytes(chat.json()["tokens"]) == b"<user>a<assistant>"
    for wrong in ({"tokens": [1000]}, {"tokens": "x"}, {"tokens": [True]}, {}):
        assert requests.post(fake.url + "/detokenize", json=wrong, timeout=60).status_code == 400


def test_engine_death(make_fake: Any) -> None:
    server = make_fake(FakeEngine(step_seconds=0.01))
    ask = {"prompt": "x", "max_tokens": 2000, "stream": True}
    with requests.post(server.url + "/v1/completions", json=ask, stream=True, timeout=60) as r:
        lines = r.iter_lines()
        next(lines)
        server.handle.core.dead = True
        rest = b"\n".join(lines)
    assert b'"error"' in rest and b"[DONE]" in rest
    for path in ("/ready", "/health", "/ping"):
        r = requests.get(server.url + path, timeout=60)
        assert r.status_code == 503 and "told to die" in r.json()["error"]["message"]
    r = requests.post(server.url + "/v1/completions", json={"prompt": "x"}, timeout=60)
    assert r.status_code == 503 and "restarted" in r.json()["error"]["message"]
    assert "engine_dead 1.0" in requests.get(server.url + "/metrics", timeout=60).text


def test_hanging_step(make_fake: Any) -> None:
    server = make_fake(hang_seconds=1000)
    server.handle.core.hanging_since = time.monotonic()
    assert requests.get(server.url + "/ready", timeout=60).status_code == 200
    server.handle.core.hanging_since -= 1001
    r = requests.get(server.url + "/ready", timeout=60)
    assert r.status_code == 503 and "step" in r.json()["error"]["message"]
    assert requests.get(server.url + "/health", timeout=60).status_code == 200


def test_full_queue(make_fake: Any) -> None:
    server = make_fake(FakeEngine(max_waiting=5000))
    r = requests.post(server.url + "/v1/completions", json={"prompt": "x"}, timeout=60)
    assert r.status_code == 429 and int(r.headers["Retry-After"]) >= 1
    server.handle.core.max_waiting = 0
    server.handle.core.refuse = RuntimeError("the queue is full")
    r = requests.post(server.url + "/v1/completions", json={"prompt": "x"}, timeout=60)
    assert r.status_code == 429


def test_engine_refusals(fake: Any) -> None:
    core = fake.handle.core
    try:
        for error, code in (
            (ValueError("no"), 400),
            (MemoryError(), 503),
            (NotImplementedError("later"), 400),
        ):
            core.refuse = error
            for stream in (False, True):
                ask = {"prompt": "x", "stream": stream}
                assert requests.post(fake.url + "/v1/completions", json=ask, timeout=60).status_code == code
    finally:
        core.refuse = None


def test_failure_inside_the_server_is_sanitised(make_fake: Any) -> None:
    server = make_fake()
    server.handle.core.refuse = KeyError("secret detail")
    r = requests.post(server.url + "/v1/completions", json={"prompt": "x"}, timeout=60)
    assert r.status_code == 500 and "secret" not in r.text
    assert r.headers["X-Request-Id"] in r.json()["error"]["message"]


METRICS = """num_requests_running num_requests_waiting num_requests_swapped gpu_cache_usage_perc
kv_cache_usage_perc cpu_cache_usage_perc num_preemptions_total prompt_tokens_total
generation_tokens_total request_success_total
time_to_first_token_seconds_bucket time_per_output_token_seconds_bucket inter_token_latency_seconds_count
e2e_request_latency_seconds_sum request_prompt_tokens_bucket request_generation_tokens_bucket
request_params_best_of_bucket request_params_n_bucket request_queue_time_seconds_count
cache_config_info""".split()


def test_metrics(make_fake: Any) -> None:
    server = make_fake()
    for stream in (True, False):
        ask = {"prompt": "abc", "max_tokens": 4, "stream": stream, "n": 2, "temperature": 1}
        assert requests.post(server.url + "/v1/completions", json=ask, timeout=60).ok
    page = requests.get(server.url + "/metrics", timeout=60).text
    values = {}
    for line in page.splitlines():
        if line and line[0] != "#":
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    names = {name.split("{")[0] for name in values}
    for prefix in ("taco:", "vllm:"):
        assert {prefix + m for m in METRICS} <= names
        label = '{model_name="fake"}'
        assert values[f"{prefix}time_to_first_token_seconds_count{label}"] == 2
        assert values[f"{prefix}inter_token_latency_seconds_count{label}"] == 12
        assert values[f"{prefix}request_generation_tokens_sum{label}"] == 16
        assert values[f"{prefix}request_prompt_tokens_sum{label}"] == 6
        assert values[f"{prefix}generation_tokens_total{label}"] == 16
        assert values[prefix + 'request_success_total{finished_reason="length",model_name="fake"}'] == 4
        assert values[f"{prefix}num_requests_running{label}"] == 0
        assert values[f"{prefix}cpu_cache_usage_perc{label}"] == 0.25
    assert values['taco:http_requests_total{route="/v1/completions",status="200"}'] == 2


def test_long_prompts_are_tokenised_in_a_thread(make_fake: Any) -> None:
    import threading

    server = make_fake()
    seen = []
    encode = server.handle.tokenizer.encode
    server.handle.tokenizer.encode = lambda *a, **k: (
        seen.append(threading.current_thread().name),
        encode(*a, **k),
    )[1]
    for length in (10, 2500):
        ask = {"prompt": "x" * length, "max_tokens": 1, "truncate_prompt_tokens": 9}
        assert requests.post(server.url + "/v1/completions", json=ask, timeout=60).ok
    assert not seen[0].startswith("taco-tokenizer") and seen[1].startswith("taco-tokenizer")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
def test_tls(make_fake: Any, tmp_path: Path) -> None:
    """Streams, errors and lost clients, over TLS as over plain sockets."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout k.pem -out c.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    engine = FakeEngine(step_seconds=0.01)
    server = make_fake(engine, ssl_keyfile=str(tmp_path / "k.pem"), ssl_certfile=str(tmp_path / "c.pem"))
    ask = {"prompt": "x", "max_tokens": 50, "stream": True}
    text = requests.post(server.url + "/v1/completions", json=ask, verify=False, timeout=60).text
    assert "".join(re.findall(r'"text":"([^"]*)"', text)) == "".join(f" w{i}" for i in range(50))
    ask["max_tokens"] = 2000
    with requests.post(server.url + "/v1/completions", json=ask, verify=False, stream=True, timeout=60) as r:
        next(r.iter_lines())
    wait_until(lambda: not engine.stats().running)
    assert engine.aborted == [engine.submitted[-1].id]  # not at its end


def test_http_1_0_stream(fake: Any) -> None:
    body = b'{"prompt": "x", "max_tokens": 3, "stream": true}'
    request = body_of("POST", "/v1/completions", body).replace(b"HTTP/1.1", b"HTTP/1.0")
    head, _, rest = raw(fake, request).partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert rest.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n")


def test_without_a_tokenizer(make_fake: Any) -> None:
    server = make_fake(handle={"tokenizer": None})
    url = server.url + "/v1/completions"
    ask = {"prompt": [1, 2], "max_tokens": 2, "logprobs": 1, "return_token_ids": True}
    choice = requests.post(url, json=ask, timeout=60).json()["choices"][0]
    assert choice["token_ids"] == [256, 257]
    assert choice["logprobs"]["tokens"] == ["token_id:256", "token_id:257"]
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/generate", {"prompt": "x"}),
    ):
        r = requests.post(server.url + path, json=body, timeout=60)
        assert r.status_code == 400 and "token ids" in r.json()["error"]["message"]


def test_pipelined_requests_and_keep_alive(fake: Any) -> None:
    one = body_of("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": 2}')
    answer = raw(fake, one.replace(b"Connection: close\r\n", b"") * 3 + body_of("GET", "/ready", b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 4 and answer.count(b" w0 w1") == 3
