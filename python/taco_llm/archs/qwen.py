"""Qwen, the first: Llama with biases at q, k and v. Beyond its trained length the rotation's base grows with
the context (dynamic NTK, in powers of two) and queries with the logarithm of their position.

As for every dynamic scaling (rope.py) the base is fixed at the length that is served.
"""

from __future__ import annotations

import math

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rope import make_rope
from .rules import Rule, WeightRules


def ntk_alpha(length: int, trained: int) -> int:
    """What the base is multiplied by (before the power) for a context of `length`: 1, 3, 7, 15, ... for up to
    1, 2, 4, 8, ... times the trained length."""
    return max(1, int(2 ** math.ceil(math.log2(length / trained) + 1)) - 1)


def qwen(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", default=4096)
    heads = c.integer("num_attention_heads", default=32)
    layers = c.integer("num_hidden_layers", default=32)
    size = c.integer("kv_channels", default=128)
    if heads * size != hidden:
        raise ValueError(
            f"config.json: num_attention_heads {heads} of kv_channels {size} are not hidden_size {hidden}"
        )
    trained = c.integer("seq_length", "max_position_embeddings", default=8192, minimum=2)
    length = max(trained, max_model_len or 0)
    partial = c.number("rotary_pct", default=1.0, positive=True)
    dim = int(size * partial)
    served = trained
    if c.raw("rope_parameters", "rope_scaling") is None and c.flag("use_dynamic_ntk", default=True):
        base = c.number("rotary_emb_base", "rope_theta", default=10000.0, positive=True)
        base *= ntk_alpha(length, trained) ** (dim / max(dim - 2, 1))
        c = Config({**c.data, "rope_theta": base})
        served = length
    rope = make_rope(c, head_dim=size, max_positions=served, max_model_len=max_model_len, partial=partial)
    bias = not c.flag("no_bias", default=True)
    norm = NormSpec(kind="rms", eps=c.number("layer_norm_epsilon", default=1e-6))
    layer = LayerSpec(
        attn_norm=norm,
        ffn_norm=norm,
        attn=AttentionSpec(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=size,
            scale=0.0 if c.flag("scale_attn_weights", default=True) else 1.0,
            qkv_bias=True,
            out_bias=bias,
            rope=0,
            log_length=trained if c.flag("use_logn_attn", default=True) else 0,
        ),
        ffn=FfnSpec(
            intermediate=divide("intermediate_size", c.integer("intermediate_size", default=22016), 2),
            activation="silu",
            gated=True,
            bias=bias,
        ),
    )
    spec = ModelSpec(
        architecture="QWenLMHeadModel",
        vocab_size=c.integer("vocab_size", "padded_vocab_size", default=151936),
        hidden=hidden,
        max_positions=rope.max_positions,
        ropes=[rope.spec],
        layers=[layer] * layers,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=False),
    )
    rules = [
        Rule("transformer.wte.weight", ("embed.tokens",)),
        Rule("transformer.h.{i}.ln_1.*", ("layers.{i}.attn_norm.*",)),
        Rule(
            "transformer.h.{i}.attn.c_attn.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
        ),
        Rule("transformer.h.{i}.attn.c_proj.*", ("layers.{i}.attn.o.*",)),
        Rule("transformer.h.{i}.ln_2.*", ("layers.{i}.ffn_norm.*",)),
        Rule("transformer.h.{i}.mlp.w1.*", ("layers.{i}.ffn.up.*",)),
        Rule("transformer.h.{i}.mlp.w2.*", ("layers.{i}.ffn.gate.*",)),
        Rule("transformer.h.{i}.mlp.c_proj.*", ("layers.{i}.ffn.down.*",)),
        Rule("transformer.ln_f.*", ("final_norm.*",)),
        Rule("lm_head.weight", ("head.weight",)),
    ]
    ignore = (
        r"transformer\.rotary_emb\.inv_freq",
        r"transformer\.h\.\d+\.attn\.(masked_bias|bias|logn_tensor)",
    )
    return spec, WeightRules(rules, layers, prefix="transformer.", ignore=ignore)
