"""Typed reading of a Hugging Face `config.json`, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# `hidden_act` values -> the core's activations. HF's `gelu_fast` is the tanh form with another grouping.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu2",
}

# Far above any model: what keeps a spoilt config from asking for endless layers.
_LIMITS = {
    "num_hidden_layers": 1024,
    "num_layers": 1024,
    "n_layer": 1024,
    "num_local_experts": 1024,
    "num_attention_heads": 1 << 16,
    "n_head": 1 << 16,
    "hidden_size": 1 << 20,
    "n_embd": 1 << 20,
    "head_dim": 1 << 16,
    "kv_channels": 1 << 16,
}

_LARGEST = (1 << 31) - 1

_MISSING: Any = object()


class Config:
    """A config whose getters take the field's names, newest first, and the default of the HF config class.

    Files saved by transformers 4 leave default values out, so every architecture states them.
    A field that is null counts as absent.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def raw(self, *names: str) -> Any:
        """The first of the named fields that is there and not null, else None."""
        for name in names:
            value = self.data.get(name)
            if value is not None:
                return value
        return None

    def _get(self, names: tuple[str, ...], default: Any, kinds: tuple[type, ...], what: str) -> Any:
        value = self.raw(*names)
        if value is None:
            if default is _MISSING:
                raise ValueError(f"config.json: {names[0]} is missing")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"config.json: {names[0]} must be {what}, it is {value!r}")
        if isinstance(value, (int, float)) and not -_LARGEST <= value <= _LARGEST:  # also refuses NaN
            raise ValueError(f"config.json: {names[0]} is out of range")
        return value

    def integer(self, *names: str, default: Any = _MISSING, minimum: int = 1) -> int:
        value = self._get(names, default, (int, float), "an integer")
        limit = _LIMITS.get(names[0], _LARGEST)
        if not minimum <= value <= limit:
            raise ValueError(
                f"config.json: {names[0]} must be at least {minimum} and at most {limit}, it is {value!r}"
            )
        if value != int(value):
            raise ValueError(f"config.json: {names[0]} must be an integer, it is {value!r}")
        return int(value)

    def optional_integer(self, *names: str) -> int | None:
        """None where the field is absent, null or not positive."""
        value = self._get(names, None, (int, float), "an integer or null")
        return int(value) if value is not None and value > 0 else None

    def number(self, *names: str, default: Any = _MISSING, positive: bool = False) -> float:
        value = float(self._get(names, default, (int, float), "a number"))
        if positive and value <= 0:
            raise ValueError(f"config.json: {names[0]} must be positive, it is {value!r}")
        return value

    def flag(self, *names: str, default: Any = _MISSING) -> bool:
        return self._get(names, default, (bool,), "true or false")  # type: ignore[no-any-return]

    def text(self, *names: str, default: Any = _MISSING) -> str:
        return self._get(names, default, (str,), "a string")  # type: ignore[no-any-return]

    def activation(self, *names: str, default: str) -> str:
        name = self.text(*names, default=default)
        if name not in ACTIVATIONS:
            raise ValueError(
                f"config.json: {names[0]} {name!r} is not an activation this engine has "
                f"({', '.join(sorted(ACTIVATIONS))})"
            )
        return ACTIVATIONS[name]

    @property
    def layer_types(self) -> list[str] | None:
        value = self.raw("layer_types")
        if value is None:
            return None
        known = {"full_attention", "sliding_attention"}
        if not isinstance(value, list) or not all(isinstance(v, str) and v in known for v in value):
            raise ValueError(f"config.json: layer_types must be a list of {sorted(known)}, it is {value!r}")
        return value


def divide(what: str, total: int, parts: int) -> int:
    """total / parts, or an error that names the fields."""
    if total % parts:
        raise ValueError(f"config.json: {what}: {total} is not divisible by {parts}")
    return total // parts


def head_dim(c: Config, hidden: int, heads: int) -> int:
    """The `head_dim` field, else hidden_size / num_attention_heads."""
    explicit = c.optional_integer("head_dim")
    return explicit or divide("hidden_size / num_attention_heads", hidden, heads)


def windows(c: Config, num_layers: int, window: int | None, sliding: list[bool]) -> list[int]:
    """The sliding window of each layer, 0 for none: from `layer_types` where the config has it."""
    types = c.layer_types
    if types is not None:
        if len(types) != num_layers:
            raise ValueError(f"config.json: layer_types has {len(types)} entries for {num_layers} layers")
        sliding = [t == "sliding_attention" for t in types]
        if any(sliding) and window is None:
            raise ValueError("config.json: layer_types has sliding_attention, but sliding_window is not set")
    return [window if window and s else 0 for s in sliding]
