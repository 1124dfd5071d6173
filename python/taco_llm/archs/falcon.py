"""Falcon: multi-query (7b) or grouped (40b, 180b) attention beside the feed-forward; 1b: ALiBi, in turn."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .alibi import alibi_slopes
from .config import Config, divide
from .rope import make_rope
from .rules import Rule, WeightRules, grouped_qkv


def falcon(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", "n_embed", default=4544)
    heads = c.integer("num_attention_heads", "n_head", default=71)
    layers = c.integer("num_hidden_layers", "n_layer", default=32)
    size = divide("hidden_size / num_attention_heads", hidden, heads)
    new_arch = c.flag("new_decoder_architecture", default=False)
    parallel = c.flag("parallel_attn", default=True) or new_arch
    if new_arch and not c.flag("parallel_attn", default=True):
        raise ValueError("config.json: new_decoder_architecture with parallel_attn false is not supported")
    if new_arch or not c.flag("multi_query", default=True):
        kv_heads = c.integer("num_kv_heads", "n_head_kv", default=heads)
    else:
        kv_heads = 1
    divide("num_attention_heads / num_kv_heads", heads, kv_heads)
    two_norms = new_arch and c.integer("num_ln_in_parallel_attn", default=2) == 2
    bias = c.flag("bias", default=False)
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_epsilon", default=1e-5), bias=True)
    max_positions = c.integer("max_position_embeddings", default=2048)
    alibi = c.flag("alibi", default=False)
    ropes = []
    if alibi:
        max_positions = max(max_positions, max_model_len or 0)
    else:
        rope = make_rope(c, head_dim=size, max_positions=max_positions, max_model_len=max_model_len)
        ropes, max_positions = [rope.spec], rope.max_positions
    layer = LayerSpec(
        attn_norm=norm,
        ffn_norm=norm if two_norms or not parallel else NormSpec(),
        parallel=parallel,
        attn=AttentionSpec(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=size,
            qkv_bias=bias,
            out_bias=bias,
            rope=-1 if alibi else 0,
            # Falcon adds the biases before it divides the scores by sqrt(head_dim).
            alibi_slopes=[s * size**-0.5 for s in alibi_slopes(heads)] if alibi else [],
        ),
        ffn=FfnSpec(
            intermediate=c.integer("ffn_hidden_size", default=4 * hidden),
            activation=c.activation("activation", default="gelu"),
            gated=False,
            bias=bias,
        ),
    )
    spec = ModelSpec(
        architecture="FalconForCausalLM",
        vocab_size=c.integer("vocab_size", default=65024),
        hidden=hidden,
        max_positions=max_positions,
        ropes=ropes,
        layers=[layer] * layers,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=True),
    )
    rules = [
        Rule("transformer.word_embeddings.weight", ("embed.tokens",)),
        Rule(
            "transformer.h.{i}.ln_attn.*" if two_norms else "transformer.h.{i}.input_layernorm.*",
            ("layers.{i}.attn_norm.*",),
        ),
        Rule(
            "transformer.h.{i}.ln_mlp.*" if two_norms else "transformer.h.{i}.post_attention_layernorm.*",
            ("layers.{i}.ffn_norm.*",),
        ),
        Rule(
            "transformer.h.{i}.self_attention.query_key_value.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
            grouped_qkv(size),
        ),
        Rule("transformer.h.{i}.self_attention.dense.*", ("layers.{i}.attn.o.*",)),
        Rule("transformer.h.{i}.mlp.dense_h_to_4h.*", ("layers.{i}.ffn.up.*",)),
        Rule("transformer.h.{i}.mlp.dense_4h_to_h.*", ("layers.{i}.ffn.down.*",)),
        Rule("transformer.ln_f.*", ("final_norm.*",)),
        Rule("lm_head.weight", ("head.weight",)),
    ]
    ignore = (r"transformer\.h\.\d+\.self_attention\.rotary_emb\.inv_freq",)
    return spec, WeightRules(rules, layers, prefix="transformer.", ignore=ignore)
