"""GPT-OSS: a mixture in every layer, whose experts have biases and limited gates; attention sinks; a window
in every other layer. The experts of released checkpoints are MXFP4; loading makes bfloat16 of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from taco_llm._core import ModelSpec

from .config import Config, windows
from .llama_like import llama_like, weight_rules
from .moe import experts_per_token
from .rules import Cut, Misshapen, Rule, Shape, Tensor, WeightRules

YARN = dict(
    rope_type="yarn",
    factor=32.0,
    beta_fast=32.0,
    beta_slow=1.0,
    truncate=False,
    original_max_position_embeddings=4096,
)


def stacked_experts(parts: int, transpose: bool) -> Cut:
    """[experts, ...] -> for each expert `parts` slots whose rows take turns (gate, up, gate, ...).

    transpose: each expert's matrix is [in, out].
    """

    def cut(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        experts, rows = len(shapes) // parts, parts * shapes[0][0]
        expected = (experts, rows, *shapes[0][1:])
        if transpose:
            expected = (experts, *shapes[0][1:], rows)
        if tensor.quantized or tensor.shape != expected:
            raise Misshapen(f"{expected}")
        data = tensor.data.swapaxes(1, 2) if transpose else tensor.data
        return [
            Tensor(tensor.format, shapes[0], data[e, part::parts])
            for e in range(experts)
            for part in range(parts)
        ]

    return cut


_GATE_UP = tuple(f"layers.{{i}}.moe.experts.{{e}}.{x}." for x in ("gate", "up"))
_DOWN = ("layers.{i}.moe.experts.{e}.down.",)


def _expert_rules(name: str, slots: tuple[str, ...]) -> list[Rule]:
    weights, biases = (tuple(s + kind for s in slots) for kind in ("weight", "bias"))
    name = f"model.layers.{{i}}.mlp.experts.{name}"
    return [
        Rule(name, weights, stacked_experts(len(slots), transpose=True)),
        Rule(name + "_blocks", weights, stacked_experts(len(slots), transpose=False)),
        Rule(name + "_bias", biases, stacked_experts(len(slots), transpose=False)),
    ]


RULES = [
    Rule("model.layers.{i}.self_attn.sinks", ("layers.{i}.attn.sinks",)),
    Rule("model.layers.{i}.mlp.router.*", ("layers.{i}.moe.router.*",)),
    *_expert_rules("gate_up_proj", _GATE_UP),
    *_expert_rules("down_proj", _DOWN),
]


def gpt_oss(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    experts = c.integer("num_local_experts", "num_experts", default=128)
    if c.number("swiglu_alpha", default=1.702) != 1.702:
        raise ValueError("config.json: swiglu_alpha other than 1.702 is not supported")
    window = c.optional_integer("sliding_window") if "sliding_window" in c.data else 128
    bias = c.flag("attention_bias", default=True)
    if c.raw("rope_parameters", "rope_scaling") is None:
        c = Config({**c.data, "rope_scaling": YARN})
    spec = llama_like(
        c,
        max_model_len,
        architecture="GptOssForCausalLM",
        hidden=2880,
        intermediate=2880,
        num_layers=36,
        num_heads=64,
        num_kv_heads=8,
        default_head_dim=64,
        max_positions=131072,
        vocab=201088,
        theta=150000.0,
        eps=1e-5,
        qkv_bias=bias,
        out_bias=bias,
        layer_windows=lambda n: windows(c, n, window, [i % 2 == 0 for i in range(n)]),
        attn=dict(sinks=True),
        ffn=dict(
            # x * sigmoid(1.702 x), cut off, times up + 1.
            activation="gelu_quick",
            gate_limit=c.number("swiglu_limit", default=7.0, positive=True),
            up_offset=1.0,
            bias=True,
            num_experts=experts,
            top_k=experts_per_token(c, experts, 4),
            routing="topk_softmax",
            router_bias=True,
        ),
    )
    return spec, weight_rules(len(spec.layers), RULES, experts)
