"""Models as data: from a Hugging Face config to the core's ModelSpec and the rules that fill it with weights.

A new architecture is one function here (`Config -> (ModelSpec, WeightRules)`), one line in registry.py and
one fixture in tests/python/archs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .registry import UnknownArchitecture, find, supported

if TYPE_CHECKING:
    from taco_llm._core import ModelSpec

    from .rules import WeightRules

__all__ = ["build_spec", "is_mxfp4", "supported"]


def is_mxfp4(hf_config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint's experts are MXFP4 (loading/mxfp4.py)."""
    quantization = hf_config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"


def build_spec(
    hf_config: Mapping[str, Any], max_model_len: int | None = None
) -> tuple[ModelSpec, WeightRules]:
    """The model that a config.json describes, and the rules for its weights.

    max_model_len: the context length that will be served; only what depends on it uses it (dynamic rope
    scaling, the nominal context of ALiBi models). None: the model's own.

    Raises ValueError for an unknown architecture, or a config that is incomplete or not supported.
    """
    from .config import Config
    from .fp8 import fp8_checkpoint

    names = hf_config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UnknownArchitecture(
            "config.json: architectures is missing, so the kind of model is not known. "
            f"Supported: {', '.join(supported())}"
        )
    build = find(names[0])
    quantization = hf_config.get("quantization_config")
    if quantization and fp8_checkpoint(hf_config) is None and not is_mxfp4(hf_config):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise ValueError(
            f"config.json: the checkpoint is quantised with {method!r}, which is not supported yet; "
            "use an unquantised checkpoint or a GGUF file"
        )
    return build(Config(hf_config), max_model_len)
