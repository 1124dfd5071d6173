"""The whole server with speculation, over a tiny random model in float32: every answer is the one without."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import tiny_model
from conftest import HAVE_CORE, Server, serving
from waiting import wait_until

pytestmark = pytest.mark.skipif(not HAVE_CORE, reason="taco_llm._core is not built")

PROMPTS = [
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "abcabcabcabcabcabcabcabc",
    "x",
    "0123456789" * 8,
    "To be, or not to be, that is the question",
    "import os\nimport sys\nimport os\nimport sys\n",
]
ASKS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "max_tokens": 1},
    {"temperature": 0, "max_tokens": 17, "logprobs": 3},
    {"temperature": 0.7, "seed": 5},
    {"temperature": 0.4, "seed": 7, "n": 3},
    {"temperature": 1.0, "top_p": 0.5, "seed": 9, "logprobs": 2},
    {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 0.3, "seed": 1, "min_tokens": 30, "frequency_penalty": 0.2},
    {"temperature": 0, "echo": True},
    {"temperature": 0, "ignore_eos": True, "no_repeat_ngram_size": 4},
]
DRAFTING: dict[str, dict[str, Any]] = {
    "ngram": {"speculative_model": "[ngram]", "num_speculative_tokens": 5, "ngram_prompt_lookup_max": 3},
    "lookahead": {},
    "raw": {"cache_mode": 0},
    "turbo": {"cache_mode": 1, "token_paths_top_k": 4},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("tiny"))


@contextmanager
def served(checkpoint: Path, **settings: Any) -> Iterator[Server]:
    from taco_llm.engine import build
    from taco_llm.engine_args import EngineArgs

    args = EngineArgs(
        model=str(checkpoint), dtype="float32", kv_cache_dtype="auto", device="cpu", max_num_seqs=16,
        num_gpu_blocks_override=512, cpu_decoding_memory_utilization=0.01, threads=1, **settings,
    )  # fmt: skip
    handle = build(args)
    try:
        with serving(handle) as server:
            yield server
    finally:
        handle.shutdown()


def config_folder(folder: Path, **keys: Any) -> dict[str, Any]:
    """Settings under which every draft is verified, whether or not this machine's clock finds it worth it."""
    (folder / "lookahead_cache_config.json").write_text(json.dumps({"cost_model": False, **keys}))
    return {"lookahead_cache_config_dir": str(folder)}


