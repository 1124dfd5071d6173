"""load_model: a checkpoint's tensors, through the architecture's weight rules, into the core."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from collections.abc import Mapping as MappingType
from typing import Any

from taco_llm import _core
from taco_llm.archs import build_spec, is_mxfp4
from taco_llm.archs.fp8 import fp8_checkpoint
from taco_llm.archs.gguf import gguf_rules
from taco_llm.archs.nearest import match, nearest_by_tensors
from taco_llm.archs.registry import UnknownArchitecture
from taco_llm.archs.rules import FORMATS, BoundRules, Misshapen, Rule, Tensor, WeightRules, load_order

from .checkpoint import Checkpoint
from .dummy import dummy_tensors
from .fp8 import widened
from .mapping import Mapping
from .mxfp4 import join_mxfp4
from .npcache import read_npcache
from .safetensors import read_safetensors
from .tensors import LoadError, StoredTensor
from .torch_files import read_torch

_DTYPES = {
    "float32": "float32",
    "float": "float32",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
}
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Mapped pages are given back each time that so much has been repacked, so that loading never holds two
# copies.
_RELEASE_BYTES = 256 << 20


def load_model(
    checkpoint: Checkpoint,
    *,
    backend: _core.Backend,
    dtype: str = "auto",
    rope_scaling: MappingType[str, Any] | None = None,
    rope_theta: float | None = None,
    max_model_len: int | None = None,
    seed: int = 0,
    show_progress: bool = True,
    trust_remote_code: bool = False,
    quantize_fp8: bool = False,
    check_spec: Callable[[_core.ModelSpec, MappingType[str, Any], str], None] | None = None,
) -> _core.Model:
    """Loads a checkpoint's weights into a backend.

    dtype: what unquantised matrices are kept in. auto: as in the checkpoint, but float32 becomes float16 (as
    vLLM does), and the unquantised matrices of a GGUF file become bfloat16. Quantised GGUF matrices stay as
    they are.
    rope_scaling, rope_theta: instead of the config's. max_model_len: see archs.build_spec.
    seed: of dummy weights. show_progress: a bar on stderr, when that is a terminal.
    trust_remote_code: accepted and without effect; code in a checkpoint is never run.
    quantize_fp8: keeps all matrices but embeddings, head and routers in FP8, one scale each (GPUs). Of an FP8
    checkpoint those that it has in FP8 are, whatever this says; the CPU keeps them in `dtype`.
    check_spec: called with spec, slots and dtype before any weight is taken; may raise.

    Raises LoadError (a ValueError) naming the tensor and file for what is missing, unknown, misshapen or
    truncated.
    """
    config = _overridden(checkpoint.hf_config, rope_scaling, rope_theta)
    spec, rules = _build_spec(checkpoint, config, max_model_len)
    tensors, mappings = ({}, []) if checkpoint.format == "dummy" else _read(checkpoint)
    if is_mxfp4(config):
        tensors = join_mxfp4(tensors)
    kept = _dtype(dtype, checkpoint, tensors)
    on_host = backend.name == "cpu"
    fp8 = fp8_checkpoint(checkpoint.hf_config)
    narrow: set[str] | None = None  # the names that are FP8, where the checkpoint decides
    if fp8 is not None:
        tensors, narrow = widened(tensors, fp8, _STORED[kept])
    builder = _core.ModelBuilder(spec, backend, kept, quantize_fp8 or (narrow is not None and not on_host))
    slots = builder.slots()
    if check_spec is not None:
        check_spec(spec, slots, kept)
    if checkpoint.format == "dummy" and not on_host:
        for number, (slot, shape) in enumerate(slots.items()):
            builder.add_dummy(slot, shape, seed * len(slots) + number)
        return builder.finish()
    if checkpoint.format == "dummy":
        for slot, tensor in dummy_tensors(slots, kept, seed, checkpoint.path).items():
            builder.add(slot, tensor.read(), tensor.format, tensor.shape)
        return builder.finish()
    if checkpoint.gguf_metadata is not None:
        rules = gguf_rules(checkpoint.gguf_metadata, spec, tensors)
    bound = rules.bind(slots)
    plan = _plan(bound, tensors, spec.architecture, config)
    if on_host:
        plan.sort(key=lambda item: load_order(item[0]))  # what is repacked together comes together
    _check_missing(bound, plan, checkpoint, spec.architecture)

    if narrow is not None and not on_host:
        for rule, stored in plan:
            if stored.name not in narrow:
                for slot in rule.slots:
                    builder.keep_wide(slot)

    total = sum(t.num_bytes for _, t in plan)
    pending = 0
    with _progress(total, show_progress) as advance:
        for rule, stored in plan:
            _add(builder, bound, rule, stored)
            advance(stored.num_bytes)
            pending += stored.num_bytes
            if pending >= _RELEASE_BYTES:
                pending = 0
                for mapping in mappings:
                    mapping.release_pages()
    model = builder.finish()
    for mapping in mappings:
        mapping.release_pages()
    return model


def describe(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    rope_scaling: MappingType[str, Any] | None = None,
    rope_theta: float | None = None,
    max_model_len: int | None = None,
) -> tuple[_core.ModelSpec, dict[str, tuple[int, ...]], str]:
    """(spec, slots with their shapes, dtype of unquantised matrices), without reading the weights.

    The arguments are load_model's. Raises LoadError.
    """
    spec, _ = _build_spec(
        checkpoint, _overridden(checkpoint.hf_config, rope_scaling, rope_theta), max_model_len
    )
    kept = _dtype(dtype, checkpoint, {})
    return spec, _core.ModelBuilder(spec, _core.Backend("cpu", 1), kept).slots(), kept


def _build_spec(
    checkpoint: Checkpoint, config: dict[str, Any], max_model_len: int | None
) -> tuple[_core.ModelSpec, WeightRules]:
    """LoadError names the file; for an unknown architecture also the known one with the nearest tensors."""
    try:
        return build_spec(config, max_model_len)
    except LoadError:
        raise
    except UnknownArchitecture as e:
        names: Collection[str] = checkpoint.weight_map or ()
        if not names and checkpoint.format == "safetensors":  # others are slow to open
            names = _read(checkpoint)[0]
        best = nearest_by_tensors(config, names)
        hint = f" Its tensors are nearest to those of {best}." if best else ""
        raise LoadError(f"{checkpoint.path}: {e}.{hint}") from None
    except ValueError as e:
        raise LoadError(f"{checkpoint.path}: {e}") from None


def _overridden(
    config: dict[str, Any], rope_scaling: MappingType[str, Any] | None, rope_theta: float | None
) -> dict[str, Any]:
    if rope_scaling is None and rope_theta is None:
        return config
    old = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = (
        rope_theta
        or (rope_scaling or {}).get("rope_theta")
        or old.get("rope_theta")
        or config.get("rope_theta")
    )
    params = dict(rope_scaling if rope_scaling is not None else old)
    if theta is not None:
        params["rope_theta"] = theta
    for name in ("partial_rotary_factor",):
        if name in old:
            params.setdefault(name, old[name])
    return {**config, "rope_parameters": params, "rope_scaling": None}


def _dtype(dtype: str, checkpoint: Checkpoint, tensors: MappingType[str, StoredTensor]) -> str:
    """The core's dtype name for a `dtype` argument."""
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise LoadError(f"dtype {dtype!r} is not supported; supported: auto, {', '.join(_DTYPES)}")
        return _DTYPES[dtype]
    if checkpoint.format == "gguf":
        return "bfloat16"
    stored = checkpoint.hf_config.get("dtype") or checkpoint.hf_config.get("torch_dtype")
    if stored is None:
        sizes: dict[str, int] = {}
        for t in tensors.values():
            sizes[t.format] = sizes.get(t.format, 0) + t.num_bytes
        stored = {"BF16": "bfloat16", "F16": "float16"}.get(
            max(sizes, key=sizes.__getitem__, default=""), "float32"
        )
    return "bfloat16" if str(stored).removeprefix("torch.") == "bfloat16" else "float16"


