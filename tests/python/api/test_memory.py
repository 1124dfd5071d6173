"""How much KV cache there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from taco_llm.memory import GIB, available_bytes, plan_kv_cache, space_from_environment


def plan(**changes):
    settings = dict(
        block_bytes=1 << 20, block_size=16, model_limit=2048, max_model_len=None, max_num_seqs=256,
        num_blocks=None, available=16 * GIB, asked_bytes=None,
    )  # fmt: skip
    return plan_kv_cache(**(settings | changes))


def test_default_is_a_quarter_of_memory_and_at_most_4_gib() -> None:
    assert plan().num_blocks == 4096
    assert plan(available=8 * GIB).num_blocks == 2048
    assert plan(available=64 * GIB).num_blocks == 4096


def test_no_more_than_all_sequences_could_use() -> None:
    assert plan(max_num_seqs=2).num_blocks == 2 * 128
    assert plan(max_num_seqs=2, model_limit=100).num_blocks == 2 * 7


def test_one_long_sequence_fits_when_the_memory_is_there() -> None:
    long = plan(available=2 * GIB, model_limit=16 * 1600)  # 1600 MiB of blocks, a quarter is 512 MiB
    assert long.num_blocks == 1600 and long.max_model_len == 16 * 1600 and long.message is None


def test_context_is_shortened_with_a_message() -> None:
    short = plan(available=GIB, model_limit=1 << 20)
    assert short.num_blocks == 256 and short.max_model_len == 256 * 16
    assert "4096" in short.message and str(1 << 20) in short.message


def test_a_length_that_was_asked_for_is_not_shortened() -> None:
    with pytest.raises(ValueError, match="max_model_len=4096 or less"):
        plan(available=GIB, model_limit=1 << 20, max_model_len=1 << 20)
    with pytest.raises(ValueError, match="num-gpu-blocks-override"):
        plan(num_blocks=4, max_model_len=100)


def test_asked_for_sizes() -> None:
    assert plan(num_blocks=77, model_limit=100).num_blocks == 77
    assert plan(asked_bytes=GIB).num_blocks == 1024
    with pytest.raises(ValueError, match="TACO_CPU_KVCACHE_SPACE"):
        plan(asked_bytes=20 * GIB)
    with pytest.raises(MemoryError):
        plan(available=1 << 20)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TACO_CPU_KVCACHE_SPACE", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.delenv(name, raising=False)
    assert space_from_environment() is None
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    assert space_from_environment() == 2 * GIB
    monkeypatch.setenv("TACO_CPU_KVCACHE_SPACE", "0.5")
    assert space_from_environment() == GIB // 2
    for wrong in ("many", "-1", "nan"):
        monkeypatch.setenv("TACO_CPU_KVCACHE_SPACE", wrong)
        with pytest.raises(ValueError, match="TACO_CPU_KVCACHE_SPACE"):
            space_from_environment()


def test_container_limits(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 999 kB\nMemAvailable:    8388608 kB\n")  # 8 GiB
    own = tmp_path / "cgroup"
    own.write_text("0::/box/inner\n")
    root = tmp_path / "fs"
    inner = root / "box" / "inner"
    inner.mkdir(parents=True)
    asked = dict(meminfo=meminfo, cgroup_root=root, own_cgroup=own)
    assert available_bytes(**asked) == 8 * GIB
    (inner / "memory.max").write_text("max\n")
    assert available_bytes(**asked) == 8 * GIB
    (root / "box" / "memory.max").write_text(str(2 * GIB))  # the outer one binds
    (root / "box" / "memory.current").write_text(str(GIB))
    (root / "box" / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 2}\n")
    assert available_bytes(**asked) == 2 * GIB - GIB // 2
    v1 = tmp_path / "v1" / "memory" / "docker"
    v1.mkdir(parents=True)
    own.write_text("12:memory:/docker\n")
    (v1 / "memory.limit_in_bytes").write_text(str(GIB))
    (v1 / "memory.usage_in_bytes").write_text("0")
    assert available_bytes(meminfo=meminfo, cgroup_root=tmp_path / "v1", own_cgroup=own) == GIB
