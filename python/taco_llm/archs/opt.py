"""OPT: learned positions (offset 2), ReLU, pre- or (350m) post-norm, token table of another width (350m)."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rules import Rule, WeightRules

RULES = [
    Rule("model.decoder.embed_tokens.weight", ("embed.tokens",)),
    Rule("model.decoder.embed_positions.weight", ("embed.positions",)),
    Rule("model.decoder.project_in.weight", ("embed.project_in",)),
    Rule("model.decoder.project_out.weight", ("embed.project_out",)),
    Rule("model.decoder.layers.{i}.self_attn_layer_norm.*", ("layers.{i}.attn_norm.*",)),
    Rule("model.decoder.layers.{i}.self_attn.q_proj.*", ("layers.{i}.attn.q.*",)),
    Rule("model.decoder.layers.{i}.self_attn.k_proj.*", ("layers.{i}.attn.k.*",)),
    Rule("model.decoder.layers.{i}.self_attn.v_proj.*", ("layers.{i}.attn.v.*",)),
    Rule("model.decoder.layers.{i}.self_attn.out_proj.*", ("layers.{i}.attn.o.*",)),
    Rule("model.decoder.layers.{i}.final_layer_norm.*", ("layers.{i}.ffn_norm.*",)),
    Rule("model.decoder.layers.{i}.fc1.*", ("layers.{i}.ffn.up.*",)),
    Rule("model.decoder.layers.{i}.fc2.*", ("layers.{i}.ffn.down.*",)),
    Rule("model.decoder.final_layer_norm.*", ("final_norm.*",)),
    Rule("lm_head.weight", ("head.weight",)),
]


def opt(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", default=768)
    heads = c.integer("num_attention_heads", default=12)
    layers = c.integer("num_hidden_layers", default=12)
    embed = c.integer("word_embed_proj_dim", default=hidden)
    bias = c.flag("enable_bias", default=True)
    affine = c.flag("layer_norm_elementwise_affine", default=True)
    pre_norm = c.flag("do_layer_norm_before", default=True)
    norm = NormSpec(kind="layer", eps=1e-5, weight=affine, bias=affine)
    has_final = pre_norm and not c.flag("_remove_final_layer_norm", default=False)
    layer = LayerSpec(
        attn_norm=norm,
        ffn_norm=norm,
        residual_post_norm=not pre_norm,
        attn=AttentionSpec(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=divide("hidden_size / num_attention_heads", hidden, heads),
            qkv_bias=bias,
            out_bias=bias,
        ),
        ffn=FfnSpec(
            intermediate=c.integer("ffn_dim", default=3072),
            activation=c.activation("activation_function", default="relu"),
            gated=False,
            bias=bias,
        ),
    )
    spec = ModelSpec(
        architecture="OPTForCausalLM",
        vocab_size=c.integer("vocab_size", default=50272),
        hidden=hidden,
        embed_dim=embed if embed != hidden else 0,
        max_positions=c.integer("max_position_embeddings", default=2048),
        learned_positions=True,
        position_offset=2,
        layers=[layer] * layers,
        final_norm=norm if has_final else NormSpec(),
        tied_head=c.flag("tie_word_embeddings", default=True),
    )
    return spec, WeightRules(RULES, layers, prefix="model.")
