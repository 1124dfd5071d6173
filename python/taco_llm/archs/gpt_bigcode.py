"""GPTBigCode (SantaCoder, StarCoder): GPT-2's layers with one key-value head and plain linears."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rules import Rule, WeightRules, grouped_qkv


def gpt_bigcode(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("n_embd", "hidden_size", default=768)
    heads = c.integer("n_head", "num_attention_heads", default=12)
    layers = c.integer("n_layer", "num_hidden_layers", default=12)
    size = divide("n_embd / n_head", hidden, heads)
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_epsilon", default=1e-5), bias=True)
    layer = LayerSpec(
        attn_norm=norm,
        ffn_norm=norm,
        attn=AttentionSpec(
            num_heads=heads,
            num_kv_heads=1 if c.flag("multi_query", default=True) else heads,
            head_dim=size,
            scale=0.0 if c.flag("scale_attn_weights", default=True) else 1.0,
            qkv_bias=True,
            out_bias=True,
        ),
        ffn=FfnSpec(
            intermediate=c.optional_integer("n_inner") or 4 * hidden,
            activation=c.activation("activation_function", default="gelu_pytorch_tanh"),
            gated=False,
            bias=True,
        ),
    )
    spec = ModelSpec(
        architecture="GPTBigCodeForCausalLM",
        vocab_size=c.integer("vocab_size", default=50257),
        hidden=hidden,
        max_positions=c.integer("n_positions", "max_position_embeddings", default=1024),
        learned_positions=True,
        layers=[layer] * layers,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=True),
    )
    rules = [
        Rule("transformer.wte.weight", ("embed.tokens",)),
        Rule("transformer.wpe.weight", ("embed.positions",)),
        Rule("transformer.h.{i}.ln_1.*", ("layers.{i}.attn_norm.*",)),
        Rule(
            "transformer.h.{i}.attn.c_attn.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
            grouped_qkv(size),
        ),
        Rule("transformer.h.{i}.attn.c_proj.*", ("layers.{i}.attn.o.*",)),
        Rule("transformer.h.{i}.ln_2.*", ("layers.{i}.ffn_norm.*",)),
        Rule("transformer.h.{i}.mlp.c_fc.*", ("layers.{i}.ffn.up.*",)),
        Rule("transformer.h.{i}.mlp.c_proj.*", ("layers.{i}.ffn.down.*",)),
        Rule("transformer.ln_f.*", ("final_norm.*",)),
        Rule("lm_head.weight", ("head.weight",)),
    ]
    ignore = (r"transformer\.h\.\d+\.attn\.bias",)  # causal masks of older files
    return spec, WeightRules(rules, layers, prefix="transformer.", ignore=ignore)
