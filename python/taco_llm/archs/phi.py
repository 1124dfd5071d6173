"""Phi 1, 1.5 and 2: attention and feed-forward beside each other behind one layer norm, biases everywhere."""

from __future__ import annotations

from taco_llm._core import ModelSpec, NormSpec

from .config import Config, windows
from .llama_like import MIXTRAL_RULES, llama_like, weight_rules
from .rules import Rule, WeightRules

PHI_RULES = [
    Rule("model.layers.{i}.self_attn.dense.*", ("layers.{i}.attn.o.*",)),
    Rule("model.layers.{i}.mlp.fc1.*", ("layers.{i}.ffn.up.*",)),
    Rule("model.layers.{i}.mlp.fc2.*", ("layers.{i}.ffn.down.*",)),
    Rule("model.layers.{i}.self_attn.q_layernorm.*", ("layers.{i}.attn.q_norm.*",)),
    Rule("model.layers.{i}.self_attn.k_layernorm.*", ("layers.{i}.attn.k_norm.*",)),
    Rule("model.final_layernorm.*", ("final_norm.*",)),
]


def phi(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_eps", default=1e-5), bias=True)
    spec = llama_like(
        c,
        max_model_len,
        architecture="PhiForCausalLM",
        hidden=2048,
        intermediate=8192,
        num_layers=24,
        vocab=51200,
        partial=0.5,
        act="gelu_new",
        norm=norm,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        attn=dict(qk_norm=norm if c.flag("qk_layernorm", default=False) else NormSpec()),
        ffn=dict(gated=False),
        layer=dict(parallel=True, ffn_norm=NormSpec()),
        model=dict(head_bias=True),
    )
    return spec, weight_rules(len(spec.layers), PHI_RULES)


PHI3_RULES = [
    Rule(
        "model.layers.{i}.self_attn.qkv_proj.*",
        ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
    ),
    Rule("model.layers.{i}.mlp.gate_up_proj.*", ("layers.{i}.ffn.gate.*", "layers.{i}.ffn.up.*")),
]


def phi3(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    window = c.optional_integer("sliding_window")
    spec = llama_like(
        c,
        max_model_len,
        architecture="Phi3ForCausalLM",
        hidden=3072,
        intermediate=8192,
        max_positions=4096,
        vocab=32064,
        eps=1e-5,
        layer_windows=lambda n: windows(c, n, window, [True] * n),
    )
    return spec, weight_rules(len(spec.layers), PHI3_RULES)


def phimoe(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    experts = c.integer("num_local_experts", default=16)
    if c.integer("num_experts_per_tok", default=2) != 2:
        raise ValueError("config.json: num_experts_per_tok must be 2, as sparse-mixer routing is defined")
    window = c.optional_integer("sliding_window")
    bias = c.flag("attention_bias", default=False)
    spec = llama_like(
        c,
        max_model_len,
        architecture="PhimoeForCausalLM",
        intermediate=6400,
        num_kv_heads=8,
        max_positions=4096 * 32,
        vocab=32064,
        theta=1e6,
        norm=NormSpec(kind="layer", eps=c.number("rms_norm_eps", default=1e-5), bias=True),
        qkv_bias=bias,
        out_bias=bias,
        layer_windows=lambda n: windows(c, n, window, [True] * n),
        ffn=dict(
            num_experts=experts,
            top_k=2,
            routing="sparse_mixer",
            renormalize=False,
            router_jitter=c.number("router_jitter_noise", default=0.01),
        ),
        model=dict(head_bias=c.flag("lm_head_bias", default=False)),
    )
    rules = [*MIXTRAL_RULES, Rule("model.layers.{i}.mlp.router.weight", ("layers.{i}.moe.router.weight",))]
    return spec, weight_rules(len(spec.layers), rules, experts)
