"""The prefix cache, from flags to answers, over tiny random models in float32: every answer is the one
without it, and what was cached is known to the token."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import tiny_model
from conftest import HAVE_CORE, Server, serving
from served_process import ServedProcess
from waiting import wait_until

pytestmark = pytest.mark.skipif(not HAVE_CORE, reason="taco_llm._core is not built")

if HAVE_CORE:
    from taco_llm import LLM, SamplingParams

WORDS = (
    "apple bread cloud dream eagle flame grape house ivory jewel knife lemon mango night ocean pearl".split()
)
SMALL = {
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 512,
}
OFFLOAD = {
    "enable_prefix_caching": True,
    "enable_prefix_cache_offload": True,
    "cpu_prefill_memory_utilization": 0.01,
}


def text(seed: int, length: int) -> str:
    """So many bytes, each a token. Texts of seeds that are less than 90 apart have no beginning in common."""
    state, parts = seed * 2654435761 % 2**32, [f"{chr(33 + seed % 90)}{seed}:"]
    while sum(map(len, parts)) < length:
        state = (1103515245 * state + 12345) % 2**31
        parts.append(WORDS[state >> 16 & 15] + " ")
    return "".join(parts)[:length]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: Any) -> Path:
    """Computing is much slower than loading, as in real models: else loads would not be worth it."""
    sizes = {"hidden_size": 128, "intermediate_size": 2048, "num_hidden_layers": 4}
    return tiny_model.write(tmp_path_factory.mktemp("heavy"), scale=0.2, **sizes)


@contextmanager
def model(checkpoint: Path, **settings: Any) -> Iterator[LLM]:
    with LLM(str(checkpoint), **SMALL | settings) as llm:
        yield llm


def ask(llm: LLM, prompts: Any, **params: Any) -> list[tuple[list[int], int]]:
    """(tokens, cached tokens of the prompt) of each answer."""
    wanted = SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True} | params)
    results = llm.generate(prompts, wanted, use_tqdm=False)
    return [(list(r.outputs[0].token_ids), r.num_cached_tokens) for r in results]


def tokens(answers: list[tuple[list[int], int]]) -> list[list[int]]:
    return [ids for ids, _ in answers]


def cached(answers: list[tuple[list[int], int]]) -> list[int]:
    return [count for _, count in answers]


class Naive:
    """What a cache that keeps everything would find."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.known: list[list[int]] = []

    def ask(self, prompt: list[int], answer: list[int]) -> int:
        """The tokens it spares: all but the prompt's last can be. The answer's last was never computed."""
        found = max((len(os.path.commonprefix([prompt[:-1], one])) for one in self.known), default=0)
        whole = (prompt + answer)[:-1]
        self.known.append(whole[: len(whole) // self.block * self.block])
        return found


def settled(core: Any) -> Any:
    """The cache's figures when no block is on its way any more."""
    seen: list[int] = []

    def stats() -> Any:
        found = core.cache_report(0).stats
        seen.append(found.transfers)
        return found if seen[-2:] == [0, 0] else None

    return wait_until(stats, lambda: f"{seen[-1]} transfers")


def undeclined(run: Callable[[], Any]) -> Any:
    """The cache's figures that `run` returns, of a run in which all that could be fetched was. Whether it is
    worth it is decided by what was measured: on a busy machine that may be anything, and it is run again."""
    for _ in range(5):
        stats = run()
        if stats.fetches_declined == 0:
            return stats
    raise AssertionError("it never seems worth it to fetch what computes slowly")


def both(checkpoint: Path, run: Callable[[LLM], list[tuple[list[int], int]]], **settings: Any) -> list[int]:
    """Runs the same with the cache and without; the answers must be the same. Returns what was cached."""
    off_settings = {k: v for k, v in settings.items() if k not in OFFLOAD and not k.startswith("apc_")}
    with model(checkpoint, **off_settings) as llm:
        off = run(llm)
    assert not any(cached(off))
    on: list[tuple[list[int], int]] = []

    def run_with_cache() -> Any:
        with model(checkpoint, **{"enable_prefix_caching": True} | settings) as llm:
            on[:] = run(llm)
            assert tokens(on) == tokens(off)
            return settled(llm.handle.core)

    undeclined(run_with_cache)
    return cached(on)


# --- the same answers


@pytest.mark.parametrize("block", [8, 16, 32])
def test_lengths_around_the_end_of_a_block(checkpoint: Path, block: int) -> None:
    lengths = [n for k in (1, 2, 4) for n in (k * block - 1, k * block, k * block + 1)] + [1, 2]

    wanted: list[int] = []

    def run(llm: LLM) -> list[tuple[list[int], int]]:
        naive, answers = Naive(block), []
        for new in (1, 9):
            for n in lengths * 2:
                answers += ask(llm, text(n, n), max_tokens=new)
                wanted.append(naive.ask(list(text(n, n).encode()), answers[-1][0]))
        return answers

    found = both(checkpoint, run, block_size=block)
    assert found == wanted[: len(found)] and max(found) == 4 * block


@pytest.mark.parametrize("block", [8, 16, 32])
def test_shared_examples(checkpoint: Path, block: int) -> None:
    prefixes = [text(i, 100 + 13 * i) for i in range(4)]
    prompts = [prefix + text(50 + i, 9 + 4 * i) for i in range(4) for prefix in prefixes]

    def run(llm: LLM) -> list[tuple[list[int], int]]:
        at_once = ask(llm, prompts)
        again = ask(llm, prompts[::-1], max_tokens=20)
        one_by_one = [ask(llm, prompt + "?")[0] for prompt in prompts]
        return at_once + again + one_by_one

    found = both(checkpoint, run, block_size=block)
    for count, prompt in zip(found[16:32], prompts[::-1], strict=True):
        assert count >= len(prompt) // block * block - 1


@pytest.mark.parametrize("block", [8, 16, 32])
def test_conversations(checkpoint: Path, block: int) -> None:
    def run(llm: LLM) -> list[tuple[list[int], int]]:
        talks = [list(text(i, 30 + 7 * i).encode()) for i in range(4)]
        answers = []
        for turn in range(4):
            given = ask(llm, [{"prompt_token_ids": talk} for talk in talks], max_tokens=15 + turn)
            answers += given
            for i, (talk, (ids, _)) in enumerate(zip(talks, given, strict=True)):
                talk += ids + list(text(100 + 10 * turn + i, 11 + i).encode())
        return answers

    found = both(checkpoint, run, block_size=block)
    lengths = [30 + 7 * i for i in range(4)]
    for turn in range(4):
        for i in range(4):
            if turn:  # the whole of the turn before: its prompt and its answer but for the last token
                assert found[4 * turn + i] == (lengths[i] - (11 + i) - 1) // block * block
            lengths[i] += 15 + turn + 11 + i


def test_sampling_and_several_answers(checkpoint: Path) -> None:
    prompt = text(1, 75)

    def run(llm: LLM) -> list[tuple[list[int], int]]:
        params = SamplingParams(n=3, temperature=0.8, seed=5, max_tokens=20, ignore_eos=True)
        answers = []
        for _ in range(3):
            (result,) = llm.generate(prompt, params, use_tqdm=False)
            answers += [(list(output.token_ids), result.num_cached_tokens) for output in result.outputs]
        answers += ask(llm, prompt, temperature=0.5, seed=9, repetition_penalty=1.2, presence_penalty=0.4)
        answers += ask(llm, prompt, max_tokens=30, no_repeat_ngram_size=3)
        return answers

    assert both(checkpoint, run) == [0] * 3 + [74] * 8


def test_logprobs_are_those_of_the_whole_prompt(checkpoint: Path) -> None:
    prompt = text(2, 70)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=1)
    found = []
    for caching in (False, True):
        with model(checkpoint, enable_prefix_caching=caching) as llm:
            ask(llm, prompt)
            (result,) = llm.generate(prompt, params, use_tqdm=False)
            # They need the logits of every token: all is computed.
            assert result.num_cached_tokens == 0 and len(result.prompt_logprobs) == 70
            found.append(
                [e for p in [*result.prompt_logprobs[1:], *result.outputs[0].logprobs] for e in p.items()]
            )
            assert cached(ask(llm, prompt + "!")) == [70 if caching else 0]
    for (one, a), (other, b) in zip(*found, strict=True):
        assert one == other and abs(a.logprob - b.logprob) < 1e-4


def test_with_speculation(checkpoint: Path) -> None:
    """Drafts that are rejected are never cached."""

    def run(llm: LLM) -> list[tuple[list[int], int]]:
        prompts = ["abcabc" * 12 + text(i, 20) for i in range(3)]
        answers = ask(llm, prompts, max_tokens=60)
        follow_ups = [
            {"prompt_token_ids": list(prompt.encode()) + ids + list(b"abcabc")}
            for prompt, (ids, _) in zip(prompts, answers, strict=True)
        ]
        return answers + ask(llm, follow_ups, max_tokens=60)

    drafting = {"speculative_model": "[ngram]", "num_speculative_tokens": 5, "ngram_prompt_lookup_max": 3}
    found = both(checkpoint, run, **drafting)
    assert found[3:] == [(92 + 60 - 1) // 16 * 16] * 3


def test_preempted_requests(checkpoint: Path) -> None:
    """A pool too small for all: they give way, and find their blocks again or compute them again."""
    shared = text(3, 40)
    prompts = [shared + text(60 + i, 30 + i) for i in range(8)]
    with model(checkpoint, block_size=8, num_gpu_blocks_override=64) as llm:
        off = [ask(llm, prompt, max_tokens=90)[0] for prompt in prompts]
    for offload in ({}, OFFLOAD):
        with model(
            checkpoint, **{"enable_prefix_caching": True} | offload, block_size=8, num_gpu_blocks_override=64
        ) as llm:
            on = ask(llm, prompts, max_tokens=90)
            again = ask(llm, prompts, max_tokens=90)
            stats = llm.handle.core.stats()
        assert stats.preemptions > 0
        assert tokens(on) == tokens(off) == tokens(again)
        # What is counted is what a prompt found at its first admission, not what it got back.
        assert all(count <= len(prompt) - 1 for count, prompt in zip(cached(on), prompts, strict=True))


def test_aborted_requests(checkpoint: Path) -> None:
    prompt = text(4, 60)
    with model(checkpoint) as llm:
        wanted = tokens(ask(llm, prompt, max_tokens=200))[0]
    with model(checkpoint, enable_prefix_caching=True) as llm:
        core = llm.handle.core
        params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True).to_core(
            eos_token_ids=[], tokenizer=llm.get_tokenizer()
        )
        seen = 0
        for _ in range(3):
            request = core.submit(list(prompt.encode()), params)
            made: list[int] = []
            aborted = finished = False
            while not finished:  # tokens of the steps under way may still come after the abort
                outputs = core.poll(1.0)
                assert all(output.request == request for output in outputs)
                for output in outputs:
                    made += output.token_ids
                    finished |= output.request_finished
                if len(made) >= 40 and not aborted:
                    core.abort(request)
                    aborted = True
            assert made == wanted[: len(made)] or made[:200] == wanted
            seen = len(made)
        ((ids, count),) = ask(llm, {"prompt_token_ids": list(prompt.encode()) + wanted[:40]}, max_tokens=160)
        assert ids == wanted[40:] and 80 <= count <= 60 + seen
        stats = core.stats()
        assert stats.running == stats.waiting == 0 and stats.free_blocks == stats.num_blocks


# --- tiers


def test_eleven_prefixes_of_ten_blocks_over_a_hundred(heavy: Path, caplog: Any) -> None:
    """After the eleventh the first one is no longer on the device: offload brings it back."""
    caplog.set_level("INFO", "taco_llm")
    prefixes = [text(200 + i, 160) for i in range(11)]
    found = {}

    def run(name: str, settings: dict[str, Any]) -> Any:
        more = {"apc_offload_enable_hit_cnt": True} if settings else {}
        with model(heavy, num_gpu_blocks_override=100, **settings | more) as llm:
            answers = [ask(llm, prefix + "Q")[0] for prefix in prefixes]
            if settings:
                settled(llm.handle.core)
            found[name] = answers + ask(llm, prefixes[0] + "R")
            return settled(llm.handle.core) if settings else None

    run("off", {})
    run("plain", {"enable_prefix_caching": True})
    stats = undeclined(lambda: run("offload", OFFLOAD))
    assert tokens(found["off"]) == tokens(found["plain"]) == tokens(found["offload"])
    assert cached(found["plain"]) == [0] * 12
    assert cached(found["offload"]) == [0] * 11 + [160]
    assert stats.tokens_hit["host"] == 160 and stats.tokens_hit["device"] == 0
    assert stats.evicted["device"] > 0 and stats.loaded == 10
    lines = [r.message for r in caplog.records if "HIT CNT" in r.message]
    # 12 prompts of 161 tokens: 11 blocks each. The first line tells of no hit in all runs.
    assert lines and re.fullmatch(
        r"\[HIT CNT\] total: 100, gpu: 0 \(0.00%\) cpu: 0 \(0.00%\) not hit: 100 \(100.00%\)", lines[0]
    )


@pytest.mark.parametrize("more", [
    {}, {"apc_offload_not_lazy": True}, {"apc_offload_gpu_evictor_limit": 10},
])  # fmt: skip
def test_a_small_device_over_memory(heavy: Path, more: dict[str, Any]) -> None:
    """Many prefixes in turns, several at a time, over a device that holds a few of them. How much those find
    who want room at the same time is up to the moment; one at a time finds all there is."""
    prefixes = [text(300 + i, 90 + 5 * i) for i in range(12)]

    def run(llm: LLM) -> list[tuple[list[int], int]]:
        answers = []
        for turn, at_once in enumerate((3, 3, 3, 1, 1)):
            for group in range(0, 12, at_once):
                if at_once == 1 and llm.handle.args.enable_prefix_caching:
                    settled(llm.handle.core)
                answers += ask(llm, [p + text(400 + turn, 7) for p in prefixes[group : group + at_once]])
        return answers

    found = both(heavy, run, num_gpu_blocks_override=40, **OFFLOAD | more)
    assert sum(found[12:36]) > 0
    assert found[36:] == [len(p) // 16 * 16 for p in prefixes] * 2


def test_what_was_used_once_is_not_worth_a_copy(heavy: Path) -> None:
    once, twice = text(10, 160), text(11, 160)
    others = [text(12 + i, 160) for i in range(11)]
    settings = {"num_gpu_blocks_override": 100, "apc_offload_min_access_threshold": 2}
    found = []

    def run() -> Any:
        with model(heavy, **OFFLOAD | settings) as llm:
            found[:] = [cached(ask(llm, prompt))[0] for prompt in (once + "A", twice + "A", twice + "B")]
            for other in others:
                ask(llm, other)
            settled(llm.handle.core)
            found.extend(cached(ask(llm, prompt))[0] for prompt in (once + "C", twice + "C"))
            return settled(llm.handle.core)

    stats = undeclined(run)
    assert found == [0, 0, 160, 0, 160]
    assert stats.tokens_hit["host"] == 160 and stats.dropped >= 10


def test_at_most_so_many_unused_blocks(checkpoint: Path) -> None:
    """They leave soon after their last user has."""
    with model(checkpoint, enable_prefix_caching=True, apc_offload_gpu_evictor_limit=6) as llm:
        found = []
        for _ in range(2):
            found += ask(llm, text(1, 160))

            def idle() -> int:
                return llm.handle.core.cache_report(0).stats.idle_blocks

            wait_until(lambda: idle() <= 6, idle)
        assert cached(found) == [0, 96] and idle() == 6


# --- over HTTP


@contextmanager
def served(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> Iterator[Server]:
    from taco_llm.engine import build
    from taco_llm.engine_args import EngineArgs

    handle = build(EngineArgs(model=str(checkpoint), **SMALL | {"enable_prefix_caching": True} | settings))
    try:
        with serving(handle, **options or {}) as server:
            yield server
    finally:
        handle.shutdown()


def complete(server: Server, prompt: Any, key: str = "", **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = requests.post(server.url + "/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.ok, answer.text
    return answer.json()


def hits(server: Server, prompt: Any, key: str = "", **fields: Any) -> int:
    return complete(server, prompt, key, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_keys_never_share(checkpoint: Path) -> None:
    prompt = text(5, 100)
    with served(checkpoint, {"api_key": ["one", "two"]}) as server:
        assert [hits(server, prompt, key) for key in ("one", "two", "one", "two")] == [0, 0, 96, 96]
        assert hits(server, prompt, "one", cache_salt="s") == 0
        assert hits(server, prompt, "two", cache_salt="s") == 0
        assert hits(server, prompt, "two", cache_salt="s") == 96
    with served(checkpoint, {"api_key": ["one", "two"], "prefix_cache_shared": True}) as server:
        assert [hits(server, prompt, key) for key in ("one", "two")] == [0, 96]
        assert hits(server, prompt, "one", cache_salt="s") == 0


def test_salts_and_reset(checkpoint: Path) -> None:
    prompt = text(6, 100)
    with served(checkpoint) as server:
        wanted = complete(server, prompt)["choices"]
        assert hits(server, prompt) == 96
        assert hits(server, prompt, cache_salt="a") == 0
        assert hits(server, prompt, cache_salt="b") == 0
        assert hits(server, prompt, cache_salt="a") == 96
        view = requests.get(server.url + "/v1/cache", timeout=60).json()
        assert view["enabled"] and view["entries"] == 18 and view["tokens"]["hit"] == 192
        assert view["tiers"][0]["blocks"] == 18 and view["tiers"][0]["idle"] == 18
        assert all(re.fullmatch("[0-9a-f]{64}", one["digest"]) for one in view["hottest"])
        assert len({one["digest"] for one in view["hottest"]}) == 3  # one for each root
        assert requests.post(server.url + "/reset_prefix_cache", timeout=60).ok
        assert requests.get(server.url + "/v1/cache", timeout=60).json()["entries"] == 0
        assert hits(server, prompt) == 0 == hits(server, prompt, cache_salt="a")
        assert complete(server, prompt)["choices"] == wanted


def test_reset_while_requests_run(checkpoint: Path) -> None:
    prompt = text(7, 80)
    with served(checkpoint) as server:
        wanted = complete(server, prompt, max_tokens=300)["choices"]
        body = {"prompt": prompt, "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}
        with requests.post(server.url + "/v1/completions", json=body, stream=True, timeout=60) as answer:
            got, resets = "", 0
            for line in answer.iter_lines():
                if line.startswith(b"data: {"):
                    got += json.loads(line[6:])["choices"][0]["text"]
                    if resets < 3:
                        resets += requests.post(server.url + "/reset_prefix_cache", timeout=60).ok
        assert got == wanted[0]["text"] and resets >= 1  # it may be through before the third
        assert server.handle.core.cache_report(0).stats.resets == resets
        stats = server.handle.core.stats()
        assert stats.free_blocks == stats.num_blocks


@pytest.mark.parametrize("stream", [False, True])
def test_usage(checkpoint: Path, stream: bool) -> None:
    prompts = [text(500 + i, 40 + 30 * i) for i in range(3)]

    def usage(path: str, **fields: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"max_tokens": 3, "temperature": 0, "ignore_eos": True, **fields}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = requests.post(server.url + path, json=body, timeout=60)
        assert answer.ok, answer.text
        if not stream:
            return answer.json()["usage"]
        return json.loads([line for line in answer.text.splitlines() if line.startswith("data: {")][-1][6:])[
            "usage"
        ]

    template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}|{% endfor %}"
    with served(checkpoint, {"chat_template": template}) as server:
        assert usage("/v1/completions", prompt=prompts)["prompt_tokens_details"] == {"cached_tokens": 0}
        found = usage("/v1/completions", prompt=prompts, n=2, temperature=1)
        assert found["prompt_tokens"] == 40 + 70 + 100 and found["completion_tokens"] == 18
        assert found["prompt_tokens_details"] == {"cached_tokens": 32 + 64 + 96}
        talk = [{"role": "user", "content": text(9, 60)}]
        assert usage("/v1/chat/completions", messages=talk)["prompt_tokens_details"] == {"cached_tokens": 0}
        talk.append({"role": "user", "content": "and?"})
        found = usage("/v1/chat/completions", messages=talk)["prompt_tokens_details"]
        assert found == {"cached_tokens": 64}  # user:...| is 66 tokens


def test_metrics(heavy: Path) -> None:
    from test_speculation_figures import figures

    values: dict[str, float] = {}
    view: dict[str, Any] = {}

    def run() -> Any:
        with served(heavy, num_gpu_blocks_override=100, **OFFLOAD) as server:
            for seed in (*range(210, 221), 210, 220):
                hits(server, text(seed, 160) + "Q")
                stats = settled(server.handle.core)
            values.update(figures(server))
            view.update(requests.get(server.url + "/v1/cache", timeout=60).json())
            return stats

    undeclined(run)
    name = view and next(key for key in values if key.startswith("vllm:prefix_cache_queries_total"))
    assert values[name] == 13 * 161
    label = name.partition("{")[2]
    assert values["vllm:prefix_cache_hits_total{" + label] == 320
    assert values["vllm:gpu_prefix_cache_hit_rate{" + label] == pytest.approx(160 / (13 * 161))
    assert values["vllm:cpu_prefix_cache_hit_rate{" + label] == pytest.approx(160 / (13 * 161))
    assert values['taco:prefix_cache_moved_blocks_total{way="load"}'] == 10
    assert values['taco:prefix_cache_blocks{tier="host"}'] >= 10
    assert values['taco:prefix_cache_evicted_blocks_total{tier="device"}'] > 0
    assert [tier["tier"] for tier in view["tiers"]] == ["device", "host"]
    assert view["moves"]["load"]["bytes"] == 10 * view["block_bytes"]


# --- disk


class Process(ServedProcess):
    """A small server with a disk."""

    def __init__(self, checkpoint: Path, log: Path, *words: str) -> None:
        flags = ["--device", "cpu", "--dtype", "float32", "--threads", "1", "--max-num-seqs", "8",
                 "--num-gpu-blocks-override", "200"]  # fmt: skip
        super().__init__(log, str(checkpoint), *flags, *words)

    def tiers(self) -> dict[str, dict[str, Any]]:
        return {t["tier"]: t for t in requests.get(self.url + "/v1/cache", timeout=60).json()["tiers"]}

    def wait_for_disk(self, blocks: int) -> None:
        wait_until(lambda: self.tiers()["disk"]["blocks"] >= blocks, self.tiers)


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    running: list[Process] = []
    words = ["--enable-prefix-caching", "--enable-prefix-cache-offload", "--cpu-prefill-memory-utilization",
             "0.01", "--prefix-cache-disk-gb", "0.05"]  # fmt: skip

    def make(folder: Path | None = tmp_path / "kv", model: Path = checkpoint, *more: str) -> Process:
        given = [*words, "--prefix-cache-dir", str(folder)] if folder else []
        running.append(Process(model, tmp_path / "log", *given, *more))
        return running[-1]

    yield make
    for process in running:
        process.kill()


def test_kill_and_restart(start: Callable[..., Process], tmp_path: Path, tmp_path_factory: Any) -> None:
    plain = start(None)
    first = [text(600 + i, 150) for i in range(4)]
    wanted = [complete(plain, prompt, max_tokens=20)["choices"] for prompt in first]
    second = [p + w[0]["text"] + " more?" for p, w in zip(first, wanted, strict=True)]
    wanted_second = [complete(plain, prompt, max_tokens=20)["choices"] for prompt in second]
    plain.kill(signal.SIGTERM)

    server = start()
    assert [complete(server, prompt, max_tokens=20)["choices"] for prompt in first] == wanted
    server.wait_for_disk(4 * 10)
    server.kill()

    server = start()
    assert server.tiers()["disk"]["blocks"] >= 40
    found = []
    for prompt, choices in zip(second, wanted_second, strict=True):
        answer = complete(server, prompt, max_tokens=20)
        assert answer["choices"] == choices
        found.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    # The first turn's 169 tokens with KV, unless the tail of its answer is no text that can be sent back.
    # Once the engine has measured both it may rather compute so small a model than read.
    assert found[0] >= 144 and all(n == 0 or n >= 144 for n in found)
    assert server.tiers()["disk"]["tokens_hit"] >= 144
    server.wait_for_disk(4 * 10)
    server.kill()
    assert "is damaged" not in server.text()

    # Every byte of the blocks is another: they fail their checksums, and the prompts are computed.
    for path in (tmp_path / "kv").rglob("blocks.*"):
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(byte ^ 0x5A for byte in data))
    server = start()
    answers = [complete(server, prompt, max_tokens=20) for prompt in second]
    assert [answer["choices"] for answer in answers] == wanted_second
    assert not any(answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers)
    server.kill(signal.SIGTERM)
    assert server.text().count("is damaged") == 1

    # The index is garbage: the server starts, with nothing.
    for path in (tmp_path / "kv").rglob("index"):
        path.write_bytes(os.urandom(path.stat().st_size))
    server = start()
    assert server.tiers()["disk"]["blocks"] == 0
    assert complete(server, second[0], max_tokens=20)["choices"] == wanted_second[0]
    server.kill(signal.SIGTERM)


def test_other_weights_find_nothing(start: Callable[..., Process], tmp_path_factory: Any) -> None:
    prompt = text(7, 150)
    server = start()
    complete(server, prompt)
    server.wait_for_disk(9)
    server.kill()
    other = start(model=tiny_model.write(tmp_path_factory.mktemp("other"), seed=1))
    assert other.tiers()["disk"]["blocks"] == 0 and hits(other, prompt) == 0
    other.kill()
    again = start()
    assert hits(again, prompt) == 144


def test_a_full_disk_ends_writing(start: Callable[..., Process], checkpoint: Path, tmp_path: Path) -> None:
    prompts = [text(700 + i, 150) for i in range(6)]
    plain = start(None)
    wanted = [complete(plain, prompt)["choices"] for prompt in prompts]
    plain.kill(signal.SIGTERM)

    server = start(tmp_path / "kv", checkpoint, "--prefix-cache-disk-gb", "0.002")
    # As good as a full disk: no file may become longer. There is room for 16 blocks of 4 KiB.
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
    assert [complete(server, prompt)["choices"] for prompt in prompts] == wanted
    wait_until(lambda: "not written to any more" in server.text(), server.tiers)
    assert [complete(server, prompt)["choices"] for prompt in prompts] == wanted
    assert complete(server, text(790, 150))["choices"]
    assert 0 < server.tiers()["disk"]["blocks"] <= 16
    server.kill()
    assert server.text().count("not written to any more") == 1

    again = start(tmp_path / "kv", checkpoint, "--prefix-cache-disk-gb", "0.002")
    assert 0 < again.tiers()["disk"]["blocks"] <= 16
    assert hits(again, prompts[0]) >= 16
