"""ChatGLM 2 and 3, GLM-4: interleaved rotation of the first half of each head, fused q|k|v and gate|up."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rope import make_rope
from .rules import Rule, WeightRules, grouped_qkv, stacked


def chatglm(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", default=4096)
    heads = c.integer("num_attention_heads", default=32)
    layers = c.integer("num_layers", default=28)
    size = c.integer("kv_channels", default=128)
    grouped = c.flag("multi_query_attention", default=False)
    kv_heads = c.integer("multi_query_group_num", default=1) if grouped else heads
    divide("num_attention_heads / multi_query_group_num", heads, kv_heads)
    if c.flag("apply_residual_connection_post_layernorm", default=False):
        raise ValueError("config.json: apply_residual_connection_post_layernorm is not supported")
    if c.integer("quantization_bit", default=0, minimum=0):
        raise ValueError("config.json: quantization_bit: quantised ChatGLM checkpoints are not supported")
    # What rope_ratio means changed without another field: the second model's long-context checkpoint divides
    # positions by it, later ones multiply the base.
    theta, ratio = 10000.0, c.number("rope_ratio", default=1.0, positive=True)
    own_ratio = c.raw("rope_parameters", "rope_scaling") is None  # seq_length has it in already
    if "chatglm2" not in c.text("_name_or_path", default="").lower():
        theta *= ratio
    elif own_ratio:
        c = Config({**c.data, "rope_scaling": {"type": "linear", "factor": ratio}})
    max_positions = c.integer("seq_length", default=2048)
    rope = make_rope(
        c,
        head_dim=size,
        max_positions=max_positions,
        max_model_len=max_model_len,
        default_theta=theta,
        partial=0.5,
    )
    rope.spec.interleaved = True
    bias = c.flag("add_bias_linear", default=False)
    norm = NormSpec(
        kind="rms" if c.flag("rmsnorm", default=True) else "layer",
        eps=c.number("layernorm_epsilon", default=1e-5),
        bias=not c.flag("rmsnorm", default=True),
    )
    layer = LayerSpec(
        attn_norm=norm,
        ffn_norm=norm,
        attn=AttentionSpec(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=size,
            qkv_bias=bias or c.flag("add_qkv_bias", default=False),
            out_bias=bias,
            rope=0,
        ),
        ffn=FfnSpec(
            intermediate=c.integer("ffn_hidden_size", default=13696),
            activation="silu",
            gated=True,
            bias=bias,
        ),
    )
    spec = ModelSpec(
        architecture="ChatGLMModel",
        vocab_size=c.integer("padded_vocab_size", "vocab_size", default=65024),
        hidden=hidden,
        max_positions=max_positions if own_ratio else rope.max_positions,
        ropes=[rope.spec],
        layers=[layer] * layers,
        final_norm=norm if c.flag("post_layer_norm", default=True) else NormSpec(),
        tied_head=c.flag("tie_word_embeddings", default=False),
    )
    layer_name = "transformer.encoder.layers.{i}."
    rules = [
        Rule("transformer.embedding.word_embeddings.weight", ("embed.tokens",)),
        Rule(layer_name + "input_layernorm.*", ("layers.{i}.attn_norm.*",)),
        Rule(
            layer_name + "self_attention.query_key_value.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
            stacked if grouped else grouped_qkv(size),
        ),
        Rule(layer_name + "self_attention.dense.*", ("layers.{i}.attn.o.*",)),
        Rule(layer_name + "post_attention_layernorm.*", ("layers.{i}.ffn_norm.*",)),
        Rule(layer_name + "mlp.dense_h_to_4h.*", ("layers.{i}.ffn.gate.*", "layers.{i}.ffn.up.*")),
        Rule(layer_name + "mlp.dense_4h_to_h.*", ("layers.{i}.ffn.down.*",)),
        Rule("transformer.encoder.final_layernorm.*", ("final_norm.*",)),
        Rule("transformer.output_layer.weight", ("head.weight",)),
    ]
    ignore = (r"transformer\.rotary_pos_emb\.inv_freq",)
    return spec, WeightRules(rules, layers, prefix="transformer.", ignore=ignore)
