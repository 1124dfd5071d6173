"""StarCoder2: layer norms and biases, grouped attention with a window, a feed-forward without gate."""

from __future__ import annotations

from taco_llm._core import ModelSpec, NormSpec

from .config import Config, windows
from .llama_like import llama_like, weight_rules
from .rules import Rule, WeightRules

RULES = [
    Rule("model.layers.{i}.mlp.c_fc.*", ("layers.{i}.ffn.up.*",)),
    Rule("model.layers.{i}.mlp.c_proj.*", ("layers.{i}.ffn.down.*",)),
]


def starcoder2(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    bias = c.flag("use_bias", default=True)
    window = c.optional_integer("sliding_window")
    spec = llama_like(
        c,
        max_model_len,
        architecture="Starcoder2ForCausalLM",
        hidden=3072,
        intermediate=12288,
        num_layers=30,
        num_heads=24,
        num_kv_heads=2,
        max_positions=4096,
        vocab=49152,
        tied=True,
        act="gelu_pytorch_tanh",
        norm=NormSpec(kind="layer", eps=c.number("norm_epsilon", default=1e-5), bias=True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        layer_windows=lambda n: windows(c, n, window, [True] * n),
        ffn=dict(gated=False),
    )
    return spec, weight_rules(len(spec.layers), RULES)
