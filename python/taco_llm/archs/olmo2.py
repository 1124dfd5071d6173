"""OLMo 2: norms behind attention and feed-forward instead of before them, q and k normed over all heads."""

from __future__ import annotations

from taco_llm._core import ModelSpec, NormSpec

from .config import Config
from .llama_like import QK_NORM_RULES, llama_like, weight_rules
from .rules import Rule, WeightRules

RULES = [
    *QK_NORM_RULES,
    Rule("model.layers.{i}.post_attention_layernorm.weight", ("layers.{i}.post_attn_norm.weight",)),
    Rule("model.layers.{i}.post_feedforward_layernorm.weight", ("layers.{i}.post_ffn_norm.weight",)),
]


def olmo2(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    bias = c.flag("attention_bias", default=False)
    norm = NormSpec(kind="rms", eps=c.number("rms_norm_eps", default=1e-5))
    spec = llama_like(
        c,
        max_model_len,
        architecture="Olmo2ForCausalLM",
        vocab=50304,
        norm=norm,
        qkv_bias=bias,
        out_bias=bias,
        attn=dict(qk_norm=norm, qk_norm_scope="all_heads"),
        layer=dict(attn_norm=NormSpec(), ffn_norm=NormSpec(), post_attn_norm=norm, post_ffn_norm=norm),
    )
    return spec, weight_rules(len(spec.layers), RULES)
