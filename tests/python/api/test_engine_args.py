"""EngineArgs: every flag parses, the defaults are vLLM 0.6.1's, what is not built is refused by name."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
from taco_llm import AsyncEngineArgs, EngineArgs
from taco_llm.engine_args import NotBuiltError
from taco_llm.flag_table import flags_of, option_name

# Flag: (default in vLLM 0.6.1.post2, command line words, parsed value, verdict).
# Verdicts: "ok" does something, "note" is accepted with a log line, "no" is refused at start; "cpu note" and
# "cpu no" do so where the model runs on the CPU, and do something on a GPU.
FLAGS = {
    # model
    "tokenizer": (None, "some/where", "some/where", "ok"),
    "skip_tokenizer_init": (False, None, True, "ok"),
    "revision": (None, "main", "main", "ok"),
    "code_revision": (None, "main", "main", "note"),
    "tokenizer_revision": (None, "main", "main", "ok"),
    "tokenizer_mode": ("auto", "slow", "slow", "ok"),
    "trust_remote_code": (False, None, True, "note"),
    "download_dir": (None, "downloads", "downloads", "ok"),
    "load_format": ("auto", "safetensors", "safetensors", "ok"),
    "config_format": ("auto", "hf", "hf", "ok"),
    "dtype": ("auto", "bfloat16", "bfloat16", "ok"),
    "kv_cache_dtype": ("auto", "fp8", "fp8_e4m3", "cpu no"),
    "quantization_param_path": (None, "scales.json", "scales.json", "no"),
    "max_model_len": (None, "512", 512, "ok"),
    "guided_decoding_backend": ("outlines", "lm-format-enforcer", "lm-format-enforcer", "no"),
    "quantization": (None, "gptq", "gptq", "no"),
    "rope_scaling": (
        None,
        '{"type":"dynamic","factor":2.0}',
        {"type": "dynamic", "factor": 2.0},
        "ok",
    ),
    "rope_theta": (None, "1e6", 1e6, "ok"),
    "seed": (0, "7", 7, "ok"),
    "served_model_name": (None, "a b", ["a", "b"], "ok"),
    "model_loader_extra_config": (None, '{"a": 1}', {"a": 1}, "no"),
    "ignore_patterns": (None, "*.pth", ["*.pth"], "ok"),
    "qlora_adapter_name_or_path": (None, "x", "x", "no"),
    # memory and parallelism
    "distributed_executor_backend": (None, "ray", "ray", "no"),
    "worker_use_ray": (False, None, True, "no"),
    "pipeline_parallel_size": (1, "2", 2, "no"),
    "tensor_parallel_size": (1, "2", 2, "no"),
    "max_parallel_loading_workers": (None, "2", 2, "note"),
    "ray_workers_use_nsight": (False, None, True, "no"),
    "block_size": (16, "32", 32, "ok"),
    "enable_prefix_caching": (False, None, True, "ok"),
    "disable_sliding_window": (False, None, True, "ok"),
    "use_v2_block_manager": (False, None, True, "note"),
    "num_lookahead_slots": (0, "4", 4, "note"),
    "swap_space": (4, "8", 8.0, "cpu note"),
    "cpu_offload_gb": (0, "1.5", 1.5, "cpu note"),
    "gpu_memory_utilization": (0.9, "0.5", 0.5, "cpu note"),
    "num_gpu_blocks_override": (None, "100", 100, "ok"),
    "disable_custom_all_reduce": (False, None, True, "note"),
    "device": ("auto", "cuda:1", "cuda:1", "ok"),
    "override_neuron_config": (None, "{}", {}, "no"),
    # scheduling
    "max_num_batched_tokens": (None, "1024", 1024, "ok"),
    "max_num_seqs": (256, "8", 8, "ok"),
    "max_logprobs": (20, "5", 5, "ok"),
    "disable_log_stats": (False, None, True, "ok"),
    "enforce_eager": (None, None, True, "cpu note"),
    "max_context_len_to_capture": (None, "4096", 4096, "cpu note"),
    "max_seq_len_to_capture": (8192, "4096", 4096, "cpu note"),
    "tokenizer_pool_size": (0, "2", 2, "note"),
    "tokenizer_pool_type": ("ray", "other", "other", "note"),
    "tokenizer_pool_extra_config": (None, "{}", {}, "note"),
    "limit_mm_per_prompt": (None, "image=16,video=2", {"image": 16, "video": 2}, "no"),
    "num_scheduler_steps": (1, "8", 8, "note"),
    "scheduler_delay_factor": (0.0, "0.5", 0.5, "no"),
    "enable_chunked_prefill": (None, "false", False, "ok"),
    "preemption_mode": (None, "swap", "swap", "cpu no"),
    "disable_async_output_proc": (False, None, True, "note"),
    "otlp_traces_endpoint": (None, "http://x", "http://x", "no"),
    "collect_detailed_traces": (None, "model", "model", "no"),
    # adapters
    "enable_lora": (False, None, True, "no"),
    "max_loras": (1, "2", 2, "no"),
    "max_lora_rank": (16, "8", 8, "no"),
    "lora_extra_vocab_size": (256, "0", 0, "no"),
    "lora_dtype": ("auto", "float16", "float16", "no"),
    "long_lora_scaling_factors": (None, "1.0,2.0", "1.0,2.0", "no"),
    "max_cpu_loras": (None, "2", 2, "no"),
    "fully_sharded_loras": (False, None, True, "no"),
    "enable_prompt_adapter": (False, None, True, "no"),
    "max_prompt_adapters": (1, "2", 2, "no"),
    "max_prompt_adapter_token": (0, "2", 2, "no"),
    # speculation
    "speculative_model": (None, "[ngram]", "[ngram]", "ok"),
    "speculative_model_quantization": (None, "gptq", "gptq", "no"),
    "num_speculative_tokens": (None, "5", 5, "ok"),
    "speculative_draft_tensor_parallel_size": (None, "1", 1, "note"),
    "speculative_max_model_len": (None, "1", 1, "no"),
    "speculative_disable_by_batch_size": (None, "4", 4, "ok"),
    "ngram_prompt_lookup_max": (None, "4", 4, "ok"),
    "ngram_prompt_lookup_min": (None, "1", 1, "ok"),
    "spec_decoding_acceptance_method": (
        "rejection_sampler",
        "typical_acceptance_sampler",
        "typical_acceptance_sampler",
        "ok",
    ),
    "typical_acceptance_sampler_posterior_threshold": (None, "0.1", 0.1, "ok"),
    "typical_acceptance_sampler_posterior_alpha": (None, "0.1", 0.1, "ok"),
    "disable_logprobs_during_spec_decoding": (None, "true", True, "note"),
    # taco_llm
    "lookahead_cache_config_dir": (None, ".", ".", "ok"),
    "cpu_decoding_memory_utilization": (0.15, "0.2", 0.2, "ok"),
    "ignore_prompt_for_lookahead_cache": (False, None, True, "ok"),
    "lookahead_cache_save": (None, "drafts.bin", "drafts.bin", "ok"),
    "lookahead_cache_save_interval": (10, "0.5", 0.5, "ok"),
    "enable_prefix_cache_offload": (False, None, True, "ok"),
    "cpu_prefill_memory_utilization": (0.3, "0.2", 0.2, "ok"),
    "apc_offload_not_lazy": (False, None, True, "ok"),
    "apc_offload_min_access_threshold": (1, "2", 2, "ok"),
    "apc_offload_enable_hit_cnt": (False, None, True, "ok"),
    "apc_offload_gpu_evictor_limit": (-1, "2", 2, "ok"),
    "prefix_cache_dir": (None, "blocks", "blocks", "ok"),
    "prefix_cache_disk_gb": (16, "0.5", 0.5, "ok"),
    "sequence_parallel_size": (1, "2", 2, "no"),
    "conservative_dry_run": (False, None, True, "cpu note"),
    "cpu_draft_worker": (False, None, True, "no"),
    "batch_invariant": (False, None, True, "cpu no"),
}
NGRAM = {"speculative_model": "[ngram]", "num_speculative_tokens": 5, "ngram_prompt_lookup_max": 4}
LOOKAHEAD = {"lookahead_cache_config_dir": "."}
TYPICAL = {"spec_decoding_acceptance_method": "typical_acceptance_sampler"}
CACHING = {"enable_prefix_caching": True}
OFFLOAD = CACHING | {"enable_prefix_cache_offload": True}
# What a flag must stand beside to be of use.
COMPANY = {
    "spec_decoding_acceptance_method": NGRAM,
    "typical_acceptance_sampler_posterior_threshold": NGRAM | TYPICAL,
    "typical_acceptance_sampler_posterior_alpha": LOOKAHEAD | TYPICAL,
    **dict.fromkeys((*NGRAM, "ngram_prompt_lookup_min", "speculative_disable_by_batch_size"), NGRAM),
    **dict.fromkeys(("cpu_decoding_memory_utilization", "ignore_prompt_for_lookahead_cache"), LOOKAHEAD),
    **dict.fromkeys(("lookahead_cache_save", "lookahead_cache_save_interval"), LOOKAHEAD),
    **dict.fromkeys(("apc_offload_enable_hit_cnt", "apc_offload_gpu_evictor_limit"), CACHING),
    "enable_prefix_cache_offload": CACHING,
    **dict.fromkeys(
        ("cpu_prefill_memory_utilization", "apc_offload_not_lazy", "apc_offload_min_access_threshold"),
        OFFLOAD,
    ),
    "prefix_cache_dir": OFFLOAD,
    "prefix_cache_disk_gb": OFFLOAD | {"prefix_cache_dir": "blocks"},
}
OWN = {"model", "scheduling_policy", "threads"}  # not in the list above, or with a default of their own


def parse(*words: str) -> EngineArgs:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    EngineArgs.add_cli_args(parser)
    return EngineArgs.from_cli_args(parser.parse_args(words))


def test_the_list_is_complete() -> None:
    assert {field.name for field in dataclasses.fields(EngineArgs)} == set(FLAGS) | OWN
    assert {field.name for field, _ in flags_of(EngineArgs)} == set(FLAGS) | OWN


@pytest.mark.parametrize("name", FLAGS)
def test_default_is_vllms(name: str) -> None:
    default = FLAGS[name][0]
    assert getattr(EngineArgs(), name) == default
    assert getattr(parse(), name) == default


def test_own_defaults() -> None:
    assert EngineArgs().model is None and EngineArgs().threads == 0
    assert EngineArgs().scheduling_policy == "fcfs"


@pytest.mark.parametrize("name", FLAGS)
def test_flag_parses(name: str) -> None:
    _, words, value, _ = FLAGS[name]
    given = words.split() if words and name == "served_model_name" else [words] if words else []
    args = parse(option_name(name), *given)
    assert getattr(args, name) == value


@pytest.mark.parametrize("name", FLAGS)
def test_verdict(name: str) -> None:
    """What is not built is refused by its flag's name; what changes nothing says so; the rest is silent."""
    _, _, value, verdict = FLAGS[name]
    args = EngineArgs(**COMPANY.get(name, {}) | {name: value})
    if verdict == "no":
        with pytest.raises(NotBuiltError) as error:
            args.check()
        assert option_name(name) in str(error.value)
        return
    args.check()
    args.check("cuda:0")
    if verdict == "cpu no":
        with pytest.raises(NotBuiltError) as error:
            args.check("cpu")
        assert option_name(name) in str(error.value)
        assert args.notes("cuda:0") == []
        return
    args.check("cpu")
    for device in ("cpu", "cuda:0"):
        notes = "\n".join(args.notes(device))
        assert (option_name(name) in notes or name == "max_context_len_to_capture" and notes != "") == (
            verdict == "note" or (verdict == "cpu note" and device == "cpu")
        )


