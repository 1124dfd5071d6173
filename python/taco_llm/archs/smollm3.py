"""SmolLM3: the Llama shape with layers that have no positions."""

from __future__ import annotations

from taco_llm._core import ModelSpec

from .config import Config, windows
from .llama_like import change_layers, llama_like, weight_rules
from .rules import WeightRules


def rotated_layers(c: Config, num_layers: int) -> list[bool]:
    """`no_rope_layers` has a 1 for each layer that is rotated, whatever its name says."""
    flags = c.raw("no_rope_layers")
    if flags is None:
        interval = c.integer("no_rope_layer_interval", default=4)
        return [(i + 1) % interval != 0 for i in range(num_layers)]
    if not isinstance(flags, list) or len(flags) != num_layers or not all(f in (0, 1) for f in flags):
        raise ValueError(
            f"config.json: no_rope_layers must be a list of {num_layers} zeros and ones, it is {flags!r}"
        )
    return [bool(f) for f in flags]


def smollm3(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    bias = c.flag("attention_bias", default=False)
    window = c.optional_integer("sliding_window") if c.flag("use_sliding_window", default=False) else None
    spec = llama_like(
        c,
        max_model_len,
        architecture="SmolLM3ForCausalLM",
        hidden=2048,
        num_layers=36,
        num_heads=16,
        num_kv_heads=4,
        max_positions=32768,
        vocab=128256,
        theta=2e6,
        tied=True,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=c.flag("mlp_bias", default=False),
        layer_windows=lambda n: windows(c, n, window, [not r for r in rotated_layers(c, n)]),
    )
    plain = [i for i, r in enumerate(rotated_layers(c, len(spec.layers))) if not r]
    change_layers(spec, plain, "attn", rope=-1)
    return spec, weight_rules(len(spec.layers))
