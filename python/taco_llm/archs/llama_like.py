"""The Llama shape: RMS norms, rotary attention, gated feed-forward. Llama, Mistral, Qwen2 and Mixtral are
made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taco_llm._core import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec

from .config import Config, divide, head_dim, windows
from .rope import make_rope
from .rules import Rule, WeightRules

RULES = [
    Rule("model.embed_tokens.weight", ("embed.tokens",)),
    Rule("model.layers.{i}.input_layernorm.*", ("layers.{i}.attn_norm.*",)),
    Rule("model.layers.{i}.self_attn.q_proj.*", ("layers.{i}.attn.q.*",)),
    Rule("model.layers.{i}.self_attn.k_proj.*", ("layers.{i}.attn.k.*",)),
    Rule("model.layers.{i}.self_attn.v_proj.*", ("layers.{i}.attn.v.*",)),
    Rule("model.layers.{i}.self_attn.o_proj.*", ("layers.{i}.attn.o.*",)),
    Rule("model.layers.{i}.post_attention_layernorm.*", ("layers.{i}.ffn_norm.*",)),
    Rule("model.layers.{i}.mlp.gate_proj.*", ("layers.{i}.ffn.gate.*",)),
    Rule("model.layers.{i}.mlp.up_proj.*", ("layers.{i}.ffn.up.*",)),
    Rule("model.layers.{i}.mlp.down_proj.*", ("layers.{i}.ffn.down.*",)),
    Rule("model.norm.*", ("final_norm.*",)),
    Rule("lm_head.*", ("head.*",)),
]
QK_NORM_RULES = [
    Rule("model.layers.{i}.self_attn.q_norm.*", ("layers.{i}.attn.q_norm.*",)),
    Rule("model.layers.{i}.self_attn.k_norm.*", ("layers.{i}.attn.k_norm.*",)),
]
IGNORE = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def weight_rules(num_layers: int, extra: Sequence[Rule] = (), num_experts: int = 0) -> WeightRules:
    """RULES and the extra ones, which come last: of two rules for one tensor they win."""
    return WeightRules([*RULES, *extra], num_layers, num_experts, prefix="model.", ignore=IGNORE)


def llama_like(
    c: Config,
    max_model_len: int | None,
    *,
    architecture: str,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    theta: float = 10000.0,
    tied: bool = False,
    num_kv_heads: int | None = None,
    num_layers: int = 32,
    max_positions: int = 2048,
    eps: float = 1e-6,
    hidden: int = 4096,
    intermediate: int = 11008,
    vocab: int = 32000,
    num_heads: int = 32,
    default_head_dim: int | None = None,
    partial: float = 1.0,
    act: str = "silu",
    norm: NormSpec | None = None,
    layer_windows: Callable[[int], list[int]] | None = None,
    attn: dict[str, Any] | None = None,
    ffn: dict[str, Any] | None = None,
    layer: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> ModelSpec:
    """The keywords are what families differ in: structure, and the defaults of their HF config classes.

    num_kv_heads: the default; None: as many as there are heads. default_head_dim: None: hidden / heads.
    partial: the rotated share of a head. norm: None: an RMS norm. attn, ffn, layer, model: overrides of the
    fields of AttentionSpec, FfnSpec, LayerSpec and ModelSpec.
    """
    hidden = c.integer("hidden_size", default=hidden)
    heads = c.integer("num_attention_heads", default=num_heads)
    kv_heads = c.integer("num_key_value_heads", default=num_kv_heads or heads)
    divide("num_attention_heads / num_key_value_heads", heads, kv_heads)
    layers = c.integer("num_hidden_layers", default=num_layers)
    size = c.optional_integer("head_dim") or default_head_dim or head_dim(c, hidden, heads)
    max_positions = c.integer("max_position_embeddings", default=max_positions)
    rope = make_rope(
        c,
        head_dim=size,
        max_positions=max_positions,
        max_model_len=max_model_len,
        default_theta=theta,
        partial=partial,
    )
    norm = norm or NormSpec(kind="rms", eps=c.number("rms_norm_eps", default=eps))
    spec_windows = layer_windows(layers) if layer_windows else [0] * layers
    ffn_fields: dict[str, Any] = dict(
        intermediate=c.integer("intermediate_size", default=intermediate),
        activation=c.activation("hidden_act", default=act),
        gated=True,
        bias=mlp_bias,
    )
    ffn_spec = FfnSpec(**{**ffn_fields, **(ffn or {})})
    attn_fields: dict[str, Any] = dict(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=size, qkv_bias=qkv_bias, out_bias=out_bias, rope=0
    )
    attn_fields |= attn or {}
    layer_fields = dict(attn_norm=norm, ffn_norm=norm, ffn=ffn_spec) | (layer or {})
    model_fields: dict[str, Any] = dict(
        architecture=architecture,
        vocab_size=c.integer("vocab_size", default=vocab),
        hidden=hidden,
        max_positions=rope.max_positions,
        ropes=[rope.spec],
        layers=[
            LayerSpec(attn=AttentionSpec(**attn_fields, window=window), **layer_fields)
            for window in spec_windows
        ],
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", default=tied),
    )
    return ModelSpec(**{**model_fields, **(model or {})})


def change_layers(spec: ModelSpec, indices: Iterable[int], part: str, **fields: Any) -> None:
    """Sets fields of one part ("attn", "ffn") of some layers."""
    layers = spec.layers
    for i in indices:
        changed = getattr(layers[i], part)
        for name, value in fields.items():
            setattr(changed, name, value)
        setattr(layers[i], part, changed)
    spec.layers = layers


def llama(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    if c.integer("pretraining_tp", default=1) != 1 and c.data.get("quantization_config"):
        raise ValueError("config.json: pretraining_tp other than 1 with quantised weights is not supported")
    bias = c.flag("attention_bias", "bias", default=False)
    spec = llama_like(
        c,
        max_model_len,
        architecture="LlamaForCausalLM",
        qkv_bias=bias,
        out_bias=c.flag(
            "attention_out_bias", default=bias
        ),  # GGUF files may have biases for q, k and v alone
        mlp_bias=c.flag("mlp_bias", default=False),
    )
    return spec, weight_rules(len(spec.layers))


def mistral(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    # An absent sliding_window is the HF class's 4096; null is none.
    window = c.optional_integer("sliding_window") if "sliding_window" in c.data else 4096
    spec = llama_like(
        c,
        max_model_len,
        architecture="MistralForCausalLM",
        num_kv_heads=8,
        max_positions=4096 * 32,
        intermediate=14336,
        layer_windows=lambda n: windows(c, n, window, [True] * n),
    )
    return spec, weight_rules(len(spec.layers))


def qwen2(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    sliding = c.flag("use_sliding_window", default=False)
    window = c.integer("sliding_window", default=4096) if sliding else None
    first = c.integer("max_window_layers", default=28, minimum=0)
    spec = llama_like(
        c,
        max_model_len,
        architecture="Qwen2ForCausalLM",
        qkv_bias=True,
        num_kv_heads=32,
        max_positions=32768,
        intermediate=22016,
        vocab=151936,
        layer_windows=lambda n: windows(c, n, window, [sliding and i >= first for i in range(n)]),
    )
    return spec, weight_rules(len(spec.layers))


def xverse(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    spec = llama_like(
        c,
        max_model_len,
        architecture="XverseForCausalLM",
        num_layers=40,
        num_heads=40,
        max_positions=8192,
        hidden=5120,
        intermediate=13824,
        vocab=100278,
    )
    return spec, weight_rules(len(spec.layers))


def qwen3(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    sliding = c.flag("use_sliding_window", default=False)
    window = c.integer("sliding_window", default=4096) if sliding else None
    first = c.integer("max_window_layers", default=28, minimum=0)
    bias = c.flag("attention_bias", default=False)
    spec = llama_like(
        c,
        max_model_len,
        architecture="Qwen3ForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        num_kv_heads=32,
        default_head_dim=128,
        max_positions=32768,
        intermediate=22016,
        vocab=151936,
        layer_windows=lambda n: windows(c, n, window, [sliding and i >= first for i in range(n)]),
        attn=dict(qk_norm=NormSpec(kind="rms", eps=c.number("rms_norm_eps", default=1e-6))),
    )
    return spec, weight_rules(len(spec.layers), QK_NORM_RULES)


MIXTRAL_RULES = [
    Rule("model.layers.{i}.block_sparse_moe.gate.weight", ("layers.{i}.moe.router.weight",)),
    Rule(
        "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight", ("layers.{i}.moe.experts.{e}.gate.weight",)
    ),
    Rule(
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight", ("layers.{i}.moe.experts.{e}.down.weight",)
    ),
    Rule(
        "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight", ("layers.{i}.moe.experts.{e}.up.weight",)
    ),
    # The same with the experts stacked, as transformers 5 names them in memory.
    Rule("model.layers.{i}.mlp.gate.weight", ("layers.{i}.moe.router.weight",)),
    Rule(
        "model.layers.{i}.mlp.experts.gate_up_proj",
        ("layers.{i}.moe.experts.{e}.gate.weight", "layers.{i}.moe.experts.{e}.up.weight"),
    ),
    Rule("model.layers.{i}.mlp.experts.down_proj", ("layers.{i}.moe.experts.{e}.down.weight",)),
]


def mixtral(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    experts = c.integer("num_local_experts", "num_experts", default=8)
    top_k = c.integer("num_experts_per_tok", default=2)
    if top_k > experts:
        raise ValueError(f"config.json: num_experts_per_tok {top_k} of num_local_experts {experts}")
    window = c.optional_integer("sliding_window")
    spec = llama_like(
        c,
        max_model_len,
        architecture="MixtralForCausalLM",
        num_kv_heads=8,
        max_positions=4096 * 32,
        intermediate=14336,
        eps=1e-5,
        theta=1e6,
        layer_windows=lambda n: windows(c, n, window, [True] * n),
        ffn=dict(num_experts=experts, top_k=top_k, routing="softmax_topk", renormalize=True),
    )
    return spec, weight_rules(len(spec.layers), MIXTRAL_RULES, experts)