def answers(server: Server) -> list[Any]:
    """To every prompt and kind of request, all at a time."""

    def ask(case: tuple[str, dict[str, Any]]) -> Any:
        prompt, settings = case
        body = {"prompt": prompt, "max_tokens": 48, **settings}
        answer = requests.post(server.url + "/v1/completions", json=body, timeout=60).json()
        texts = [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]
        return texts, answer["usage"], [choice["logprobs"] for choice in answer["choices"]]

    cases = [(prompt, settings) for prompt in PROMPTS for settings in ASKS]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        return list(pool.map(ask, cases))


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    """The same texts, ends and counts. A drafted token may have stood elsewhere in the cache when it was
    checked, where sums have another order: logprobs are the same but for rounding."""
    assert [answer[:2] for answer in found] == [answer[:2] for answer in wanted]
    for (*_, ours), (*_, theirs) in zip(found, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if b is None:
                assert a is None
                continue
            assert a["tokens"] == b["tokens"] and a["text_offset"] == b["text_offset"]
            assert a["token_logprobs"] == pytest.approx(b["token_logprobs"], abs=1e-4)
            for top, wanted_top in zip(a["top_logprobs"], b["top_logprobs"], strict=True):
                assert top == pytest.approx(wanted_top, abs=1e-4)


@pytest.fixture(scope="module")
def wanted(checkpoint: Path) -> list[Any]:
    with served(checkpoint) as server:
        return answers(server)


@pytest.mark.parametrize("how", DRAFTING)
def test_answers_are_those_without(checkpoint: Path, wanted: list[Any], how: str, tmp_path: Path) -> None:
    settings = DRAFTING[how] if how == "ngram" else config_folder(tmp_path, **DRAFTING[how])
    with served(checkpoint, **settings) as server:
        for _ in range(2):  # the second time the cache has seen it all
            assert_same(answers(server), wanted)
        view = requests.get(server.url + "/speculation", timeout=60).json()
        assert view["method"] == ("ngram" if how == "ngram" else "lookahead")
        if how != "ngram":  # whose budget this machine's clock decides
            assert view["accepted_tokens"] > 1000, "nothing was checked"
        assert view["tokens_per_step"] >= 1
        stats = server.handle.core.stats()
        assert stats.free_blocks == stats.num_blocks


def test_a_stream_has_the_same_text(checkpoint: Path, wanted: list[Any], tmp_path: Path) -> None:
    with served(checkpoint, **config_folder(tmp_path)) as server:
        for prompt, ([(whole, _)], usage, _) in zip(PROMPTS, wanted[:: len(ASKS)], strict=True):
            body = {"prompt": prompt, "max_tokens": 48, "temperature": 0, "stream": True,
                    "stream_options": {"include_usage": True}}  # fmt: skip
            text, counted = "", None
            with requests.post(
                server.url + "/v1/completions", json=body, stream=True, timeout=60
            ) as response:
                for line in response.iter_lines():
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        counted = event.get("usage") or counted
                        text += "".join(c["text"] for c in event["choices"])
            assert text == whole and counted == usage


def test_a_stop_string_inside_an_accepted_run(checkpoint: Path, wanted: list[Any], tmp_path: Path) -> None:
    """Stops that lie at every place of the text: the answer ends there, whatever was accepted beyond."""
    ((full, _),), *_ = wanted[0]
    stops = [full[at : at + 2] for at in range(4, len(full) - 1) if full[at : at + 2].isascii()]
    assert len(stops) > 5
    with served(checkpoint, **config_folder(tmp_path)) as server:
        for stop in stops:
            body = {"prompt": PROMPTS[0], "max_tokens": 48, "temperature": 0, "stop": [stop]}
            answer = requests.post(server.url + "/v1/completions", json=body, timeout=60).json()
            assert answer["choices"][0]["text"] == full[: full.index(stop)]
            assert answer["choices"][0]["finish_reason"] == "stop"


def test_figures_of_a_request(checkpoint: Path, tmp_path: Path) -> None:
    from taco_llm import LLM, SamplingParams

    with LLM(str(checkpoint), dtype="float32", device="cpu", threads=1, num_gpu_blocks_override=512,
             cpu_decoding_memory_utilization=0.01, **config_folder(tmp_path)) as llm:  # fmt: skip
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, n=1)
        for _ in range(3):
            (output,) = llm.generate([PROMPTS[1]], params, use_tqdm=False)
        m = output.metrics
        counts = m.spec_token_acceptance_counts
        # The first token comes with the prompt; each further step gives one and what it accepted.
        assert counts[0] + sum(counts[1:]) == 60 - 1
        assert m.num_accepted_tokens == sum(counts[1:]) > 20 and m.num_hit_iterations == counts[1]
        assert m.num_rejected_tokens == m.num_drafted_tokens - m.num_accepted_tokens >= 0
        stats = llm.handle.core.stats().speculation
        assert stats.cache_bytes > 0 and stats.draft_seconds > 0
    with LLM(str(checkpoint), dtype="float32", device="cpu", num_gpu_blocks_override=512) as llm:
        (output,) = llm.generate(["a"], SamplingParams(max_tokens=4), use_tqdm=False)
        assert (
            output.metrics.num_drafted_tokens is None and output.metrics.spec_token_acceptance_counts is None
        )