def _read(checkpoint: Checkpoint) -> tuple[dict[str, StoredTensor], list[Mapping]]:
    """Every tensor of the checkpoint by name, and the mappings that they lie in."""
    if checkpoint.gguf is not None:
        return checkpoint.gguf.tensors, [checkpoint.gguf.mapping]
    mappings: list[Mapping] = []

    def merged() -> dict[str, StoredTensor]:
        out: dict[str, StoredTensor] = {}
        for path in checkpoint.files:
            if checkpoint.format == "safetensors":
                tensors, mapping = read_safetensors(path)
                mappings.append(mapping)
            else:
                tensors = read_torch(path)
            for name, tensor in tensors.items():
                if name in out:
                    raise LoadError(f"{path}: tensor {name!r} is also in {out[name].file.name}")
                out[name] = tensor
        for name, file in (checkpoint.weight_map or {}).items():
            if name not in out or out[name].file.name != file:
                raise LoadError(
                    f"{checkpoint.path / file}: tensor {name!r} is missing (the index says it is there)"
                )
        return out

    if checkpoint.format == "npcache":
        return read_npcache(checkpoint.path, merged), mappings
    return merged(), mappings


def _fits_better(config: MappingType[str, Any], names: Collection[str], architecture: str) -> str:
    """Says so where another architecture has more of the tensors: the config may name the wrong one."""
    best = nearest_by_tensors(config, names)
    if best is None or len(best.unknown) >= len(match(architecture, config, names).unknown):
        return ""
    return f". All tensors together are nearest to those of {best}: is that what config.json should name?"


