"""Bloom: ALiBi, a norm after the embedding, fused per-head query_key_value."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .alibi import alibi_slopes
from .config import Config, divide
from .rules import Rule, WeightRules, grouped_qkv


def bloom(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", "n_embed", default=64)
    heads = c.integer("n_head", "num_attention_heads", default=8)
    layers = c.integer("n_layer", "num_hidden_layers", default=2)
    size = divide("hidden_size / n_head", hidden, heads)
    if c.flag("apply_residual_connection_post_layernorm", default=False):
        raise ValueError("config.json: apply_residual_connection_post_layernorm is not supported")
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_epsilon", default=1e-5), bias=True)
    layer = LayerSpec(
        attn_norm=norm,
        ffn_norm=norm,
        attn=AttentionSpec(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=size,
            qkv_bias=True,
            out_bias=True,
            alibi_slopes=alibi_slopes(heads),
        ),
        ffn=FfnSpec(intermediate=4 * hidden, activation="gelu_tanh", gated=False, bias=True),
    )
    spec = ModelSpec(
        architecture="BloomForCausalLM",
        vocab_size=c.integer("vocab_size", default=250880),
        hidden=hidden,
        # ALiBi has no last position; without seq_length, the context that a longer max_model_len asks for.
        max_positions=max(c.integer("seq_length", default=2048), max_model_len or 0),
        embed_norm=norm,
        layers=[layer] * layers,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=True),
    )
    rules = [
        Rule("transformer.word_embeddings.weight", ("embed.tokens",)),
        Rule("transformer.word_embeddings_layernorm.*", ("embed.norm.*",)),
        Rule("transformer.h.{i}.input_layernorm.*", ("layers.{i}.attn_norm.*",)),
        Rule(
            "transformer.h.{i}.self_attention.query_key_value.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
            grouped_qkv(size),
        ),
        Rule("transformer.h.{i}.self_attention.dense.*", ("layers.{i}.attn.o.*",)),
        Rule("transformer.h.{i}.post_attention_layernorm.*", ("layers.{i}.ffn_norm.*",)),
        Rule("transformer.h.{i}.mlp.dense_h_to_4h.*", ("layers.{i}.ffn.up.*",)),
        Rule("transformer.h.{i}.mlp.dense_4h_to_h.*", ("layers.{i}.ffn.down.*",)),
        Rule("transformer.ln_f.*", ("final_norm.*",)),
        Rule("lm_head.weight", ("head.weight",)),
    ]
    return spec, WeightRules(rules, layers, prefix="transformer.")