def test_defaults_are_neither_refused_nor_noted() -> None:
    args = EngineArgs()
    for device in (None, "cpu", "cuda:0"):
        args.check(device)
        assert args.notes(device) == []


def test_a_device_named_cpu_settles_it() -> None:
    """Nothing has to be found out before what the CPU cannot do is refused."""
    with pytest.raises(NotBuiltError, match="GPU"):
        EngineArgs(device="cpu", quantization="fp8").check()
    EngineArgs(device="cuda", quantization="fp8").check()
    with pytest.raises(NotBuiltError, match="awq"):
        EngineArgs(device="cuda", quantization="awq").check()


@pytest.mark.parametrize("short, name, value", [
    ("-tp", "tensor_parallel_size", 2), ("-pp", "pipeline_parallel_size", 2),
    ("-spec-draft-tp", "speculative_draft_tensor_parallel_size", 2),
])  # fmt: skip
def test_short_flags(short: str, name: str, value: int) -> None:
    assert getattr(parse(short, str(value)), name) == value
    assert parse("-q", "awq").quantization == "awq"


def test_load_format_typos_of_the_product_document() -> None:
    assert parse("--load-format", "np-cache").load_format == "npcache"
    assert parse("--load-format", "tokenizer").load_format == "tensorizer"
    args = EngineArgs(load_format="np-cache")
    args.check()
    assert args.load_format == "npcache"


