"""Phi-3-small: attention over blocks of keys in every other layer, a limited gated GELU, muP scalings."""

from __future__ import annotations

from typing import Any

from taco_llm._core import AttentionSpec, FfnSpec, KeyPatternSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rope import make_rope
from .rules import Rule, WeightRules, alternating, grouped_qkv

# Of the published vocabulary: what fills it up, and what it has of its ancestor and never uses.
_VOCAB = 100352
_UNUSED = [100256, 100258, 100259, 100260, 100264, 100265, *range(100267, _VOCAB)]


def _unused_tokens(c: Config, vocab: int) -> list[int]:
    listed = c.raw("dummy_token_indices")
    if listed is None:
        return _UNUSED if vocab == _VOCAB else []
    if not isinstance(listed, list) or not all(type(i) is int and 0 <= i < vocab for i in listed):
        raise ValueError("config.json: dummy_token_indices must be a list of token ids below vocab_size")
    return listed


def _intermediate(c: Config, hidden: int) -> int:
    if c.raw("ff_intermediate_size") is not None or "ff_intermediate_size" not in c.data:
        return c.integer("ff_intermediate_size", default=14336)
    size = c.integer("ff_dim_multiplier") * (hidden // 3) * 2
    return -(-size // 256) * 256 if c.flag("gegelu_pad_to_256", default=True) else size


def _optional(c: Config, name: str, default: float) -> float:
    """A number whose null is none (0), not the default."""
    return c.number(name, default=0.0 if name in c.data else default)


def phi3_small(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", default=4096)
    heads = c.integer("num_attention_heads", default=32)
    kv_heads = c.integer("num_key_value_heads", default=8)
    divide("num_attention_heads / num_key_value_heads", heads, kv_heads)
    size = divide("hidden_size / num_attention_heads", hidden, heads)
    layers = c.integer("num_hidden_layers", default=32)
    vocab = c.integer("vocab_size", default=_VOCAB)
    if c.text("hidden_act", default="gegelu") != "gegelu":
        raise ValueError(f"config.json: hidden_act must be gegelu, it is {c.raw('hidden_act')!r}")

    max_positions = c.integer("max_position_embeddings", default=8192)
    stretch = c.number("rope_position_scale", default=1.0, positive=True)
    if c.raw("rope_parameters", "rope_scaling") is None and stretch != 1.0:
        c = Config({**c.data, "rope_scaling": {"type": "linear", "factor": stretch}})
    rope = make_rope(
        c,
        head_dim=size,
        max_positions=max_positions,
        max_model_len=max_model_len,
        default_theta=c.number("rope_embedding_base", default=1e6, positive=True),
    )

    scale = 0.0
    if c.flag("mup_use_scaling", default=True):
        scale = c.number("mup_attn_multiplier", default=1.0, positive=True) / size
    stride = c.integer("blocksparse_vert_stride", default=8)
    # The heads' columns stand one block apart, or further where there are fewer heads than blocks between.
    same = c.flag("blocksparse_homo_head_pattern", default=False)
    pattern = KeyPatternSpec(
        block=c.integer("blocksparse_block_size", default=64),
        local_blocks=c.integer("blocksparse_num_local_blocks", default=16),
        stride=stride,
        head_step=0 if same else max(1, stride // heads),
    )
    dense_every = int(_optional(c, "dense_attention_every_n_layers", 2))
    attn: dict[str, Any] = dict(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        scale=scale,
        qkv_bias=True,
        out_bias=True,
        rope=0,
    )
    dense, sparse = AttentionSpec(**attn), AttentionSpec(**attn, pattern=pattern)
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_epsilon", default=1e-5), bias=True)
    ffn = FfnSpec(
        intermediate=_intermediate(c, hidden),
        activation="gelu_quick",
        gated=True,
        bias=True,
        gate_limit=_optional(c, "gegelu_limit", 20.0),
        up_offset=1.0,
    )
    width = _optional(c, "mup_width_multiplier", 8.0)
    embedding = _optional(c, "mup_embedding_multiplier", 10.0)
    spec = ModelSpec(
        architecture="Phi3SmallForCausalLM",
        vocab_size=vocab,
        hidden=hidden,
        max_positions=max_positions,
        embed_scale=embedding if embedding > 0 else 1.0,
        ropes=[rope.spec],
        layers=[
            LayerSpec(
                attn_norm=norm,
                ffn_norm=norm,
                attn=dense if dense_every and (i + 1) % dense_every == 0 else sparse,
                ffn=ffn,
            )
            for i in range(layers)
        ],
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=True),
        logit_scale=1.0 / width if width else 1.0,
        unused_tokens=_unused_tokens(c, vocab),
    )
    rules = [
        Rule("model.embed_tokens.weight", ("embed.tokens",)),
        Rule("model.layers.{i}.input_layernorm.*", ("layers.{i}.attn_norm.*",)),
        Rule(
            "model.layers.{i}.self_attn.query_key_value.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
            grouped_qkv(size),
        ),
        Rule("model.layers.{i}.self_attn.dense.*", ("layers.{i}.attn.o.*",)),
        Rule("model.layers.{i}.post_attention_layernorm.*", ("layers.{i}.ffn_norm.*",)),
        Rule("model.layers.{i}.mlp.up_proj.*", ("layers.{i}.ffn.gate.*", "layers.{i}.ffn.up.*"), alternating),
        Rule("model.layers.{i}.mlp.down_proj.*", ("layers.{i}.ffn.down.*",)),
        Rule("model.final_layernorm.*", ("final_norm.*",)),
        Rule("lm_head.weight", ("head.weight",)),
    ]
    ignore = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    return spec, WeightRules(rules, layers, prefix="model.", ignore=ignore)
