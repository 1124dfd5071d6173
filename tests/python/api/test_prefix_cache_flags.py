"""Prefix caching by its flags: what fits together, sizes of the tiers, what is logged."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from taco_llm import AsyncEngineArgs, EngineArgs, prefix_cache
from taco_llm.cache_root import NO_ROOT
from taco_llm.memory import GIB
from taco_llm.prompts import prepare
from waiting import wait_until

CACHING = {"enable_prefix_caching": True}
OFFLOAD = CACHING | {"enable_prefix_cache_offload": True}
BLOCK = 1 << 20


def tiers(total: float = 100, available: float = 90, device: str = "cpu", block: int = BLOCK, **given):
    args = EngineArgs(**OFFLOAD | given)
    args.check()
    return prefix_cache.plan_tiers(
        args, device=device, block_bytes=block, total=int(total * GIB), available=int(available * GIB)
    )


@pytest.mark.parametrize("given, words", [
    ({"enable_prefix_cache_offload": True}, "add --enable-prefix-caching"),
    ({"prefix_cache_dir": "x"}, "add --enable-prefix-caching --enable-prefix-cache-offload"),
    (CACHING | {"prefix_cache_dir": "x"}, "--enable-prefix-cache-offload"),
    (OFFLOAD | {"prefix_cache_dir": "no/such/folder"}, "no folder .*no/such; make it"),
    (OFFLOAD | {"prefix_cache_dir": __file__}, "is a file; name a folder"),
    (OFFLOAD | {"cpu_prefill_memory_utilization": 0.0}, "above 0 and at most 1"),
    (OFFLOAD | {"cpu_prefill_memory_utilization": 1.1}, "above 0 and at most 1"),
    (OFFLOAD | {"apc_offload_min_access_threshold": 0}, "1 .*or more"),
    (CACHING | {"apc_offload_gpu_evictor_limit": -2}, "-1 for no limit"),
    (OFFLOAD | {"prefix_cache_dir": "x", "prefix_cache_disk_gb": 0}, "GiB, above 0"),
    (OFFLOAD | {"prefix_cache_dir": "x", "prefix_cache_disk_gb": float("nan")}, "GiB, above 0"),
])  # fmt: skip
def test_what_does_not_fit_together(given: dict, words: str) -> None:
    for table in (EngineArgs, AsyncEngineArgs):
        with pytest.raises(ValueError, match=words):
            table(**given).check()


@pytest.mark.parametrize("given, flag", [
    ({"apc_offload_enable_hit_cnt": True}, "--apc-offload-enable-hit-cnt"),
    ({"apc_offload_gpu_evictor_limit": 5}, "--apc-offload-gpu-evictor-limit"),
    (CACHING | {"cpu_prefill_memory_utilization": 0.2}, "--cpu-prefill-memory-utilization"),
    (CACHING | {"apc_offload_not_lazy": True}, "--apc-offload-not-lazy"),
    (CACHING | {"apc_offload_min_access_threshold": 2}, "--apc-offload-min-access-threshold"),
    (OFFLOAD | {"prefix_cache_disk_gb": 2.0}, "--prefix-cache-disk-gb"),
])  # fmt: skip
def test_what_changes_nothing_says_so(given: dict, flag: str) -> None:
    args = EngineArgs(**given)
    args.check()
    for device in ("cpu", "cuda:0"):
        assert [note.partition(":")[0] for note in args.notes(device)] == [flag]


def test_without_offload_there_are_no_tiers() -> None:
    args = EngineArgs(**CACHING)
    for device in ("cpu", "cuda:0"):
        plan = prefix_cache.plan_tiers(args, device=device, block_bytes=BLOCK, total=GIB, available=GIB)
        assert plan == prefix_cache.Tiers(BLOCK)


def test_memory_is_a_part_of_all(caplog: pytest.LogCaptureFixture) -> None:
    plan = tiers()
    assert (plan.host_blocks, plan.host_bytes, plan.disk_blocks) == (30 * 1024, 30 * GIB, 0)
    assert tiers(cpu_prefill_memory_utilization=0.1).host_bytes == 10 * GIB
    assert caplog.text == ""


def test_and_half_of_what_is_free_at_most(caplog: pytest.LogCaptureFixture) -> None:
    assert tiers(available=20).host_bytes == 10 * GIB
    assert "10.00 GiB" in caplog.text and "30.00 GiB" in caplog.text
    assert "--cpu-prefill-memory-utilization" in caplog.text
    # What swap space and the lookahead cache take is not free: 4 and 15 GiB of 60.
    caplog.clear()
    assert tiers(available=60, device="cuda:0", lookahead_cache_config_dir=".").host_bytes == 41 * GIB // 2
    assert "20.50 GiB" in caplog.text


@pytest.mark.parametrize("given, flags", [
    ({"cpu_prefill_memory_utilization": 0.9, "lookahead_cache_config_dir": "."},
     ["--cpu-prefill-memory-utilization 0.9 is 90.00", "--cpu-decoding-memory-utilization) 15.00"]),
    ({"cpu_prefill_memory_utilization": 0.9, "swap_space": 11.0, "device": "cuda:0"},
     ["--cpu-prefill-memory-utilization 0.9 is 90.00", "--swap-space 11.00"]),
])  # fmt: skip
def test_parts_that_are_more_than_all(given: dict, flags: list[str]) -> None:
    with pytest.raises(ValueError, match="lower one of them") as error:
        tiers(**{"device": "cpu"} | given)
    assert all(flag in str(error.value) for flag in flags)


def test_swap_space_counts_only_where_something_swaps() -> None:
    heavy = {"cpu_prefill_memory_utilization": 0.9, "swap_space": 11.0}
    assert tiers(available=200, device="cpu", **heavy).host_bytes == 90 * GIB
    assert tiers(available=200, device="cuda:0", preemption_mode="recompute", **heavy).host_bytes == 90 * GIB


def test_a_tier_of_next_to_nothing_is_an_error() -> None:
    with pytest.raises(MemoryError, match="--enable-prefix-cache-offload"):
        tiers(available=0.01, block=BLOCK)
    with pytest.raises(MemoryError, match="--enable-prefix-cache-offload"):
        tiers(total=1, block=64 << 20, available=1)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    free = 100 * GIB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    target = tmp_path / "blocks"  # made when the engine starts
    plan = tiers(prefix_cache_dir=str(target))
    assert (plan.disk_blocks, plan.disk_bytes, plan.disk_dir) == (16 * 1024, 16 * GIB, target)
    assert not target.exists() and caplog.text == ""
    free = 10 * GIB
    assert tiers(prefix_cache_dir=str(target)).disk_bytes == 9 * GIB
    assert "9.00 GiB" in caplog.text and "--prefix-cache-disk-gb" in caplog.text
    target.mkdir()
    (target / "model").mkdir()
    (target / "model/file").write_bytes(bytes(4 * BLOCK))  # what it holds already is its own
    assert tiers(prefix_cache_dir=str(target)).disk_bytes == 9 * GIB + 4 * BLOCK
    free = 0
    with pytest.raises(MemoryError, match="--prefix-cache-dir"):
        tiers(prefix_cache_dir=str(target))


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiers(prefix_cache_dir="blocks").disk_dir == tmp_path / "blocks"


def test_what_the_engine_says_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "taco_llm")
    waiting = [[], ["[HIT CNT] one", "[HIT CNT] two"], []]
    log = prefix_cache.EngineLog(lambda: waiting.pop(0) if waiting else [])
    wait_until(lambda: len(caplog.records) == 2)
    waiting[:] = [["[HIT CNT] three"]]
    log.stop()
    log.stop()
    assert [record.message for record in caplog.records] == [
        f"[HIT CNT] {n}" for n in ("one", "two", "three")
    ]


def test_a_prompt_may_bring_a_salt() -> None:
    handle = SimpleNamespace(
        tokenizer=None,
        max_model_len=100,
        vocab_size=10,
        args=SimpleNamespace(max_logprobs=5),
        eos_token_ids=[],
    )
    params = SimpleNamespace(
        truncate_prompt_tokens=None,
        logprobs=None,
        prompt_logprobs=None,
        max_tokens=5,
        to_core=lambda **_: None,
    )

    def root(**prompt) -> bytes:
        return prepare(handle, {"prompt_token_ids": [1, 2], **prompt}, params).cache_root

    assert root() == NO_ROOT == root(cache_salt=None)
    assert root(cache_salt="a") == root(cache_salt="a") != root(cache_salt="b")
    for wrong in ("", 5, "x" * 257):
        with pytest.raises(ValueError, match="cache_salt should be a string of 1 to 256"):
            root(cache_salt=wrong)