@pytest.mark.parametrize("settings, words", [
    ({"device": "tpu"}, "cpu"), ({"device": "neuron"}, "cpu"), ({"device": "openvino"}, "cpu"),
    ({"device": "xpu"}, "cpu"),
    ({"quantization": "neuron_quant"}, "GGUF"), ({"quantization": "tpu_int8"}, "GGUF"),
    ({"quantization": "deepspeedfp"}, "GGUF"), ({"quantization": "fp8", "device": "cpu"}, "GGUF"),
    ({"load_format": "tensorizer"}, "safetensors"), ({"load_format": "sharded_state"}, "safetensors"),
    ({"load_format": "bitsandbytes"}, "safetensors"), ({"load_format": "mistral"}, "safetensors"),
    ({"config_format": "mistral"}, "config.json"), ({"override_neuron_config": {"a": 1}}, "cpu"),
    ({"ray_workers_use_nsight": True}, "Ray"), ({"kv_cache_dtype": "fp8_e5m2", "device": "cpu"}, "auto"),
])  # fmt: skip
def test_refusals_name_an_alternative(settings: dict, words: str) -> None:
    with pytest.raises(NotBuiltError, match=words):
        EngineArgs(**settings).check()


def test_aliases() -> None:
    assert EngineArgs(worker_use_ray=True).distributed_executor_backend == "ray"
    assert EngineArgs(max_context_len_to_capture=99).max_seq_len_to_capture == 99


