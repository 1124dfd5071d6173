"""From what a user calls a model (a folder, a GGUF file, a hub id) to files, config and tokenizer's place."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .gguf import GgufFile, read_gguf
from .tensors import LoadError

FORMATS = ("auto", "safetensors", "pt", "npcache", "gguf", "dummy")
FORMAT_ALIASES = {"np-cache": "npcache"}
# Files of a training run that end like weights.
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|random_states.*|rng_state.*)\.(bin|pt)|adapter_.*"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_MAX_JSON = 256 << 20


@dataclass
class Checkpoint:
    """A model's files, found but not loaded.

    path: the folder, or the GGUF file. hf_config: config.json's content, for GGUF made of its metadata.
    gguf_metadata: every key of a GGUF file, else None. tokenizer_files: the folder of tokenizer.json and the
    like; None for GGUF, whose metadata holds the tokenizer. files: the weight files, in name order.
    """

    path: Path
    format: str
    hf_config: dict[str, Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    gguf_metadata: dict[str, Any] | None = None
    tokenizer_files: Path | None = None
    files: list[Path] = field(default_factory=list)
    weight_map: dict[str, str] | None = field(default=None, repr=False)
    gguf: GgufFile | None = field(default=None, repr=False)


def resolve(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    load_format: str = "auto",
    ignore_patterns: str | Sequence[str] | None = None,
    token: str | None = None,
) -> Checkpoint:
    """Finds a model: a local folder, a local .gguf file, or a Hugging Face hub id (downloaded, or from its
    cache).

    load_format: auto takes safetensors where there are any, then .bin/.pt, then a GGUF file.
    Raises LoadError (a ValueError) that says what was looked for and what to do.
    """
    load_format = FORMAT_ALIASES.get(load_format, load_format)
    if load_format not in FORMATS:
        raise LoadError(f"load format {load_format!r} is not supported; supported: {', '.join(FORMATS)}")
    path = Path(model).expanduser()
    if path.is_file():
        return _resolve_file(path, load_format)
    if path.is_dir():
        return _resolve_folder(path, load_format)
    if not _HUB_ID.fullmatch(model) or model.endswith(".gguf"):
        raise LoadError(f"{model}: no such file or folder, and not a hub id (owner/name)")
    from .hub import download

    folder = download(
        model,
        revision=revision,
        cache_dir=download_dir,
        load_format=load_format,
        ignore_patterns=ignore_patterns,
        token=token,
    )
    return _resolve_folder(folder, load_format)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. LoadError names the file."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise LoadError(f"{path}: more than {_MAX_JSON} bytes of JSON")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise LoadError(f"{path}: cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise LoadError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(data, dict):
        raise LoadError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def _resolve_file(path: Path, load_format: str) -> Checkpoint:
    if load_format not in ("auto", "gguf"):
        raise LoadError(f"{path}: load format {load_format!r} takes a folder, not a file")
    if path.suffix != ".gguf" and load_format == "auto":
        raise LoadError(f"{path}: not a .gguf file; for other formats give the folder that holds config.json")
    from taco_llm.archs.gguf import synthesise_config

    gguf = read_gguf(path)
    split = gguf.metadata.get("split.count", 0)
    if isinstance(split, int) and split > 1:
        raise LoadError(
            f"{path}: one of {split} parts of a split GGUF, which is not supported; "
            "join them with `llama-gguf-split --merge`"
        )
    factors = gguf.tensors.get("rope_freqs.weight")
    values = None
    if factors is not None:
        if factors.format != "F32":
            raise LoadError(f"{path}: tensor 'rope_freqs.weight' is stored as {factors.format}, expected F32")
        values = np.frombuffer(factors.read(), dtype="<f4").tolist()
    try:
        config = synthesise_config(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()}, values)
    except ValueError as e:
        raise LoadError(f"{path}: {e}") from None
    generation: dict[str, Any] = {
        k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in config
    }
    return Checkpoint(path, "gguf", config, generation, gguf_metadata=gguf.metadata, files=[path], gguf=gguf)


def _resolve_folder(folder: Path, load_format: str) -> Checkpoint:
    config_file = folder / "config.json"
    ggufs = sorted(folder.glob("*.gguf"))
    if load_format == "gguf" or (load_format == "auto" and not config_file.is_file() and ggufs):
        if len(ggufs) != 1:
            found = ", ".join(p.name for p in ggufs) or "none"
            raise LoadError(f"{folder}: expected one .gguf file, found {found}; give the path of the file")
        return _resolve_file(ggufs[0], "gguf")
    if not config_file.is_file():
        raise LoadError(f"{folder}: config.json is missing: not a Hugging Face model folder")
    config = read_json(config_file)
    generation_file = folder / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    format, files, weight_map = _weight_files(folder, load_format)
    if format == "gguf":
        return _resolve_file(ggufs[0], "gguf")
    return Checkpoint(
        folder, format, config, generation, tokenizer_files=folder, files=files, weight_map=weight_map
    )


def _weight_files(folder: Path, load_format: str) -> tuple[str, list[Path], dict[str, str] | None]:
    """(format, files, name -> file of a sharded checkpoint)."""
    if load_format == "dummy":
        return "dummy", [], None
    if load_format in ("auto", "safetensors"):
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            return "safetensors", *_sharded(folder, index)
        files = [folder / "model.safetensors"]
        if not files[0].is_file():
            # "consolidated" files repeat the weights under other names.
            files = sorted(
                p
                for p in folder.glob("*.safetensors")
                if not p.name.startswith("consolidated") and not _NOT_WEIGHTS.fullmatch(p.name)
            )
        if files:
            return "safetensors", files, None
    if load_format in ("auto", "pt", "npcache"):
        format = "npcache" if load_format == "npcache" else "pt"
        index = folder / "pytorch_model.bin.index.json"
        if index.is_file():
            return format, *_sharded(folder, index)
        for pattern in ("*.bin", "*.pt"):
            files = sorted(p for p in folder.glob(pattern) if not _NOT_WEIGHTS.fullmatch(p.name))
            if files:
                return format, files, None
        if format == "npcache" and (folder / "np" / "weight_names.json").is_file():
            return format, [], None
    if load_format == "auto" and len(list(folder.glob("*.gguf"))) == 1:
        return "gguf", [], None
    wanted = {
        "safetensors": "*.safetensors",
        "pt": "*.bin or *.pt",
        "npcache": "*.bin or *.pt (or np/weight_names.json)",
    }.get(load_format, "*.safetensors, *.bin, *.pt or one *.gguf")
    raise LoadError(f"{folder}: no weight files ({wanted})")


def _sharded(folder: Path, index: Path) -> tuple[list[Path], dict[str, str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(f"{index}: weight_map is missing or empty")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", file):
            raise LoadError(f"{index}: tensor {name!r}: {file!r} is not a plain file name")
    files = [folder / name for name in sorted(set(weight_map.values()))]
    missing = [p.name for p in files if not p.is_file()]
    if missing:
        raise LoadError(
            f"{folder}: {len(missing)} of {len(files)} weight files are missing: {', '.join(missing[:5])}"
        )
    return files, weight_map
