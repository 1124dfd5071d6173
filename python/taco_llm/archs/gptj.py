"""GPT-J: attention and feed-forward beside each other behind one norm, interleaved partial rotation."""

from __future__ import annotations

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide
from .rope import make_rope
from .rules import Rule, WeightRules


def gptj(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("n_embd", "hidden_size", default=4096)
    heads = c.integer("n_head", "num_attention_heads", default=16)
    layers = c.integer("n_layer", "num_hidden_layers", default=28)
    size = divide("n_embd / n_head", hidden, heads)
    rope = make_rope(
        c,
        head_dim=size,
        max_positions=c.integer("n_positions", "max_position_embeddings", default=2048),
        max_model_len=max_model_len,
        rotary_dim=c.integer("rotary_dim", default=64),
    )
    rope.spec.interleaved = True
    norm = NormSpec(kind="layer", eps=c.number("layer_norm_epsilon", default=1e-5), bias=True)
    layer = LayerSpec(
        attn_norm=norm,
        parallel=True,
        attn=AttentionSpec(num_heads=heads, num_kv_heads=heads, head_dim=size, rope=0),
        ffn=FfnSpec(
            intermediate=c.optional_integer("n_inner") or 4 * hidden,
            activation=c.activation("activation_function", default="gelu_new"),
            gated=False,
            bias=True,
        ),
    )
    spec = ModelSpec(
        architecture="GPTJForCausalLM",
        vocab_size=c.integer("vocab_size", default=50400),
        hidden=hidden,
        max_positions=rope.max_positions,
        ropes=[rope.spec],
        layers=[layer] * layers,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=False),
        head_bias=True,
    )
    rules = [
        Rule("transformer.wte.weight", ("embed.tokens",)),
        Rule("transformer.h.{i}.ln_1.*", ("layers.{i}.attn_norm.*",)),
        Rule("transformer.h.{i}.attn.q_proj.*", ("layers.{i}.attn.q.*",)),
        Rule("transformer.h.{i}.attn.k_proj.*", ("layers.{i}.attn.k.*",)),
        Rule("transformer.h.{i}.attn.v_proj.*", ("layers.{i}.attn.v.*",)),
        Rule("transformer.h.{i}.attn.out_proj.*", ("layers.{i}.attn.o.*",)),
        Rule("transformer.h.{i}.mlp.fc_in.*", ("layers.{i}.ffn.up.*",)),
        Rule("transformer.h.{i}.mlp.fc_out.*", ("layers.{i}.ffn.down.*",)),
        Rule("transformer.ln_f.*", ("final_norm.*",)),
        Rule("lm_head.*", ("head.*",)),
    ]
    ignore = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)",)  # buffers of older files
    return spec, WeightRules(rules, layers, prefix="transformer.", ignore=ignore)
