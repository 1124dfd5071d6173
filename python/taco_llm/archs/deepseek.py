"""DeepSeek-V2 (Lite): k and v of all heads out of one latent, a rotated part of k that the heads share, and
experts of which some are for every token.

The core makes whole heads of the latent and caches them. Its second product takes the latent with the shared
part of k behind it: the matrix copies that part into every head (an identity), and fills the values up to the
keys' width with zeros. The rotated dims come first in a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from taco_llm._core import ModelSpec, NormSpec

from .config import Config
from .llama_like import change_layers, llama_like, weight_rules
from .moe import EXPERT_RULES, experts_per_token
from .rope import make_rope, parameters
from .rules import Cut, Misshapen, Rule, Shape, Tensor, WeightRules

_ONE = {"F32": 0x3F800000, "F16": 0x3C00, "BF16": 0x3F80}


def _check(tensor: Tensor, expected: Shape) -> None:
    if tensor.shape != expected or tensor.format not in _ONE:
        raise Misshapen(f"{expected} unquantised")


def _rotated_first(plain: int, rotated: int) -> Cut:
    """Rows of each head: [plain | rotated] -> [rotated | plain]."""

    def cut(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        _check(tensor, shapes[0])
        heads = tensor.data.reshape(-1, plain + rotated, tensor.shape[1])
        data = np.concatenate([heads[:, plain:], heads[:, :plain]], axis=1)
        return [Tensor(tensor.format, tensor.shape, data.reshape(tensor.shape))]

    return cut


def _expand(heads: int, plain: int, rotated: int, value: int, rank: int) -> Cut:
    """kv_b_proj [heads * (plain + value), rank] -> k and v [heads * (rotated + plain), rank + rotated]."""

    def cut(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        _check(tensor, (heads * (plain + value), rank))
        source = tensor.data.reshape(heads, plain + value, rank)
        k = np.zeros((heads, rotated + plain, rank + rotated), dtype=source.dtype)
        v = np.zeros_like(k)
        k[:, np.arange(rotated), rank + np.arange(rotated)] = _ONE[tensor.format]
        k[:, rotated:, :rank] = source[:, :plain]
        v[:, :value, :rank] = source[:, plain:]
        return [Tensor(tensor.format, shapes[0], x.reshape(shapes[0])) for x in (k, v)]

    return cut


def _padded_columns(heads: int, value: int, width: int) -> Cut:
    """o_proj [hidden, heads * value] -> [hidden, heads * width], zeros behind each head."""

    def cut(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        _check(tensor, (shapes[0][0], heads * value))
        data = np.zeros((shapes[0][0], heads, width), dtype=tensor.data.dtype)
        data[:, :, :value] = tensor.data.reshape(-1, heads, value)
        return [Tensor(tensor.format, shapes[0], data.reshape(shapes[0]))]

    return cut


def deepseek_v2(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    heads = c.integer("num_attention_heads", default=32)
    plain = c.integer("qk_nope_head_dim", default=128)
    rotated = c.integer("qk_rope_head_dim", default=64)
    value = c.integer("v_head_dim", default=128)
    rank = c.integer("kv_lora_rank", default=512)
    q_rank = c.optional_integer("q_lora_rank") if "q_lora_rank" in c.data else 1536
    size = plain + rotated
    if value > size:
        raise ValueError(
            f"config.json: v_head_dim {value} above qk_nope_head_dim + qk_rope_head_dim = {size} "
            "is not supported"
        )
    method = c.text("topk_method", default="greedy")
    if method != "greedy":
        raise ValueError(f"config.json: topk_method {method!r} is not supported; supported: greedy")
    if c.flag("norm_topk_prob", default=False):
        raise ValueError("config.json: norm_topk_prob is not supported for this architecture")
    if c.integer("moe_layer_freq", default=1) != 1:
        raise ValueError("config.json: moe_layer_freq other than 1 is not supported")
    if c.flag("mlp_bias", default=False):
        raise ValueError("config.json: mlp_bias is not supported for this architecture")
    rope = make_rope(
        c,
        head_dim=rotated,
        max_positions=c.integer("max_position_embeddings", default=2048),
        max_model_len=max_model_len,
    )
    rope.spec.interleaved = True
    scale = size**-0.5
    params = parameters(c)
    all_dim, factor = params.get("mscale_all_dim"), params.get("factor")
    if params["rope_type"] != "default" and all_dim and isinstance(factor, (int, float)) and factor > 1:
        scale *= (0.1 * float(all_dim) * math.log(factor) + 1.0) ** 2
    bias = c.flag("attention_bias", default=False)
    experts = c.integer("n_routed_experts", "num_experts", default=64)
    width = c.integer("moe_intermediate_size", default=1407)
    shared = c.integer("n_shared_experts", default=2, minimum=0)
    spec = llama_like(
        # head_dim is the rotated part's there, and rope parameters are for it.
        Config({**c.data, "head_dim": size, "num_key_value_heads": heads, "rope_parameters": {}}),
        max_model_len,
        architecture="DeepseekV2ForCausalLM",
        vocab=102400,
        out_bias=bias,
        attn=dict(
            scale=scale,
            kv_rank=rank,
            kv_extra=rotated,
            q_rank=q_rank or 0,
            latent_norm=NormSpec(kind="rms", eps=1e-6),
            latent_bias=bias,
        ),
        ffn=dict(
            intermediate=width,
            num_experts=experts,
            top_k=experts_per_token(c, experts, 6),
            routing="softmax_topk",
            renormalize=False,
            expert_scale=c.number("routed_scaling_factor", default=1.0),
            shared_intermediate=width * shared,
        ),
        model=dict(ropes=[rope.spec], max_positions=rope.max_positions),
    )
    first = min(c.integer("first_k_dense_replace", default=0, minimum=0), len(spec.layers))
    dense = c.integer("intermediate_size", default=11008)
    change_layers(spec, range(first), "ffn", intermediate=dense, num_experts=0, shared_intermediate=0)
    attn, q = "model.layers.{i}.self_attn.", ("layers.{i}.attn.q.weight",)
    rules = [
        *EXPERT_RULES,
        *(
            Rule(f"model.layers.{{i}}.mlp.shared_experts.{x}_proj.*", (f"layers.{{i}}.moe.shared.{x}.*",))
            for x in ("gate", "up", "down")
        ),
        Rule(attn + "q_proj.weight", q, _rotated_first(plain, rotated)),
        Rule(attn + "q_a_proj.*", ("layers.{i}.attn.q_a.*",)),
        Rule(attn + "q_a_layernorm.weight", ("layers.{i}.attn.q_a_norm.weight",)),
        Rule(attn + "q_b_proj.weight", q, _rotated_first(plain, rotated)),
        Rule(attn + "kv_a_proj_with_mqa.*", ("layers.{i}.attn.kv_a.*",)),
        Rule(attn + "kv_a_layernorm.weight", ("layers.{i}.attn.kv_a_norm.weight",)),
        Rule(
            attn + "kv_b_proj.weight",
            ("layers.{i}.attn.k.weight", "layers.{i}.attn.v.weight"),
            _expand(heads, plain, rotated, value, rank),
        ),
        Rule(attn + "o_proj.weight", ("layers.{i}.attn.o.weight",), _padded_columns(heads, value, size)),
    ]
    return spec, weight_rules(len(spec.layers), rules, experts)
