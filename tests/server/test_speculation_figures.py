"""What speculation did, in /metrics and GET /speculation."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from fake_engine import FakeEngine, speculation_stats


def figures(server: Any) -> dict[str, float]:
    values = {}
    for line in requests.get(server.url + "/metrics", timeout=60).text.splitlines():
        if line and line[0] != "#":
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    return values


@pytest.fixture
def server(make_fake: Any) -> Any:
    engine = FakeEngine()
    engine.speculation = speculation_stats()
    return make_fake(engine, handle={"speculation": SimpleNamespace(method="lookahead")})


def test_nothing_is_said_where_nothing_is_drafted(make_fake: Any) -> None:
    server = make_fake()
    assert not [name for name in figures(server) if "spec" in name or "lookahead" in name]
    assert requests.get(server.url + "/speculation", timeout=60).json() == {"method": "none"}


@pytest.mark.parametrize("prefix", ["taco:", "vllm:"])
def test_the_names_that_vllm_has(server: Any, prefix: str) -> None:
    values = figures(server)

    def value(name: str, labels: str = 'model_name="fake"') -> float:
        return values[f"{prefix}spec_decode_{name}{{{labels}}}"]

    # The stand-in's 20 steps: 8 ordinary ones, 5 with all of their drafts wrong, 7 with 3, 3, 3, 1, 1, 1, 20.
    assert value("num_drafts_total") == 12
    assert value("num_draft_tokens_total") == 60
    assert value("num_accepted_tokens_total") == 32
    assert value("num_emitted_tokens_total") == 52
    assert value("draft_acceptance_rate") == pytest.approx(32 / 60)
    assert value("efficiency") == pytest.approx(52 / 80)
    places = [
        value("num_accepted_tokens_per_pos_total", f'model_name="fake",position="{k}"') for k in range(16)
    ]
    assert places == [7, 4, 4] + [1] * 13


def test_our_own(server: Any) -> None:
    values = figures(server)
    for outcome, count in (("drafted", 40), ("accepted", 29), ("rejected", 11)):
        assert values[f'taco:speculation_{outcome}_tokens_total{{source="turbo_local"}}'] == count
    assert values['taco:speculation_drafted_tokens_total{source="ngram"}'] == 0
    assert not [name for name in values if "_tokens_total" in name and 'source="root"' in name]
    length = "taco:speculation_hit_length"
    assert values[f'{length}_bucket{{le="0.0",source="none"}}'] == 13
    assert values[f'{length}_bucket{{le="0.0",source="turbo_local"}}'] == 0
    assert values[f'{length}_bucket{{le="3.0",source="turbo_local"}}'] == 3
    assert values[f'{length}_bucket{{le="15.0",source="turbo_local"}}'] == 3
    assert values[f'{length}_count{{source="turbo_local"}}'] == 4
    assert values[f'{length}_count{{source="raw_global"}}'] == 3
    assert values["taco:speculation_expected_speedup"] == 1.9
    assert values["taco:speculation_realised_speedup"] == 1.75
    assert values["taco:lookahead_cache_bytes"] == 123456
    assert values["taco:speculation_draft_seconds_total"] == 0.25
    assert values["taco:lookahead_global_average_hit_len"] == 1.5
    assert values["taco:lookahead_hit_valid_rate"] == 0.5


def test_a_page_without_a_single_draft_has_no_nonsense(make_fake: Any) -> None:
    engine = FakeEngine()
    server = make_fake(engine, handle={"speculation": SimpleNamespace(method="ngram")})
    assert not [name for name, value in figures(server).items() if math.isnan(value)]
    view = requests.get(server.url + "/speculation", timeout=60).json()
    assert view["method"] == "ngram" and view["acceptance_rate"] == 0 and view["tokens_per_step"] == 0


def test_view(server: Any) -> None:
    view = requests.get(server.url + "/speculation", timeout=60).json()
    assert view["method"] == "lookahead"
    assert (view["iterations"], view["drafted_tokens"]) == (20, 60)
    assert (view["accepted_tokens"], view["rejected_tokens"]) == (32, 28)
    assert view["acceptance_rate"] == pytest.approx(32 / 60) and view["tokens_per_step"] == 2.6
    assert (view["expected_speedup"], view["realised_speedup"]) == (1.9, 1.75)
    assert view["hit_lengths"] == [13, 3, 0, 3] + [0] * 12 + [1]
    assert view["accepted_by_source"]["turbo_local"] == 29
    assert view["averages"]["global_average_hit_len"] == 1.5


def test_the_view_needs_the_key(make_fake: Any) -> None:
    server = make_fake(api_key=["k"])
    assert requests.get(server.url + "/speculation", timeout=60).status_code == 401