def _plan(
    bound: BoundRules,
    tensors: MappingType[str, StoredTensor],
    architecture: str,
    config: MappingType[str, Any],
) -> list[tuple[Rule, StoredTensor]]:
    """What to add, in the order of the files. LoadError for a tensor without a rule."""
    plan: list[tuple[Rule, StoredTensor]] = []
    unknown: list[StoredTensor] = []
    for name, tensor in tensors.items():
        try:
            rule = bound.find(name)
        except KeyError:
            unknown.append(tensor)
            continue
        if rule is not None:
            plan.append((rule, tensor))
    if unknown:
        names = ", ".join(repr(t.name) for t in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise LoadError(
            f"{unknown[0].file}: {len(unknown)} unexpected tensor{'s' if len(unknown) > 1 else ''}: {names}: "
            f"not part of a {architecture} with this config" + _fits_better(config, tensors, architecture)
        )
    return plan


def _check_missing(
    bound: BoundRules, plan: list[tuple[Rule, StoredTensor]], checkpoint: Checkpoint, architecture: str
) -> None:
    filled = {slot for rule, _ in plan for slot in rule.slots}
    missing = [slot for slot in bound.shapes if slot not in filled]
    if missing:
        names = ", ".join(repr((bound.sources(s) or [s])[0]) for s in missing[:5]) + (
            ", ..." if len(missing) > 5 else ""
        )
        raise LoadError(
            f"{checkpoint.path}: {len(missing)} tensor{'s' if len(missing) > 1 else ''} missing: {names}: "
            f"part of a {architecture} with this config"
        )


def _add(builder: _core.ModelBuilder, bound: BoundRules, rule: Rule, stored: StoredTensor) -> None:
    def fail(why: str) -> LoadError:
        return LoadError(f"{stored.file}: tensor {stored.name!r} {why}")

    if stored.format not in FORMATS:
        raise fail(
            f"is stored as {stored.format}, which is not a weight format of this engine "
            f"({', '.join(FORMATS)})"
        )
    try:
        parts = bound.cut(rule, Tensor.from_bytes(stored.format, stored.shape, stored.read()))
    except Misshapen as e:
        raise fail(f"has shape {stored.shape}, expected {e.expected}") from None
    for slot, part in parts:
        if part.shape != bound.shapes[slot]:
            raise fail(f"has shape {stored.shape}; slot {slot} needs {bound.shapes[slot]}")
        try:
            builder.add(slot, part.bytes(), part.format, part.shape)
        except (ValueError, KeyError, NotImplementedError) as e:
            raise fail(f"(slot {slot}): {e}") from None


class _progress:
    """A tqdm bar of bytes on stderr, or nothing."""

    def __init__(self, total: int, show: bool) -> None:
        self.bar: Any = None
        if show and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="Loading weights")

    def __enter__(self) -> Any:
        return self.bar.update if self.bar is not None else lambda n: None

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.close()