def test_the_debug_line(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with served(checkpoint, **config_folder(tmp_path, is_debug=True, log_interval=20)) as server:
        body = {"prompt": PROMPTS[1], "max_tokens": 100, "temperature": 0, "ignore_eos": True}
        for _ in range(4):
            requests.post(server.url + "/v1/completions", json=body, timeout=60)
    lines = [
        r.getMessage()
        for r in caplog.records
        if r.filename == "lookahead.py" and "num_iters" in r.getMessage()
    ]
    assert lines
    for line in lines:
        assert re.fullmatch(
            r"num_iters: \d+\.\d{4}, hit_iters:\d+\.\d{4}, hit_len: \d+\.\d{4}, invalid_len: \d+\.\d{4}, "
            r"hit_rate: [01]\.\d{4}, global_average_hit_len: \d+\.\d{4}, valid_average_hit_len: \d+\.\d{4}, "
            r"hit_valid_rate: [01]\.\d{4}",
            line,
        )


def test_warm_up_makes_the_first_request_hit(checkpoint: Path, tmp_path: Path) -> None:
    from taco_llm import LLM, SamplingParams

    settings = dict(dtype="float32", device="cpu", num_gpu_blocks_override=512, threads=1,
                    cpu_decoding_memory_utilization=0.01)  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    prompt = {"prompt_token_ids": list(PROMPTS[4].encode())}
    cold = tmp_path / "cold"
    cold.mkdir()
    with LLM(str(checkpoint), **settings, **config_folder(cold)) as llm:
        (before,) = llm.generate([prompt], params, use_tqdm=False)
    answer = before.outputs[0].token_ids
    texts = [{"prompt": prompt["prompt_token_ids"], "output": list(answer)}]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    with LLM(str(checkpoint), **settings, **config_folder(tmp_path, warmup_file="texts.json")) as llm:
        (after,) = llm.generate([prompt], params, use_tqdm=False)
    assert after.outputs[0].token_ids == answer
    assert after.metrics.num_accepted_tokens > before.metrics.num_accepted_tokens
    assert after.metrics.spec_token_acceptance_counts[0] < before.metrics.spec_token_acceptance_counts[0]


def test_typical_acceptance_takes_more_and_leaves_greedy_alone(
    checkpoint: Path, wanted: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"prompt": PROMPTS[3], "max_tokens": 200, "temperature": 0.9, "ignore_eos": True}
    rates = []
    for method in ("rejection_sampler", "typical_acceptance_sampler"):
        settings = config_folder(tmp_path) | {"spec_decoding_acceptance_method": method}
        with served(checkpoint, **settings) as server:
            for seed in range(6):
                requests.post(server.url + "/v1/completions", json={**body, "seed": seed}, timeout=60)
            rates.append(requests.get(server.url + "/speculation", timeout=60).json()["acceptance_rate"])
            if method.startswith("typical"):
                greedy = {"prompt": PROMPTS[0], "max_tokens": 48, "temperature": 0}
                answer = requests.post(server.url + "/v1/completions", json=greedy, timeout=60).json()
                assert answer["choices"][0]["text"] == wanted[0][0][0][0]
    assert rates[1] > rates[0]
    assert caplog.text.count("lossy") == 1


def test_tenants_learn_nothing_from_each_other(checkpoint: Path, tmp_path: Path) -> None:
    """A prompt that somebody else has asked before is as new as one that nobody has."""
    from taco_llm.engine import build
    from taco_llm.engine_args import EngineArgs

    args = EngineArgs(model=str(checkpoint), dtype="float32", device="cpu", num_gpu_blocks_override=512,
                      cpu_decoding_memory_utilization=0.01, **config_folder(tmp_path))  # fmt: skip
    handle = build(args)
    try:
        with serving(handle, api_key=["one", "two"]) as server:

            def accepted(key: str, **fields: Any) -> int:
                before = handle.core.stats().speculation.accepted
                body = {
                    "prompt": PROMPTS[4],
                    "max_tokens": 40,
                    "temperature": 0,
                    "ignore_eos": True,
                    **fields,
                }
                headers = {"Authorization": f"Bearer {key}"}
                answer = requests.post(server.url + "/v1/completions", json=body, headers=headers, timeout=60)
                assert answer.ok
                return handle.core.stats().speculation.accepted - before

            # How often drafts like these are right is learnt from all; what they say is not.
            cold, warm = accepted("one"), accepted("one")
            assert warm > cold + 15
            assert abs(accepted("two") - cold) < 5
            assert abs(accepted("one", cache_salt="mine") - cold) < 5
            assert abs(accepted("two", cache_salt="mine") - cold) < 5
            assert accepted("two") > cold + 15 and accepted("one", cache_salt="mine") > cold + 15
    finally:
        handle.shutdown()


def test_a_restart_is_no_cold_start(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "drafts.bin"
    settings = config_folder(tmp_path) | {"lookahead_cache_save": str(file)}
    body = {"prompt": PROMPTS[4], "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    accepted = []
    for _ in range(2):
        with served(checkpoint, **settings) as server:
            requests.post(server.url + "/v1/completions", json=body, timeout=60)
            accepted.append(requests.get(server.url + "/speculation", timeout=60).json()["accepted_tokens"])
        assert file.stat().st_size > 0
    assert "does not exist yet" in caplog.text and "saved" in caplog.text and "entries from" in caplog.text
    assert accepted[1] > accepted[0]


def test_it_is_saved_while_the_server_works(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "drafts.bin"
    settings = config_folder(tmp_path) | {
        "lookahead_cache_save": str(file),
        "lookahead_cache_save_interval": 0.001,
    }
    body = {"prompt": PROMPTS[4], "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    with served(checkpoint, **settings) as server:

        def saved() -> bool:
            requests.post(server.url + "/v1/completions", json=body, timeout=60)
            return file.exists()

        wait_until(saved, "nothing was saved")
    assert not list(tmp_path.glob("drafts.bin?*")), "something was left beside it"


def test_a_file_of_another_model_is_put_aside(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "drafts.bin"
    for content in (b"", b"TACOLACH" + bytes(100), b"x" * 5000):
        file.write_bytes(content)
        with served(checkpoint, **config_folder(tmp_path), lookahead_cache_save=str(file)) as server:
            body = {"prompt": "a", "max_tokens": 20, "ignore_eos": True}
            assert requests.post(server.url + "/v1/completions", json=body, timeout=60).ok
        assert (tmp_path / "drafts.bin.unusable").read_bytes() == content
        assert caplog.text.count("starts empty") == 1 and file.exists()
        caplog.clear()
