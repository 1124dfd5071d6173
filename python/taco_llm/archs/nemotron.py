"""Nemotron: layer norms that multiply by 1 + w, squared ReLU, half of each head rotated."""

from __future__ import annotations

from taco_llm._core import ModelSpec, NormSpec

from .config import Config
from .llama_like import llama_like, weight_rules
from .rules import WeightRules


def nemotron(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    bias = c.flag("attention_bias", default=False)
    spec = llama_like(
        c,
        max_model_len,
        architecture="NemotronForCausalLM",
        hidden=6144,
        intermediate=24576,
        num_heads=48,
        max_positions=4096,
        vocab=256000,
        partial=0.5,
        act="relu2",
        norm=NormSpec(kind="layer", eps=c.number("norm_eps", default=1e-5), bias=True, weight_offset=1.0),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=c.flag("mlp_bias", default=False),
        ffn=dict(gated=False),
    )
    return spec, weight_rules(len(spec.layers))
