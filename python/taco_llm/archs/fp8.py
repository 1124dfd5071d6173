"""What a config says of FP8 checkpoints: quantization_config as written by vLLM's tools and others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fp8Checkpoint:
    """block: rows and columns of a block that has a scale; None where scales are of tensors or rows."""

    block: tuple[int, int] | None = None


def fp8_checkpoint(config: Mapping[str, Any]) -> Fp8Checkpoint | None:
    """What quantization_config says of an FP8 checkpoint; None for any other method or type."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return None
    method = quantization.get("quant_method")
    if method == "fp8":
        block = quantization.get("weight_block_size")
        if block is None:
            return Fp8Checkpoint()
        if (
            not isinstance(block, (list, tuple))
            or len(block) != 2
            or not all(type(n) is int and n > 0 for n in block)
        ):
            raise ValueError(
                f"config.json: weight_block_size must be two sizes, rows and columns, it is {block!r}"
            )
        return Fp8Checkpoint((block[0], block[1]))
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            return None
        return Fp8Checkpoint() if all(map(_float8, groups.values())) else None
    return None


def _float8(group: object) -> bool:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    return (
        isinstance(weights, Mapping)
        and weights.get("num_bits") == 8
        and weights.get("type") == "float"
        and weights.get("strategy", "tensor") in ("tensor", "channel")
    )
