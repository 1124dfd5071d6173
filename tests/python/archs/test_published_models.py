"""Sizes of published models: their config fields, as they stand in config.json, make specs with as many
parameters as the models are known to have. Needs no weights.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from taco_llm import _core
from taco_llm.archs import build_spec

# Fields that have the default of the config class are left out, as transformers 4 wrote them.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "microsoft/phi-2": (
        dict(
            architectures=["PhiForCausalLM"],
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=51200,
            max_position_embeddings=2048,
            partial_rotary_factor=0.4,
            hidden_act="gelu_new",
            rope_theta=10000.0,
            tie_word_embeddings=False,
            qk_layernorm=False,
        ),
        2_779_683_840,
    ),
    "google/gemma-2b": (
        dict(
            architectures=["GemmaForCausalLM"],
            hidden_size=2048,
            intermediate_size=16384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
            vocab_size=256000,
            hidden_act="gelu",
        ),
        2_506_172_416,
    ),
    "bigcode/starcoder2-3b": (
        dict(
            architectures=["Starcoder2ForCausalLM"],
            hidden_size=3072,
            intermediate_size=12288,
            num_hidden_layers=30,
            num_attention_heads=24,
            num_key_value_heads=2,
            vocab_size=49152,
            sliding_window=4096,
            max_position_embeddings=16384,
            rope_theta=999999.4420358813,
        ),
        3_030_371_328,
    ),
    "EleutherAI/gpt-j-6b": (
        dict(
            architectures=["GPTJForCausalLM"],
            n_embd=4096,
            n_head=16,
            n_layer=28,
            n_positions=2048,
            rotary_dim=64,
            vocab_size=50400,
            n_inner=None,
        ),
        6_050_882_784,
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        dict(
            architectures=["Qwen2MoeForCausalLM"],
            hidden_size=2048,
            intermediate_size=5632,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            num_experts=60,
            num_experts_per_tok=4,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
            vocab_size=151936,
        ),
        14_315_784_192,
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        dict(
            architectures=["Phi3ForCausalLM"],
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32064,
            sliding_window=2047,
        ),
        3_821_079_552,
    ),
    "stabilityai/stablelm-3b-4e1t": (
        dict(
            architectures=["StableLmForCausalLM"],
            hidden_size=2560,
            intermediate_size=6912,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=50304,
        ),
        2_795_443_200,
    ),
    "Qwen/Qwen3-0.6B": (
        dict(
            architectures=["Qwen3ForCausalLM"],
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            tie_word_embeddings=True,
        ),
        596_049_920,
    ),
    "google/gemma-3-1b-pt": (
        dict(
            architectures=["Gemma3ForCausalLM"],
            hidden_size=1152,
            intermediate_size=6912,
            num_hidden_layers=26,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            vocab_size=262144,
            sliding_window=512,
            sliding_window_pattern=6,
            rope_local_base_freq=10000,
            rope_theta=1000000,
            query_pre_attn_scalar=256,
        ),
        999_885_952,
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        dict(
            architectures=["DeepseekV2ForCausalLM"],
            hidden_size=2048,
            intermediate_size=10944,
            moe_intermediate_size=1408,
            num_hidden_layers=27,
            num_attention_heads=16,
            num_key_value_heads=16,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            vocab_size=102400,
            topk_method="greedy",
            max_position_embeddings=163840,
            rope_scaling={
                "type": "yarn",
                "factor": 40,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "beta_fast": 32,
                "beta_slow": 1,
                "original_max_position_embeddings": 4096,
            },
        ),
        # In each of 27 layers keys read 64 more columns, values are padded from 128 to 192 dims, outputs too.
        15_706_484_224 + 27 * (2 * 16 * 192 * 576 - 16 * 256 * 512 + 2048 * 16 * 64),
    ),
    "openai/gpt-oss-20b": (
        dict(
            architectures=["GptOssForCausalLM"],
            hidden_size=2880,
            intermediate_size=2880,
            num_hidden_layers=24,
            num_local_experts=32,
            num_experts_per_tok=4,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=64,
            vocab_size=201088,
        ),
        20_914_757_184,
    ),
    "allenai/OLMo-2-1124-7B": (
        dict(
            architectures=["Olmo2ForCausalLM"],
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=100352,
            rope_theta=500000,
        ),
        7_298_617_344,
    ),
    "HuggingFaceTB/SmolLM3-3B": (
        dict(
            architectures=["SmolLM3ForCausalLM"],
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=4,
            vocab_size=128256,
        ),
        3_075_098_624,
    ),
    "microsoft/Phi-3.5-MoE-instruct": (
        dict(
            architectures=["PhiMoEForCausalLM"],
            hidden_size=4096,
            intermediate_size=6400,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=32064,
            num_local_experts=16,
            lm_head_bias=True,
            attention_bias=True,
        ),
        41_873_153_344,
    ),
    "bigcode/starcoder": (
        dict(
            architectures=["GPTBigCodeForCausalLM"],
            n_embd=6144,
            n_head=48,
            n_layer=40,
            n_inner=24576,
            n_positions=8192,
            vocab_size=49152,
            multi_query=True,
        ),
        15_517_456_384,
    ),
    "Qwen/Qwen3-30B-A3B": (
        dict(
            architectures=["Qwen3MoeForCausalLM"],
            hidden_size=2048,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_experts=128,
            num_experts_per_tok=8,
            num_hidden_layers=48,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            vocab_size=151936,
            norm_topk_prob=True,
        ),
        30_532_122_624,
    ),
    "stabilityai/stablelm-2-12b": (
        dict(
            architectures=["StableLmForCausalLM"],
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=100352,
            use_qkv_bias=False,
            use_parallel_residual=True,
            qk_layernorm=True,
            layer_norm_eps=1e-05,
        ),
        12_143_185_920,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    config, count = PUBLISHED[name]
    spec, _ = build_spec(config)
    slots = _core.ModelBuilder(spec, _core.Backend("cpu", 1), "bfloat16").slots()
    assert sum(math.prod(shape) for shape in slots.values()) == count
