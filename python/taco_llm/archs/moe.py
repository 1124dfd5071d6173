"""Mixtures of experts in the Llama shape: Qwen2-MoE (an expert for all, behind a gate), Qwen3-MoE."""

from __future__ import annotations

from taco_llm._core import ModelSpec, NormSpec

from .config import Config, windows
from .llama_like import QK_NORM_RULES, change_layers, llama_like, weight_rules
from .rules import Rule, WeightRules

EXPERT_RULES = [
    Rule("model.layers.{i}.mlp.gate.weight", ("layers.{i}.moe.router.weight",)),
    *(
        Rule(f"model.layers.{{i}}.mlp.experts.{{e}}.{x}_proj.*", (f"layers.{{i}}.moe.experts.{{e}}.{x}.*",))
        for x in ("gate", "up", "down")
    ),
    # The same with the experts stacked, as transformers 5 has them in memory.
    Rule(
        "model.layers.{i}.mlp.experts.gate_up_proj",
        ("layers.{i}.moe.experts.{e}.gate.weight", "layers.{i}.moe.experts.{e}.up.weight"),
    ),
    Rule("model.layers.{i}.mlp.experts.down_proj", ("layers.{i}.moe.experts.{e}.down.weight",)),
]
SHARED_RULES = [
    Rule("model.layers.{i}.mlp.shared_expert_gate.weight", ("layers.{i}.moe.shared_gate.weight",)),
    *(
        Rule(f"model.layers.{{i}}.mlp.shared_expert.{x}_proj.*", (f"layers.{{i}}.moe.shared.{x}.*",))
        for x in ("gate", "up", "down")
    ),
]


def experts_per_token(c: Config, experts: int, default: int) -> int:
    top_k = c.integer("num_experts_per_tok", default=default)
    if top_k > experts:
        raise ValueError(f"config.json: num_experts_per_tok {top_k} of {experts} experts")
    return top_k


def dense_layers(c: Config, num_layers: int) -> list[int]:
    """The layers without experts: `mlp_only_layers`, and those between every `decoder_sparse_step`-th."""
    step = c.integer("decoder_sparse_step", default=1)
    only = c.raw("mlp_only_layers") or []
    if not isinstance(only, list) or not all(isinstance(i, int) for i in only):
        raise ValueError(f"config.json: mlp_only_layers must be a list of layers, it is {only!r}")
    return [i for i in range(num_layers) if i in only or (i + 1) % step]


def qwen2_moe(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    experts = c.integer("num_experts", default=60)
    sliding = c.flag("use_sliding_window", default=False)
    window = c.integer("sliding_window", default=4096) if sliding else None
    last = c.integer("max_window_layers", default=28, minimum=0)
    spec = llama_like(
        c,
        max_model_len,
        architecture="Qwen2MoeForCausalLM",
        hidden=2048,
        intermediate=5632,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        max_positions=32768,
        vocab=151936,
        qkv_bias=c.flag("qkv_bias", default=True),
        layer_windows=lambda n: windows(
            c, n, window, [sliding and i < last and i % 2 == 0 for i in range(n)]
        ),
        ffn=dict(
            intermediate=c.integer("moe_intermediate_size", default=1408),
            num_experts=experts,
            top_k=experts_per_token(c, experts, 4),
            routing="softmax_topk",
            renormalize=c.flag("norm_topk_prob", default=False),
            shared_intermediate=c.integer("shared_expert_intermediate_size", default=5632),
            shared_gate=True,
        ),
    )
    change_layers(
        spec,
        dense_layers(c, len(spec.layers)),
        "ffn",
        intermediate=c.integer("intermediate_size", default=5632),
        num_experts=0,
        shared_intermediate=0,
        shared_gate=False,
    )
    return spec, weight_rules(len(spec.layers), [*EXPERT_RULES, *SHARED_RULES], experts)


def qwen3_moe(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    experts = c.integer("num_experts", "num_local_experts", default=128)
    sliding = c.flag("use_sliding_window", default=False)
    window = c.integer("sliding_window", default=4096) if sliding else None
    bias = c.flag("attention_bias", default=False)
    spec = llama_like(
        c,
        max_model_len,
        architecture="Qwen3MoeForCausalLM",
        hidden=2048,
        intermediate=6144,
        num_layers=24,
        num_kv_heads=4,
        max_positions=32768,
        vocab=151936,
        qkv_bias=bias,
        out_bias=bias,
        layer_windows=lambda n: windows(c, n, window, [sliding] * n),
        attn=dict(qk_norm=NormSpec(kind="rms", eps=c.number("rms_norm_eps", default=1e-6))),
        ffn=dict(
            intermediate=c.integer("moe_intermediate_size", default=768),
            num_experts=experts,
            top_k=experts_per_token(c, experts, 8),
            routing="softmax_topk",
            renormalize=c.flag("norm_topk_prob", default=False),
        ),
    )
    dense = c.integer("intermediate_size", default=6144)
    change_layers(spec, dense_layers(c, len(spec.layers)), "ffn", intermediate=dense, num_experts=0)
    return spec, weight_rules(len(spec.layers), [*QK_NORM_RULES, *EXPERT_RULES], experts)
