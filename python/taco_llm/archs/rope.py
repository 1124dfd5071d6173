"""Rotary embeddings: inverse frequencies of every scaling rule, as transformers computes them.

The core only knows the result (`RopeSpec.inv_freq`, `attention_factor`); the arithmetic is float32 in the
same order as in transformers, so that logits agree to the last digits.

Rules: default, linear, dynamic (NTK), yarn, llama3; `factors` is GGUF's tensor of divisors
(rope_freqs.weight).

dynamic: transformers recomputes the base whenever a sequence is longer than the original context, so that a
token's rotation depends on what comes after it, and cached keys disagree with new ones. Here, as in vLLM,
the base is fixed for the life of the engine: at the length that is served (`max_model_len`). Up to the
original length this is the plain rotation, which is what transformers does there too; ask for a longer
context by max_model_len.

longrope: transformers takes the short factors for a sequence up to the original context and the long ones
beyond, with the same trouble at the border. Here, as in vLLM, the served length decides once: the long
factors when it is above the original context (without max_model_len: the model's own), else the short ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taco_llm._core import RopeSpec

from .config import Config

F32 = np.float32


@dataclass(frozen=True)
class Rope:
    """A rotation and the context length that it makes possible."""

    spec: RopeSpec
    max_positions: int


def _number(params: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = params.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"config.json: rope scaling needs a number for {name!r}, it has {value!r}")
    return value


def _positive(params: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = _number(params, name, default)
    if value <= 0:
        raise ValueError(f"config.json: rope scaling: {name!r} must be positive, it is {value!r}")
    return value


def _plain(base: float, dim: int) -> np.ndarray:
    exponents = np.arange(0, dim, 2, dtype=F32) / F32(dim)
    return F32(1.0) / np.power(F32(base), exponents, dtype=F32)


@dataclass(frozen=True)
class _Input:
    params: Mapping[str, Any]
    base: float
    dim: int
    max_positions: int
    max_model_len: int | None


def _default(x: _Input) -> tuple[np.ndarray, float, int]:
    return _plain(x.base, x.dim), 1.0, x.max_positions


def _linear(x: _Input) -> tuple[np.ndarray, float, int]:
    factor = _positive(x.params, "factor")
    return _plain(x.base, x.dim) / F32(factor), 1.0, int(x.max_positions * factor)


def _dynamic(x: _Input) -> tuple[np.ndarray, float, int]:
    factor = _positive(x.params, "factor")
    length = max(x.max_model_len or 0, x.max_positions)
    scale = factor * length / x.max_positions - (factor - 1)
    return _plain(x.base * scale ** (x.dim / (x.dim - 2)), x.dim), 1.0, length


def _yarn(x: _Input) -> tuple[np.ndarray, float, int]:
    original = _positive(x.params, "original_max_position_embeddings", x.max_positions)
    factor = _positive(x.params, "factor", x.max_positions / original)
    attention_factor = x.params.get("attention_factor")
    if attention_factor is None:
        mscale, all_dim = x.params.get("mscale"), x.params.get("mscale_all_dim")

        def magnitude(m: float) -> float:
            return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

        both = mscale and all_dim
        attention_factor = magnitude(float(mscale)) / magnitude(float(all_dim)) if both else magnitude(1.0)  # type: ignore[arg-type]

    def correction_dim(rotations: float) -> float:
        return x.dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(x.base))

    low = correction_dim(x.params.get("beta_fast") or 32)
    high = correction_dim(x.params.get("beta_slow") or 1)
    if x.params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, x.dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(x.dim // 2, dtype=F32) - F32(low)) / F32(high - low), 0, 1).astype(F32)
    freqs = np.power(F32(x.base), np.arange(0, x.dim, 2, dtype=F32) / F32(x.dim), dtype=F32)
    extrapolated, interpolated = F32(1) / freqs, F32(1) / (F32(factor) * freqs)
    keep = F32(1) - ramp
    inv_freq = interpolated * (F32(1) - keep) + extrapolated * keep
    return inv_freq, float(attention_factor), max(int(original * factor), x.max_positions)


def _llama3(x: _Input) -> tuple[np.ndarray, float, int]:
    factor = _positive(x.params, "factor")
    low, high = _positive(x.params, "low_freq_factor"), _positive(x.params, "high_freq_factor")
    original = _positive(x.params, "original_max_position_embeddings", x.max_positions)
    if high <= low:
        raise ValueError("config.json: rope scaling: high_freq_factor must be above low_freq_factor")
    inv_freq = _plain(x.base, x.dim)
    wavelength = F32(2 * math.pi) / inv_freq
    scaled = np.where(wavelength > F32(original / low), inv_freq / F32(factor), inv_freq)
    smooth = (F32(original) / wavelength - F32(low)) / F32(high - low)
    smoothed = (F32(1) - smooth) * scaled / F32(factor) + smooth * scaled
    medium = (wavelength >= F32(original / high)) & (wavelength <= F32(original / low))
    return np.where(medium, smoothed, scaled), 1.0, x.max_positions


def _longrope(x: _Input) -> tuple[np.ndarray, float, int]:
    original = _positive(x.params, "original_max_position_embeddings", x.max_positions)
    long = (x.max_model_len or x.max_positions) > original
    name = "long_factor" if long else "short_factor"
    divisors = x.params.get(name)
    if not isinstance(divisors, list) or len(divisors) != x.dim // 2:
        raise ValueError(f"config.json: rope scaling: {name} must be a list of {x.dim // 2} numbers")
    divisors = [_positive({name: d}, name) for d in divisors]
    exponents = np.arange(0, x.dim, 2, dtype=F32) / F32(x.dim)
    inv_freq = F32(1) / (np.asarray(divisors, dtype=F32) * np.power(F32(x.base), exponents, dtype=F32))
    for name in ("long_mscale" if long else "short_mscale", "attention_factor"):
        if x.params.get(name) is not None:
            return inv_freq, _positive(x.params, name), x.max_positions
    factor = _positive(x.params, "factor", x.max_positions / original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return inv_freq, magnitude, x.max_positions


def _factors(x: _Input) -> tuple[np.ndarray, float, int]:
    factors = np.asarray(x.params["factors"], dtype=F32)
    if factors.shape != (x.dim // 2,):
        raise ValueError(f"rope_freqs.weight has shape {factors.shape}, expected ({x.dim // 2},)")
    return _plain(x.base, x.dim) / factors, 1.0, x.max_positions


_RULES: dict[str, Callable[[_Input], tuple[np.ndarray, float, int]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first files
    "factors": _factors,
}


def parameters(c: Config, default_theta: float = 10000.0) -> dict[str, Any]:
    """`rope_parameters` (transformers 5), or the same made of `rope_theta` and `rope_scaling`."""
    params = c.raw("rope_parameters", "rope_scaling")
    if params is None:
        params = {}
    if not isinstance(params, Mapping):
        raise ValueError(f"config.json: rope_scaling must be an object, it is {params!r}")
    params = dict(params)
    if any(isinstance(v, Mapping) for v in params.values()):
        raise ValueError("config.json: rope_parameters for each layer type are not supported")
    params["rope_type"] = params.get("rope_type") or params.get("type") or "default"
    if params.get("rope_theta") is None:
        params["rope_theta"] = c.number("rope_theta", "rotary_emb_base", default=default_theta)
    if params["rope_type"] in ("yarn", "llama3", "longrope", "su") and c.raw(
        "original_max_position_embeddings"
    ):
        params.setdefault("original_max_position_embeddings", c.raw("original_max_position_embeddings"))
    return params


def make_rope(
    c: Config,
    *,
    head_dim: int,
    max_positions: int,
    max_model_len: int | None,
    default_theta: float = 10000.0,
    partial: float = 1.0,
    rotary_dim: int | None = None,
) -> Rope:
    """partial: the rotated share of each head where the config does not say (`partial_rotary_factor`).
    rotary_dim: the rotated dims, for families that give their number.
    """
    params = parameters(c, default_theta)
    rule = _RULES.get(str(params["rope_type"]))
    if rule is None:
        known = ", ".join(k for k in _RULES if k != "factors")
        raise ValueError(
            f"config.json: rope type {params['rope_type']!r} is not supported; supported: {known}"
        )
    dim = rotary_dim or int(
        head_dim
        * _positive(params, "partial_rotary_factor", c.number("partial_rotary_factor", default=partial))
    )
    if dim < 2 or dim % 2 or dim > head_dim:
        raise ValueError(
            f"config.json: {dim} rotated dims of a head of {head_dim}: must be even and at most the head"
        )
    base = _positive(params, "rope_theta")
    try:
        with np.errstate(all="ignore"):
            inv_freq, attention_factor, length = rule(_Input(params, base, dim, max_positions, max_model_len))
        factor = float(attention_factor)
    except (ArithmeticError, TypeError, ValueError) as e:
        if str(e).startswith("config.json"):
            raise
        raise ValueError(f"config.json: these rope parameters cannot be used: {params}") from None
    spec = RopeSpec(rotary_dim=dim, inv_freq=[float(f) for f in inv_freq], attention_factor=factor)
    return Rope(spec, min(length, (1 << 31) - 1))
