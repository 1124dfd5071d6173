"""The two OpenAI routes over the fake engine, with the official client and with plain HTTP."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import requests


def client(server: Any, **kw: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60, **kw)


def post(server: Any, path: str, body: Any, **kw: Any) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=60, **kw)


def events(response: requests.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = [p for p in response.text.split("\n\n") if p and not p.startswith(":")]
    assert all(p.startswith("data: ") for p in parts)
    assert parts[-1] == "data: [DONE]"
    return [json.loads(p[6:]) for p in parts[:-1]]


WORDS = [f" w{i}" for i in range(100)]


def text(n: int) -> str:
    return "".join(WORDS[:n])


def test_completion(fake: Any) -> None:
    r = client(fake).completions.create(model="fake", prompt="hello", max_tokens=4)
    assert r.object == "text_completion" and r.id.startswith("cmpl-")
    assert r.choices[0].text == text(4)
    assert r.choices[0].finish_reason == "length"
    assert (r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.total_tokens) == (5, 4, 9)


def test_completion_defaults_to_16_tokens_and_needs_no_model(fake: Any) -> None:
    body = post(fake, "/v1/completions", {"prompt": "x"}).json()
    assert body["usage"]["completion_tokens"] == 16 and body["model"] == "fake"


def test_completion_stream(fake: Any) -> None:
    r = post(fake, "/v1/completions", {"prompt": "hello", "max_tokens": 5, "stream": True})
    got = events(r)
    assert r.headers["X-Accel-Buffering"] == "no"
    assert "".join(e["choices"][0]["text"] for e in got) == text(5)
    assert [e["choices"][0]["finish_reason"] for e in got] == [None] * 4 + ["length"]
    assert "stop_reason" in got[-1]["choices"][0]
    assert len({e["id"] for e in got}) == 1
    assert all("usage" not in e for e in got)


@pytest.mark.parametrize("prompt", [["ab", "cde"], [[97, 98], [99, 100, 101]]])
def test_batch(fake: Any, prompt: Any) -> None:
    body = post(fake, "/v1/completions", {"prompt": prompt, "max_tokens": 3, "n": 2}).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert all(c["text"] == text(3) for c in body["choices"])
    assert body["usage"]["prompt_tokens"] == 5 and body["usage"]["completion_tokens"] == 12
    got = events(post(fake, "/v1/completions", {"prompt": prompt, "max_tokens": 3, "n": 2, "stream": True}))
    for index in range(4):
        mine = [c for e in got for c in e["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in mine) == text(3) and mine[-1]["finish_reason"] == "length"


def test_token_id_prompt(fake: Any) -> None:
    post(fake, "/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 1})
    assert fake.handle.core.submitted[-1].prompt == [1, 2, 3]


def test_stream_usage(fake: Any) -> None:
    body = {"prompt": "abc", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    got = events(post(fake, "/v1/completions", body))
    assert all(e["usage"] is None for e in got[:-1])
    assert got[-1]["choices"] == [] and got[-1]["usage"]["total_tokens"] == 6
    body["stream_options"]["continuous_usage_stats"] = True
    got = events(post(fake, "/v1/completions", body))
    assert [e["usage"]["completion_tokens"] for e in got] == [1, 2, 3, 3]


def test_chat_usage_counts_all_choices(fake: Any) -> None:
    got = list(
        client(fake).chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi"}], max_tokens=3, n=2, stream=True,
            stream_options={"include_usage": True}, temperature=1,
        )
    )  # fmt: skip
    assert got[-1].usage.completion_tokens == 6


def test_chat(fake: Any) -> None:
    r = client(fake).chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=4
    )
    assert r.object == "chat.completion" and r.choices[0].message.content == text(4)
    assert r.choices[0].message.role == "assistant"
    sent = fake.handle.core.submitted[-1]
    assert bytes(sent.prompt) == b"<user>hi<assistant>"
    assert sent.params.temperature == pytest.approx(0.7)  # no generation_config


def test_chat_stream(fake: Any) -> None:
    r = post(
        fake,
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True},
    )
    got = events(r)
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert got[0]["object"] == "chat.completion.chunk"
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in got) == text(4)
    assert got[-1]["choices"][0]["finish_reason"] == "length"
    assert got[-1]["choices"][0]["stop_reason"] is None


def test_chat_default_length_is_the_rest_of_the_context(make_fake: Any) -> None:
    server = make_fake(handle={"max_model_len": 60})
    r = client(server).chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
    assert r.usage.total_tokens == 60


def test_generation_config_gives_defaults(make_fake: Any) -> None:
    server = make_fake(
        handle={"generation_config": {"temperature": 0.2, "top_k": 0, "top_p": 0.8, "eos": "x"}}
    )
    post(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    params = server.handle.core.submitted[-1].params
    assert (
        params.temperature == pytest.approx(0.2) and params.top_k == -1 and params.top_p == pytest.approx(0.8)
    )
    post(server, "/v1/completions", {"prompt": "x", "temperature": 0.9, "max_tokens": 1})
    assert server.handle.core.submitted[-1].params.temperature == pytest.approx(0.9)


def test_chat_content_parts_and_template_fields(fake: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}],
        "max_tokens": 1,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert post(fake, "/v1/chat/completions", body).status_code == 200
    assert (
        bytes(fake.handle.core.submitted[-1].prompt)
        == b"<system>s<user>a\nb[enable_thinking=False]<assistant>"
    )
    body = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "An"}],
        "max_tokens": 2,
        "continue_final_message": True,
        "echo": True,
    }
    answer = post(fake, "/v1/chat/completions", body).json()
    assert bytes(fake.handle.core.submitted[-1].prompt) == b"<user>q<assistant>An"
    assert answer["choices"][0]["message"]["content"] == "An" + text(2)


def test_sampling_fields_reach_the_engine(fake: Any) -> None:
    body = {
        "prompt": "x", "max_tokens": 2, "min_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "min_p": 0.1, "seed": -1, "stop": "END", "stop_token_ids": [5], "ignore_eos": True,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3,
        "logit_bias": {"7": -1.5},
        "include_stop_str_in_output": True, "skip_special_tokens": False, "priority": 3,
    }  # fmt: skip
    assert post(fake, "/v1/completions", body).status_code == 200
    sent = fake.handle.core.submitted[-1]
    p = sent.params
    assert sent.priority == 3
    assert (p.max_tokens, p.min_tokens, p.top_k, p.seed) == (2, 1, 7, 2**64 - 1)
    assert (p.temperature, p.top_p, p.min_p) == pytest.approx((0.5, 0.9, 0.1))
    assert (p.presence_penalty, p.frequency_penalty, p.repetition_penalty) == pytest.approx((0.5, -0.5, 1.1))
    assert list(p.stop) == ["END"] and list(p.stop_token_ids) == [5] and p.ignore_eos
    assert p.include_stop_str_in_output and not p.skip_special_tokens and p.no_repeat_ngram_size == 3
    assert [tuple(b) for b in p.logit_bias] == [(7, -1.5)]


def test_best_of_returns_the_likeliest(fake: Any) -> None:
    body = {"prompt": "x", "max_tokens": 2, "n": 1, "best_of": 3}
    answer = post(fake, "/v1/completions", body).json()
    assert len(answer["choices"]) == 1 and answer["choices"][0]["text"] == text(2)
    assert answer["usage"]["completion_tokens"] == 6
    got = events(post(fake, "/v1/completions", {**body, "stream": True}))
    assert len(got) == 1 and got[0]["choices"][0]["text"] == text(2)
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "best_of": 2, "stream": True}
    got = events(post(fake, "/v1/chat/completions", chat))
    assert got[0]["choices"][0]["delta"]["role"] == "assistant"
    assert (
        got[1]["choices"][0]["delta"]["content"] == text(2)
        and got[1]["choices"][0]["finish_reason"] == "length"
    )


def test_echo(fake: Any) -> None:
    body = {"prompt": "hello", "max_tokens": 2, "echo": True}
    assert post(fake, "/v1/completions", body).json()["choices"][0]["text"] == "hello" + text(2)
    got = events(post(fake, "/v1/completions", {**body, "stream": True}))
    assert got[0]["choices"][0]["text"] == "hello"
    assert "".join(e["choices"][0]["text"] for e in got) == "hello" + text(2)
    only = post(fake, "/v1/completions", {**body, "max_tokens": 0}).json()
    assert only["choices"][0]["text"] == "hello" and only["usage"]["completion_tokens"] == 0


def test_completion_logprobs(fake: Any) -> None:
    body = {"prompt": "ab", "max_tokens": 2, "logprobs": 2}
    lp = post(fake, "/v1/completions", body).json()["choices"][0]["logprobs"]
    assert lp["tokens"] == [" w0", " w1"] and lp["token_logprobs"] == [-0.5, -0.5]
    assert lp["text_offset"] == [0, 3]
    assert lp["top_logprobs"][0] == {" w44": -1.0, " w45": -2.0, " w0": -0.5}
    streamed = events(post(fake, "/v1/completions", {**body, "stream": True}))
    assert [e["choices"][0]["logprobs"]["text_offset"] for e in streamed] == [[0], [3]]
    lp = post(fake, "/v1/completions", {**body, "echo": True}).json()["choices"][0]["logprobs"]
    assert lp["tokens"] == ["a", "b", " w0", " w1"] and lp["token_logprobs"] == [None, -2.0, -0.5, -0.5]
    assert lp["text_offset"] == [0, 1, 2, 5] and lp["top_logprobs"][0] is None
    streamed = events(post(fake, "/v1/completions", {**body, "echo": True, "stream": True}))
    joined = [o for e in streamed for o in e["choices"][0]["logprobs"]["text_offset"]]
    assert joined == [0, 1, 2, 5]
    assert "".join(e["choices"][0]["text"] for e in streamed) == "ab" + text(2)


def test_chat_logprobs(fake: Any) -> None:
    r = client(fake).chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=2, logprobs=True, top_logprobs=2
    )
    content = r.choices[0].logprobs.content
    assert [t.token for t in content] == [" w0", " w1"] and content[0].bytes == list(b" w0")
    assert [t.logprob for t in content[0].top_logprobs] == [-1.0, -2.0]
    stream = client(fake).chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=2, logprobs=True, stream=True
    )
    tokens = [t.token for c in stream for ch in c.choices if ch.logprobs for t in ch.logprobs.content]
    assert tokens == [" w0", " w1"]


def test_prompt_logprobs_and_token_ids(fake: Any) -> None:
    body = {"prompt": "ab", "max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": True}
    choice = post(fake, "/v1/completions", body).json()["choices"][0]
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1]["98"] == {"logprob": -2.0, "rank": 1, "decoded_token": "b"}
    assert choice["token_ids"] == [256, 257] and choice["prompt_token_ids"] == [97, 98]
    got = events(
        post(
            fake,
            "/v1/completions",
            {"prompt": "ab", "max_tokens": 2, "return_token_ids": True, "stream": True},
        )
    )
    assert [e["choices"][0]["token_ids"] for e in got] == [[256], [257]]
    assert got[0]["choices"][0]["prompt_token_ids"] == [97, 98]


def test_tokens_as_token_ids(make_fake: Any) -> None:
    server = make_fake(return_tokens_as_token_ids=True)
    body = {"prompt": "ab", "max_tokens": 1, "logprobs": 0}
    lp = post(server, "/v1/completions", body).json()["choices"][0]["logprobs"]
    assert lp["tokens"] == ["token_id:256"]


def test_truncate_prompt_tokens(fake: Any) -> None:
    post(fake, "/v1/completions", {"prompt": "abcdef", "max_tokens": 1, "truncate_prompt_tokens": 2})
    assert bytes(fake.handle.core.submitted[-1].prompt) == b"ef"


def test_ping_before_the_first_token(make_fake: Any) -> None:
    server = make_fake(ping_seconds=0.05)
    ask = {"prompt": "#silent", "stream": True}
    with requests.post(server.url + "/v1/completions", json=ask, stream=True, timeout=60) as r:
        assert next(r.iter_content(None)) == b": ping\n\n"


def test_engine_error_before_and_in_a_stream(fake: Any) -> None:
    r = post(fake, "/v1/completions", {"prompt": "#fail", "max_tokens": 9})
    assert r.status_code == 500 and "NaN in the logits" in r.json()["error"]["message"]
    got = events(post(fake, "/v1/completions", {"prompt": "#fail", "max_tokens": 9, "stream": True}))
    assert got[-1]["error"]["code"] == 500 and got[0]["choices"][0]["text"] == " w0"
    with pytest.raises(openai.APIError, match="NaN"):
        list(client(fake).completions.create(model="fake", prompt="#fail", max_tokens=9, stream=True))


def test_errors_as_the_client_sees_them(fake: Any) -> None:
    c = client(fake)
    with pytest.raises(openai.NotFoundError) as e:
        c.completions.create(model="other", prompt="x")
    assert e.value.body["message"] == "The model `other` does not exist; this server has `fake`."
    with pytest.raises(openai.BadRequestError) as e2:
        c.completions.create(model="fake", prompt="x", temperature=-1)
    assert e2.value.param == "temperature"
    flat = post(fake, "/v1/completions", {"prompt": "x", "n": 17}).json()
    assert flat["object"] == "error" and flat["code"] == 400 and flat["type"] == "BadRequestError"
    assert flat["message"] == flat["error"]["message"] and "16" in flat["message"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"guided_json": {}}, "Guided"),
        ({"guided_regex": "a"}, "Guided"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"use_beam_search": True}, "Beam"),
        ({"prompt_embeds": "x"}, "embed"),
        ({"n": 17}, "16"),
        ({"best_of": 99}, "16"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"logprobs": 21}, "20"),
        ({"prompt_logprobs": 21}, "20"),
        ({"stop": ["x"] * 17}, "16"),
        ({"stop": [""]}, "empty"),
        ({"stop": [1]}, "string"),
        ({"logit_bias": {"1000": 1}}, "999"),
        ({"logit_bias": {"-1": 1}}, "999"),
        ({"logit_bias": {str(i): 0 for i in range(1025)}}, "1024"),
        ({"stop_token_ids": [1000]}, "999"),
        ({"allowed_token_ids": [-1]}, "999"),
        ({"prompt": [1000]}, "999"),
        ({"prompt": ["x"] * 65}, "64"),
        ({"prompt": []}, "empty"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": ["x", [1]]}, None),
        ({"prompt": ["x", 1]}, "throughout"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "missing"),
        ({"prompt": "x" * 3000}, "2048"),
        ({"max_tokens": 3000}, "2048"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "integer"),
        ({"max_tokens": True}, "integer"),
        ({"temperature": "hot"}, "number"),
        ({"top_p": 0}, "top_p"),
        ({"stream": "yes"}, "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream"),
        ({"stream": True, "prompt_logprobs": 1}, "streamed"),
        ({"truncate_prompt_tokens": 0}, "truncate"),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_refusals_say_what_to_change(fake: Any, change: dict[str, Any], word: str | None) -> None:
    r = post(fake, "/v1/completions", {"prompt": "x", "max_tokens": 2, **change})
    if word is None:  # a mixed list of strings and ids is fine
        assert r.status_code == 200
        return
    assert r.status_code == 400, r.text
    assert word in r.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tools": [{"type": "function"}]}, "Tool"),
        ({"tool_choice": "auto"}, "Tool"),
        ({"messages": []}, "empty"),
        ({"messages": "hi"}, "array"),
        ({"messages": [{"role": "user"}]}, "missing"),
        ({"messages": [{"role": 1, "content": "x"}]}, "role"),
        ({"messages": [{"role": "raise", "content": "x"}]}, "alternate"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "text",
        ),
        ({"chat_template": "{{ 1 }}"}, "operator"),
        ({"chat_template_kwargs": {"tokenize": True}}, "enable_thinking"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "20"),
        ({"continue_final_message": True}, "assistant"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"documents": [1]}, "documents"),
        ({"modalities": ["audio"]}, "text"),
    ],
)
def test_chat_refusals(fake: Any, change: dict[str, Any], word: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **change}
    r = post(fake, "/v1/chat/completions", body)
    assert r.status_code == 400, r.text
    assert word in r.json()["error"]["message"]


def test_unknown_fields_are_ignored_with_a_warning(fake: Any, caplog: Any) -> None:
    r = post(fake, "/v1/completions", {"prompt": "x", "max_tokens": 1, "wibble": 1, "user": "me"})
    assert r.status_code == 200
    assert "'wibble'" in caplog.text and "'user'" not in caplog.text


def test_request_template_where_the_operator_allows_it(make_fake: Any) -> None:
    server = make_fake(allow_request_chat_template=True)
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "chat_template": "{{ 1 }}"}
    assert post(server, "/v1/chat/completions", body).status_code == 200


def test_legacy_generate(fake: Any) -> None:
    assert post(fake, "/generate", {"prompt": "Hi", "max_tokens": 2}).json() == {"text": ["Hi" + text(2)]}
    r = post(fake, "/generate", {"prompt": "Hi", "max_tokens": 3, "stream": True, "n": 2, "temperature": 1})
    steps = [json.loads(part)["text"] for part in r.content.split(b"\0") if part]
    assert steps[0][0] == "Hi w0" and steps[-1] == ["Hi" + text(3)] * 2
    assert post(fake, "/generate", {"prompt": 3}).status_code == 400
    ids = post(fake, "/generate", {"prompt_token_ids": [72, 105], "max_tokens": 1}).json()
    assert ids == {"text": ["Hi w0"]}
