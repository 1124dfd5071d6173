"""GPT-NeoX (Pythia): fused per-head query_key_value, partial rotation, parallel or sequential residual."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rope import make_rope
from .rules import Rule, WeightRules, grouped_qkv


def gpt_neox(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", default=6144)
    heads = c.integer("num_attention_heads", default=64)
    layers = c.integer("num_hidden_layers", default=44)
    size = divide("hidden_size / num_attention_heads", hidden, heads)
    rope = make_rope(
        c,
        head_dim=size,
        max_positions=c.integer("max_position_embeddings", default=2048),
        max_model_len=max_model_len,
        partial=c.number("rotary_pct", default=0.25),
    )
    bias = c.flag("attention_bias", default=True)
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_eps", default=1e-5), bias=True)
    layer = LayerSpec(
        attn_norm=norm,
        ffn_norm=norm,
        parallel=c.flag("use_parallel_residual", default=True),
        attn=AttentionSpec(
            num_heads=heads, num_kv_heads=heads, head_dim=size, qkv_bias=bias, out_bias=bias, rope=0
        ),
        ffn=FfnSpec(
            intermediate=c.integer("intermediate_size", default=24576),
            activation=c.activation("hidden_act", default="gelu"),
            gated=False,
            bias=True,
        ),
    )
    spec = ModelSpec(
        architecture="GPTNeoXForCausalLM",
        vocab_size=c.integer("vocab_size", default=50432),
        hidden=hidden,
        max_positions=rope.max_positions,
        ropes=[rope.spec],
        layers=[layer] * layers,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=False),
    )
    rules = [
        Rule("gpt_neox.embed_in.weight", ("embed.tokens",)),
        Rule("gpt_neox.layers.{i}.input_layernorm.*", ("layers.{i}.attn_norm.*",)),
        Rule(
            "gpt_neox.layers.{i}.attention.query_key_value.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
            grouped_qkv(size),
        ),
        Rule("gpt_neox.layers.{i}.attention.dense.*", ("layers.{i}.attn.o.*",)),
        Rule("gpt_neox.layers.{i}.post_attention_layernorm.*", ("layers.{i}.ffn_norm.*",)),
        Rule("gpt_neox.layers.{i}.mlp.dense_h_to_4h.*", ("layers.{i}.ffn.up.*",)),
        Rule("gpt_neox.layers.{i}.mlp.dense_4h_to_h.*", ("layers.{i}.ffn.down.*",)),
        Rule("gpt_neox.final_layer_norm.*", ("final_norm.*",)),
        Rule("embed_out.weight", ("head.weight",)),
    ]
    # Causal masks and frequencies that older files carry as buffers.
    ignore = (r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
    return spec, WeightRules(rules, layers, prefix="gpt_neox.", ignore=ignore)
