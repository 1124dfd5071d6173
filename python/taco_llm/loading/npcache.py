"""load_format npcache: the tensors of `.bin` files as NumPy files, made on the first load (vLLM's layout).

The folder `np` in the checkpoint has one NumPy file for each tensor, named as the tensor, and
weight_names.json, the list of names. NumPy has no bfloat16: such tensors are stored as uint16, and
dtypes.json names them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .tensors import LoadError, StoredTensor

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}")
_FORMATS = {"<f4": "F32", "<f2": "F16"}


def _checked(name: object, source: Path) -> str:
    """A tensor name that may be a file name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LoadError(f"{source}: the tensor name {name!r} cannot be a file name of an npcache")
    return name


def read_npcache(folder: Path, read_source: Callable[[], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """Tensors of the cache in `folder/np`; read_source gives the original ones when there is no cache yet."""
    cache = folder / "np"
    index = cache / "weight_names.json"
    if not index.is_file():
        _write(cache, read_source())
    try:
        names = json.loads(index.read_text(encoding="utf-8"))
        dtypes_file = cache / "dtypes.json"
        dtypes = json.loads(dtypes_file.read_text(encoding="utf-8")) if dtypes_file.is_file() else {}
    except (OSError, ValueError, RecursionError) as e:
        raise LoadError(
            f"{index}: cannot be read ({e}); remove the folder {cache} to make the cache anew"
        ) from None
    if not isinstance(names, list) or not isinstance(dtypes, dict):
        raise LoadError(f"{index}: must be a list of names; remove the folder {cache} to make the cache anew")
    return {name: _tensor(cache / _checked(name, index), name, dtypes.get(name)) for name in names}


def _tensor(path: Path, name: str, dtype: str | None) -> StoredTensor:
    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("not a NumPy file")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise LoadError(f"{path}: tensor {name!r} cannot be read: {e}") from None
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise LoadError(f"{path}: tensor {name!r} is no plain row-major array")
    if dtype == "BF16" and array.dtype == np.dtype("<u2"):
        format = "BF16"
    else:
        format = _FORMATS.get(array.dtype.str, array.dtype.name)
    return StoredTensor(
        name, path, format, array.shape, array.nbytes, lambda: array.reshape(-1).view(np.uint8)
    )


def _write(cache: Path, tensors: dict[str, StoredTensor]) -> None:
    """Writes the cache beside its place and moves it there, so that no half of it is ever read."""
    units = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    dtypes = {name: "BF16" for name, t in tensors.items() if t.format == "BF16"}
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".np-", dir=cache.parent))
        for name, tensor in tensors.items():
            if tensor.format not in units:
                raise LoadError(
                    f"{tensor.file}: tensor {name!r} is stored as {tensor.format}, expected a float type"
                )
            with open(temporary / _checked(name, tensor.file), "wb") as file:
                np.save(
                    file, tensor.read().view(units[tensor.format]).reshape(tensor.shape), allow_pickle=False
                )
        (temporary / "dtypes.json").write_text(json.dumps(dtypes), encoding="utf-8")
        (temporary / "weight_names.json").write_text(json.dumps(list(tensors)), encoding="utf-8")
        try:
            os.rename(temporary, cache)
        except OSError:
            if not (cache / "weight_names.json").is_file():  # else another process was faster
                raise
    except OSError as e:
        raise LoadError(
            f"{cache}: the NumPy cache cannot be written ({e.strerror}); use load format pt, "
            f"or a writable folder"
        ) from None
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
