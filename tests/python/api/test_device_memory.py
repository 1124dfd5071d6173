"""The memory plan of a GPU, and `taco_llm plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from taco_llm import EngineArgs, _core, cuda, engine
from taco_llm import plan as planning
from taco_llm.cli import main as cli
from taco_llm.device_memory import (
    CONTEXT_BYTES,
    check_weights,
    graph_bytes,
    kv_block_bytes,
    plan_device_memory,
    spec_weight_bytes,
    step_estimate,
    swap_blocks,
)
from taco_llm.engine import device as devices
from taco_llm.engine.sizes import batched_tokens
from taco_llm.loading import describe, load_model, resolve
from taco_llm.memory import GIB

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TINY = {**LLAMA_8B, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 256, "vocab_size": 512}  # fmt: skip


def folder(tmp_path: Path, config: dict[str, Any]) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def plan(**changes: Any) -> Any:
    settings: dict[str, Any] = dict(
        device="H100", total=80 * GIB, available=64 * GIB, available_before=80 * GIB - CONTEXT_BYTES,
        utilization=0.9, step_bytes=GIB, graph_bytes=GIB // 2, conservative=False, block_bytes=2 << 20,
        block_size=16, model_limit=8192, max_model_len=None, max_num_seqs=256, num_blocks=None,
    )  # fmt: skip
    return plan_device_memory(**(settings | changes))


def test_the_parts_add_up() -> None:
    made = plan()
    assert made.weights == 16 * GIB - CONTEXT_BYTES and made.others == 0
    parts = made.context + made.weights + made.step + made.graphs + made.kv_bytes
    assert parts == made.budget == int(80 * GIB * 0.9)
    assert made.kv.num_blocks == made.kv_bytes // (2 << 20)
    text = str(made)
    assert "80.00 GiB x 0.9 = 72.00" in text and "a step 1.00" in text and "other" not in text


def test_conservative_leaves_the_step_twice() -> None:
    usual, careful = plan(), plan(conservative=True)
    assert usual.kv_bytes - careful.kv_bytes == usual.step
    assert "2 x 1.00" in str(careful)


def test_other_programs_are_not_counted_into_the_part_but_their_memory_is_not_there() -> None:
    shared = plan(utilization=0.4, available_before=40 * GIB, available=36 * GIB)
    assert shared.others == 40 * GIB - CONTEXT_BYTES
    assert shared.kv_bytes == int(80 * GIB * 0.4) - CONTEXT_BYTES - 4 * GIB - GIB - GIB // 2
    full = plan(utilization=0.9, available_before=40 * GIB, available=36 * GIB)
    assert 34 * GIB < full.kv_bytes + full.step + full.graphs < 36 * GIB  # what is free binds


def test_no_more_blocks_than_all_sequences_fill() -> None:
    assert plan(max_num_seqs=2).kv.num_blocks == 2 * 512


def test_what_does_not_fit_says_what_to_change() -> None:
    with pytest.raises(MemoryError, match="raise --gpu-memory-utilization.*lower --max-num-batched-tokens"):
        plan(available=9 * GIB, utilization=0.2)
    with pytest.raises(MemoryError, match="other programs on the GPU"):
        plan(available_before=17 * GIB, available=GIB)
    with pytest.raises(ValueError, match=r"max_model_len=2000000 .*use max_model_len=\d+ or less, or raise"):
        plan(max_model_len=2000000, model_limit=2000000)
    short = plan(model_limit=2000000)
    assert short.kv.max_model_len == short.kv_tokens < 2000000 and "does not fit" in short.kv.message


def test_blocks_that_were_asked_for() -> None:
    assert plan(num_blocks=77, model_limit=1000).kv.num_blocks == 77
    with pytest.raises(ValueError, match="num-gpu-blocks-override"):
        plan(num_blocks=2, max_model_len=100)
    with pytest.raises(MemoryError, match="lower --num-gpu-blocks-override"):
        plan(num_blocks=60000)


def test_weights_that_cannot_fit_are_refused_before_loading() -> None:
    check_weights(16 * GIB, 80 * GIB, 79 * GIB, 0.9, False)
    with pytest.raises(MemoryError, match="--quantization fp8, --cpu-offload-gb or a smaller model"):
        check_weights(140 * GIB, 80 * GIB, 79 * GIB, 0.9, False)
    with pytest.raises(MemoryError, match="raise --gpu-memory-utilization"):
        check_weights(60 * GIB, 80 * GIB, 79 * GIB, 0.5, True)
    with pytest.raises(MemoryError, match="end other programs"):
        check_weights(60 * GIB, 80 * GIB, 20 * GIB, 0.9, True)


def test_swap_space_is_at_most_half_of_the_free_memory() -> None:
    assert swap_blocks(4, 1 << 20, 64 * GIB) == (4096, None)
    number, message = swap_blocks(4, 1 << 20, 2 * GIB)
    assert number == 1024 and "--swap-space" in message
    assert swap_blocks(0, 1 << 20, 64 * GIB) == (0, None)


def test_sizes_of_a_known_model(tmp_path: Path) -> None:
    spec, slots, dtype = describe(resolve(folder(tmp_path, LLAMA_8B), load_format="dummy"))
    assert dtype == "bfloat16"
    table = 128256 * 4096
    products = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    norms = 65 * 4096 * 4
    assert spec_weight_bytes(spec, slots, dtype) == 2 * (2 * table + products) + norms
    assert spec_weight_bytes(spec, slots, dtype, fp8=True) == 4 * table + products + norms
    assert kv_block_bytes(spec, 16, "bfloat16") == 16 * 128 * 1024
    assert kv_block_bytes(spec, 16, "fp8_e4m3") == 16 * 64 * 1024
    assert 0.9 * GIB < step_estimate(spec, dtype, 8192, 256) < 1.1 * GIB  # 0.97 was measured
    assert 0 < graph_bytes(32, 256) < GIB


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": True}, {"torch_dtype": "float16"}])
def test_sizes_are_the_cores(tmp_path: Path, change: dict[str, Any]) -> None:
    checkpoint = resolve(folder(tmp_path, TINY | change), load_format="dummy")
    spec, slots, dtype = describe(checkpoint)
    model = load_model(checkpoint, backend=_core.Backend("cpu", 1), show_progress=False)
    assert sum(_size(shape) for shape in slots.values()) == model.num_parameters
    for block in (8, 16, 32):
        assert kv_block_bytes(spec, block, dtype) == _core.ModelExecutor.block_bytes(model, block)


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def test_plan_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder(tmp_path, LLAMA_8B)
    assert cli.main(["plan", model, "--device-memory-gb", "80"]) == 0
    text = capsys.readouterr().out
    assert "8.03 billion parameters" in text and "128.0 KiB a token" in text and "14.96 GiB" in text
    assert cli.main(["plan", model, "--device-memory-gb", "80", "--json", "--kv-cache-dtype", "fp8"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["kv_bytes_per_token"] == 65536 and made["max_model_len"] == 8192
    spent = made["context_bytes"] + made["weight_bytes"] + made["step_bytes"] + made["graph_bytes"]
    assert spent + made["kv_cache_bytes"] == made["budget_bytes"]
    assert made["num_blocks"] == made["kv_cache_bytes"] // made["kv_block_bytes"]


def test_plan_command_says_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder(tmp_path, LLAMA_8B)
    assert cli.main(["plan", model, "--device-memory-gb", "12"]) == 1
    assert "--quantization fp8" in capsys.readouterr().err
    assert cli.main(["plan", model, "--device-memory-gb", "14", "--quantization", "fp8"]) == 0
    assert cli.main(["plan", model, "--device-memory-gb", "12", "--cpu-offload-gb", "8"]) == 0
    assert cli.main(["plan", model, "--device-memory-gb", "80", "--device", "cpu"]) == 1
    assert "without --device cpu" in capsys.readouterr().err


def test_plan_shows_the_tiers_of_the_prefix_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", folder(tmp_path, TINY), "--device", "cpu"]
    assert cli.main(words) == 0
    assert "prefix" not in capsys.readouterr().out
    words.append("--enable-prefix-caching")
    assert cli.main(words) == 0
    assert "stays in the KV cache until it is evicted" in capsys.readouterr().out
    words += ["--enable-prefix-cache-offload", "--cpu-prefill-memory-utilization", "0.01"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "in memory" in text and "tokens of cold prefixes" in text and "on disk" not in text
    kept = tmp_path / "kv"
    assert (
        cli.main([*words, "--prefix-cache-dir", str(kept), "--prefix-cache-disk-gb", "0.01", "--json"]) == 0
    )
    made = json.loads(capsys.readouterr().out)
    tiers, block = made["prefix_cache"], made["kv_block_bytes"]
    assert tiers["disk_blocks"] == int(0.01 * 2**30) // block and tiers["host_blocks"] > 0
    assert tiers["host_bytes"] == tiers["host_blocks"] * block and not kept.exists()
    assert cli.main([*words, "--prefix-cache-dir", str(tmp_path / "no/kv")]) == 1
    assert "make it" in capsys.readouterr().err


def test_plan_on_the_cpu_is_the_engines(tmp_path: Path) -> None:
    args = EngineArgs(model=folder(tmp_path, TINY), device="cpu", load_format="dummy", max_num_seqs=4)
    made = planning.make(args)
    assert made.memory is None and made.device == "the CPU"
    handle = engine.build(EngineArgs(**(vars(args) | {"skip_tokenizer_init": True})))
    try:
        assert (made.kv.num_blocks, made.kv.max_model_len) == (handle.num_kv_blocks, handle.max_model_len)
    finally:
        handle.shutdown()


def test_the_engine_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that a GPU takes through engine.build, on the CPU's backend."""
    monkeypatch.setattr(cuda, "choose", lambda asked: ("cuda:0", ""))
    monkeypatch.setattr(devices, "make_backend", lambda args, device: _core.Backend("cpu", 1))
    args = EngineArgs(model=folder(tmp_path, TINY), load_format="dummy", skip_tokenizer_init=True,
                      max_num_seqs=4, max_model_len=256, num_gpu_blocks_override=40)  # fmt: skip
    handle = engine.build(args)
    try:
        memory = handle.memory_plan
        assert memory is not None and handle.device == "cuda:0" and handle.dtype == "bfloat16"
        assert handle.num_kv_blocks == 40 == memory.kv.num_blocks
        assert memory.weights >= 0 and memory.utilization == 0.9
    finally:
        handle.shutdown()
    assert batched_tokens(args, 256, "cuda:0") == 8192 and batched_tokens(args, 256) == 2048
