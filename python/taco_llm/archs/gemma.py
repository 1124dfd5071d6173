"""Gemma: norms with weight + 1, a scaled embedding, a gated feed-forward with tanh GELU. Gemma 2: sandwich
norms, softcaps, alternating windows as well. Gemma 3 (text): five local layers for each global one, with a
rotation each, norms of q and k, no softcaps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide, windows
from .llama_like import IGNORE, QK_NORM_RULES, RULES, change_layers, llama_like, weight_rules
from .rope import make_rope
from .rules import Rule, WeightRules

GEMMA2_RULES = [
    *(r for r in RULES if "post_attention_layernorm" not in r.name),
    Rule("model.layers.{i}.post_attention_layernorm.weight", ("layers.{i}.post_attn_norm.weight",)),
    Rule("model.layers.{i}.pre_feedforward_layernorm.weight", ("layers.{i}.ffn_norm.weight",)),
    Rule("model.layers.{i}.post_feedforward_layernorm.weight", ("layers.{i}.post_ffn_norm.weight",)),
]


def embed_scale(hidden: int, dtype: str) -> float:
    """sqrt(hidden), rounded to the checkpoint's dtype: transformers keeps the factor in it."""
    scale = np.float32(hidden**0.5)
    if dtype == "float16":
        return float(np.float16(scale))
    if dtype == "bfloat16":
        bits = int(scale.view(np.uint32))
        return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))
    return float(scale)


def plus_one_norm(c: Config) -> NormSpec:
    # GGUF files have the 1 in the weights already.
    offset = c.number("norm_weight_offset", default=1.0)
    return NormSpec(kind="rms", eps=c.number("rms_norm_eps", default=1e-6), weight_offset=offset)


def gemma(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    bias = c.flag("attention_bias", default=False)
    activation = c.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    spec = llama_like(
        c,
        max_model_len,
        architecture="GemmaForCausalLM",
        hidden=3072,
        intermediate=24576,
        num_layers=28,
        num_heads=16,
        num_kv_heads=16,
        default_head_dim=256,
        max_positions=8192,
        vocab=256000,
        tied=True,
        norm=plus_one_norm(c),
        act="gelu_pytorch_tanh",
        qkv_bias=bias,
        out_bias=bias,
        # The first files say "gelu" and mean its tanh form.
        ffn=dict(activation="gelu_tanh" if activation == "gelu" else activation),
    )
    spec.embed_scale = embed_scale(spec.hidden, c.text("dtype", "torch_dtype", default="float32"))
    return spec, weight_rules(len(spec.layers))


def gemma2(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", default=2304)
    heads = c.integer("num_attention_heads", default=8)
    kv_heads = c.integer("num_key_value_heads", default=4)
    divide("num_attention_heads / num_key_value_heads", heads, kv_heads)
    size = c.integer("head_dim", default=256)
    layers = c.integer("num_hidden_layers", default=26)
    window = c.optional_integer("sliding_window") if "sliding_window" in c.data else 4096
    layer_windows = windows(c, layers, window, [i % 2 == 0 for i in range(layers)])
    rope = make_rope(
        c,
        head_dim=size,
        max_positions=c.integer("max_position_embeddings", default=8192),
        max_model_len=max_model_len,
    )
    bias = c.flag("attention_bias", default=False)
    norm = plus_one_norm(c)
    ffn = FfnSpec(
        intermediate=c.integer("intermediate_size", default=9216),
        activation=c.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
        gated=True,
    )
    spec = ModelSpec(
        architecture="Gemma2ForCausalLM",
        vocab_size=c.integer("vocab_size", default=256000),
        hidden=hidden,
        max_positions=rope.max_positions,
        embed_scale=embed_scale(hidden, c.text("dtype", "torch_dtype", default="float32")),
        ropes=[rope.spec],
        layers=[
            LayerSpec(
                attn_norm=norm,
                post_attn_norm=norm,
                ffn_norm=norm,
                post_ffn_norm=norm,
                attn=AttentionSpec(
                    num_heads=heads,
                    num_kv_heads=kv_heads,
                    head_dim=size,
                    scale=c.number("query_pre_attn_scalar", default=256, positive=True) ** -0.5,
                    qkv_bias=bias,
                    out_bias=bias,
                    window=layer_windows[i],
                    # null: no cap
                    softcap=c.number("attn_logit_softcapping", default=0.0)
                    if "attn_logit_softcapping" in c.data
                    else 50.0,
                    rope=0,
                ),
                ffn=ffn,
            )
            for i in range(layers)
        ],
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=True),
        logit_softcap=c.number("final_logit_softcapping", default=0.0)
        if "final_logit_softcapping" in c.data
        else 30.0,
    )
    return spec, WeightRules(GEMMA2_RULES, layers, prefix="model.", ignore=IGNORE)


def _of_layers(c: Config, kind: str) -> Config:
    """The config as layers of one kind see it: `rope_parameters` by kind, or the older flat fields."""
    params = c.raw("rope_parameters", "rope_scaling")
    nested = isinstance(params, Mapping) and any(isinstance(v, Mapping) for v in params.values())
    theta = c.number("rope_theta", default=1e6)
    if kind == "sliding_attention":
        theta = c.number("rope_local_base_freq", default=10000.0)
    if nested:
        params = params.get(kind)
    elif kind == "sliding_attention":
        params = None  # scaling is for the global layers
    return Config({**c.data, "rope_parameters": params, "rope_scaling": None, "rope_theta": theta})


def gemma3(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    if c.flag("use_bidirectional_attention", default=False):
        raise ValueError("config.json: use_bidirectional_attention: this is no causal language model")
    bias = c.flag("attention_bias", default=False)
    window = c.optional_integer("sliding_window") if "sliding_window" in c.data else 4096
    pattern = c.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    norm = plus_one_norm(c)
    spec = llama_like(
        _of_layers(c, "full_attention"),
        max_model_len,
        architecture="Gemma3ForCausalLM",
        hidden=2304,
        intermediate=9216,
        num_layers=26,
        num_heads=8,
        num_kv_heads=4,
        default_head_dim=256,
        max_positions=131072,
        vocab=262208,
        tied=True,
        norm=norm,
        act="gelu_pytorch_tanh",
        qkv_bias=bias,
        out_bias=bias,
        layer_windows=lambda n: windows(c, n, window, [(i + 1) % pattern > 0 for i in range(n)]),
        attn=dict(
            qk_norm=norm,
            scale=c.number("query_pre_attn_scalar", default=256, positive=True) ** -0.5,
            softcap=c.number("attn_logit_softcapping", default=0.0),
        ),
        ffn=dict(activation=c.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")),
        layer=dict(post_attn_norm=norm, post_ffn_norm=norm),
        model=dict(logit_softcap=c.number("final_logit_softcapping", default=0.0)),
    )
    spec.embed_scale = embed_scale(spec.hidden, c.text("dtype", "torch_dtype", default="float32"))
    local = make_rope(
        _of_layers(c, "sliding_attention"),
        head_dim=spec.layers[0].attn.head_dim,
        max_positions=spec.max_positions,
        max_model_len=max_model_len,
    )
    spec.ropes = [*spec.ropes, local.spec]
    change_layers(spec, [i for i, layer in enumerate(spec.layers) if layer.attn.window], "attn", rope=1)
    return spec, WeightRules(
        [*GEMMA2_RULES, *QK_NORM_RULES], len(spec.layers), prefix="model.", ignore=IGNORE
    )