def test_harmless_values_pass() -> None:
    EngineArgs(swap_space=0, quantization="gguf", device="cpu", preemption_mode="recompute").check()
    EngineArgs(distributed_executor_backend="mp", lora_dtype="auto", max_num_batched_tokens=256).check()


def test_dtype_spellings() -> None:
    for given, meant in (("half", "float16"), ("float", "float32"), ("auto", "auto")):
        args = EngineArgs(dtype=given)
        args.check()
        assert args.dtype == meant


@pytest.mark.parametrize("settings, words", [
    ({"dtype": "flaot32"}, "float32"), ({"block_size": 17}, "8, 16, 32"),
    ({"max_model_len": 0}, "1 or more"),
    ({"max_num_seqs": 0}, "1 or more"), ({"max_num_seqs": "8"}, "whole number"),
    ({"gpu_memory_utilization": 1.5}, "at most 1"), ({"swap_space": -1}, "0 or more"),
    ({"seed": -1}, "0 to"),
    ({"rope_theta": 0.0}, "above 0"), ({"rope_scaling": "x"}, "dict"),
    ({"max_model_len": True}, "whole number"),
    ({"max_num_batched_tokens": 100}, "at least max_num_seqs=256"),
    ({"device": "cuda:"}, "did you mean"), ({"device": "cuda:x"}, "cuda"),
    ({"enable_chunked_prefill": "no"}, "True, False"), ({"threads": -2}, "0"),
])  # fmt: skip
def test_bad_values(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        EngineArgs(**settings).check()
    assert next(iter(settings)) in str(error.value)


def test_async_engine_args() -> None:
    assert AsyncEngineArgs().disable_log_requests is False
    parser = argparse.ArgumentParser()
    AsyncEngineArgs.add_cli_args(parser)
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(["--disable-log-requests", "--seed", "3"]))
    assert isinstance(args, AsyncEngineArgs) and args.disable_log_requests and args.seed == 3


def test_help_lists_every_flag() -> None:
    parser = argparse.ArgumentParser(prog="x")
    EngineArgs.add_cli_args(parser)
    text = parser.format_help()
    assert all(option_name(name) in text for name in FLAGS)
