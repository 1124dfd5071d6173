"""What the prefix cache did: usage, /metrics, GET /v1/cache, POST /reset_prefix_cache; over a fake engine."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from fake_engine import FakeEngine, cache_stats
from test_speculation_figures import figures

CACHING = SimpleNamespace(
    max_logprobs=20, scheduling_policy="priority", block_size=16, enable_prefix_caching=True
)
DIGESTS = [f"{i:064x}" for i in range(30)]


def handle(host: int = 500, disk: int = 4000) -> dict[str, Any]:
    return {
        "args": CACHING,
        "tiers": SimpleNamespace(block_bytes=4096, host_blocks=host, disk_blocks=disk),
    }


@pytest.fixture
def server(make_fake: Any) -> Any:
    engine = FakeEngine()
    engine.prefix_cache = cache_stats()
    engine.hottest = [
        SimpleNamespace(
            digest=d, tokens=16 * (i + 1), accesses=99 - i, tier=("device", "host", "disk")[i % 3]
        )
        for i, d in enumerate(DIGESTS)
    ]
    return make_fake(engine, handle=handle())


def usage(server: Any, path: str, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"max_tokens": 2, **fields}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": "a" * 50}]
    else:
        body.setdefault("prompt", "a" * 50)
    answer = requests.post(server.url + path, json=body, timeout=60)
    assert answer.ok, answer.text
    if not fields.get("stream"):
        return answer.json()["usage"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return events[-1]["usage"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("more", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_usage_says_what_was_cached(make_fake: Any, path: str, more: dict[str, Any]) -> None:
    server = make_fake(handle=handle())
    assert usage(server, path, **more)["prompt_tokens_details"] == {"cached_tokens": 0}
    server.handle.core.cached_tokens = 32
    assert usage(server, path, **more)["prompt_tokens_details"] == {"cached_tokens": 32}
    # Several answers share their prompt, which is counted once; best_of's hidden ones do not count twice.
    assert usage(server, path, n=3, **more)["prompt_tokens_details"] == {"cached_tokens": 32}
    assert usage(server, path, n=1, best_of=3, **more)["prompt_tokens_details"] == {"cached_tokens": 32}


def test_usage_of_several_prompts_is_their_sum(make_fake: Any) -> None:
    server = make_fake(handle=handle())
    server.handle.core.cached_tokens = 32
    found = usage(server, "/v1/completions", prompt=["a" * 50, "b" * 40, "c" * 10])
    assert found["prompt_tokens"] == 100
    assert found["prompt_tokens_details"] == {"cached_tokens": 32 + 32 + 9}


def test_nothing_is_said_where_there_is_no_cache(make_fake: Any) -> None:
    server = make_fake()
    assert not [name for name in figures(server) if "prefix" in name]
    assert requests.get(server.url + "/v1/cache", timeout=60).json() == {"enabled": False}
    assert requests.post(server.url + "/reset_prefix_cache", timeout=60).status_code == 200  # it is empty
    assert server.handle.core.resets == 0


@pytest.mark.parametrize("prefix", ["taco:", "vllm:"])
def test_the_names_that_vllm_has(server: Any, prefix: str) -> None:
    values = figures(server)
    label = '{model_name="fake"}'
    assert values[f"{prefix}gpu_prefix_cache_hit_rate{label}"] == 0.4
    assert values[f"{prefix}cpu_prefix_cache_hit_rate{label}"] == 0.25
    assert values[f"{prefix}prefix_cache_queries_total{label}"] == 1000
    assert values[f"{prefix}prefix_cache_hits_total{label}"] == 650


def test_our_own(server: Any) -> None:
    values = figures(server)

    def by(name: str, label: str, *keys: str) -> list[float]:
        return [values[f'taco:prefix_cache_{name}{{{label}="{key}"}}'] for key in keys]

    tiers, ways = ("device", "host", "disk"), ("store", "load", "write", "read")
    assert by("blocks", "tier", *tiers) == [30, 80, 200]
    assert by("capacity_blocks", "tier", *tiers) == [1000, 500, 4000]
    assert by("hit_tokens_total", "tier", *tiers) == [400, 200, 50]
    assert by("hit_blocks_total", "tier", *tiers) == [25, 12, 3]
    assert by("evicted_blocks_total", "tier", *tiers) == [70, 4, 1]
    assert by("moved_blocks_total", "way", *ways) == [75, 13, 201, 4]
    assert by("moved_bytes_total", "way", *ways) == [4096 * n for n in (75, 13, 201, 4)]
    assert by("move_bytes_per_second", "way", *ways) == [5e9, 4e9, 3e8, 0]
    assert values["taco:prefix_cache_entries"] == 210 and values["taco:prefix_cache_idle_blocks"] == 20
    assert values["taco:prefix_cache_lookups_total"] == 17
    assert values["taco:prefix_cache_query_blocks_total"] == 60
    assert values["taco:prefix_cache_fetches_declined_total"] == 9
    assert values["taco:prefix_cache_disk_working"] == 1
    server.handle.core.prefix_cache.capacity["disk"] = 0  # it has switched itself off
    assert figures(server)["taco:prefix_cache_disk_working"] == 0


def test_view(server: Any) -> None:
    answer = requests.get(server.url + "/v1/cache", timeout=60)
    view = answer.json()
    assert view["enabled"] and (view["block_size"], view["block_bytes"]) == (16, 4096)
    assert (view["entries"], view["lookups"], view["dropped"]) == (210, 17, 6)
    assert view["tokens"] == {"queried": 1000, "hit": 650} and view["hit_rate"] == 0.65
    device, host, disk = view["tiers"]
    assert (device["tier"], host["tier"], disk["tier"]) == ("device", "host", "disk")
    assert device | {"blocks": 30, "capacity": 1000, "bytes": 30 * 4096, "idle": 20} == device
    assert host | {"tokens_hit": 200, "hit_rate": 0.2, "evicted": 4} == host
    assert disk["working"] is True and disk["hit_rate"] == 0.05
    assert view["moves"]["write"] == {"blocks": 201, "bytes": 201 * 4096, "bytes_per_second": 3e8}
    assert view["fetches"] == {"running": 2, "started": 8, "declined": 9}
    assert len(view["hottest"]) == 10
    assert view["hottest"][1] == {"digest": DIGESTS[1], "tokens": 32, "accesses": 98, "tier": "host"}
    assert all(set(one) == {"digest", "tokens", "accesses", "tier"} for one in view["hottest"])


def test_tiers_that_are_not_there_are_not_shown(make_fake: Any) -> None:
    assert [
        [t["tier"] for t in requests.get(s.url + "/v1/cache", timeout=60).json()["tiers"]]
        for s in (make_fake(handle=handle(0, 0)), make_fake(handle=handle(500, 0)))
    ] == [["device"], ["device", "host"]]


@pytest.mark.parametrize("top, count", [("0", 0), ("3", 3), ("100", 30)])
def test_how_many_prefixes_are_shown(server: Any, top: str, count: int) -> None:
    view = requests.get(server.url + f"/v1/cache?top={top}", timeout=60).json()
    assert [one["digest"] for one in view["hottest"]] == DIGESTS[:count]


@pytest.mark.parametrize("top", ["101", "-1", "x", "1e2", "9999999999999999999", "\u0663"])
def test_a_wrong_number_of_prefixes(server: Any, top: str) -> None:
    answer = requests.get(server.url + "/v1/cache", params={"top": top}, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "top"


def test_an_empty_cache_has_no_nonsense(make_fake: Any) -> None:
    server = make_fake(handle=handle())
    assert not [name for name, value in figures(server).items() if math.isnan(value)]
    view = requests.get(server.url + "/v1/cache", timeout=60).json()
    assert view["hit_rate"] == 0 and view["hottest"] == []


def test_reset(server: Any) -> None:
    assert requests.get(server.url + "/reset_prefix_cache", timeout=60).status_code == 405
    answer = requests.post(server.url + "/reset_prefix_cache", timeout=60)
    assert (answer.status_code, answer.content) == (200, b"") and server.handle.core.resets == 1
    server.handle.core.reset_works = False
    assert requests.post(server.url + "/reset_prefix_cache", timeout=60).status_code == 503


def test_both_need_the_key(make_fake: Any) -> None:
    server = make_fake(api_key=["k"], handle=handle())
    assert requests.get(server.url + "/v1/cache", timeout=60).status_code == 401
    assert requests.post(server.url + "/reset_prefix_cache", timeout=60).status_code == 401
    assert server.handle.core.resets == 0
    given = {"Authorization": "Bearer k"}
    assert requests.get(server.url + "/v1/cache", headers=given, timeout=60).ok
    assert requests.post(server.url + "/reset_prefix_cache", headers=given, timeout=60).ok
