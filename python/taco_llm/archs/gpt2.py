"""GPT-2: learned positions, fused c_attn, linears stored transposed (Conv1D)."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rules import Rule, WeightRules, transposed

RULES = [
    Rule("transformer.wte.weight", ("embed.tokens",)),
    Rule("transformer.wpe.weight", ("embed.positions",)),
    Rule("transformer.h.{i}.ln_1.*", ("layers.{i}.attn_norm.*",)),
    Rule(
        "transformer.h.{i}.attn.c_attn.*",
        ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
        transposed,
    ),
    Rule("transformer.h.{i}.attn.c_proj.*", ("layers.{i}.attn.o.*",), transposed),
    Rule("transformer.h.{i}.ln_2.*", ("layers.{i}.ffn_norm.*",)),
    Rule("transformer.h.{i}.mlp.c_fc.*", ("layers.{i}.ffn.up.*",), transposed),
    Rule("transformer.h.{i}.mlp.c_proj.*", ("layers.{i}.ffn.down.*",), transposed),
    Rule("transformer.ln_f.*", ("final_norm.*",)),
    Rule("lm_head.weight", ("head.weight",)),
]


def gpt2(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("n_embd", "hidden_size", default=768)
    heads = c.integer("n_head", "num_attention_heads", default=12)
    layers = c.integer("n_layer", "num_hidden_layers", default=12)
    size = divide("n_embd / n_head", hidden, heads)
    if c.flag("add_cross_attention", default=False):
        raise ValueError("config.json: GPT-2 with add_cross_attention is not a decoder-only model")
    scale = size**-0.5 if c.flag("scale_attn_weights", default=True) else 1.0
    by_layer = c.flag("scale_attn_by_inverse_layer_idx", default=False)
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_epsilon", default=1e-5), bias=True)
    ffn = FfnSpec(
        intermediate=c.integer("n_inner", default=4 * hidden),
        activation=c.activation("activation_function", default="gelu_new"),
        gated=False,
        bias=True,
    )
    spec = ModelSpec(
        architecture="GPT2LMHeadModel",
        vocab_size=c.integer("vocab_size", default=50257),
        hidden=hidden,
        max_positions=c.integer("n_positions", "max_position_embeddings", default=1024),
        learned_positions=True,
        layers=[
            LayerSpec(
                attn_norm=norm,
                ffn_norm=norm,
                attn=AttentionSpec(
                    num_heads=heads,
                    num_kv_heads=heads,
                    head_dim=size,
                    scale=scale / (i + 1) if by_layer else scale,
                    qkv_bias=True,
                    out_bias=True,
                ),
                ffn=ffn,
            )
            for i in range(layers)
        ],
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=True),
    )
    # Causal masks that older files carry as buffers.
    ignore = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)
    return spec, WeightRules(RULES, layers, prefix="transformer.", ignore=ignore)
