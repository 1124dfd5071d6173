"""Tensors of `.bin` and `.pt` files, through torch with `weights_only` (nothing in the file is executed)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import LoadError, StoredTensor


def read_torch(path: Path) -> dict[str, StoredTensor]:
    """The state dict of a file, memory-mapped where the file's layout allows it. Raises LoadError."""
    try:
        import torch
    except ImportError:
        raise LoadError(
            f"{path}: reading .bin and .pt files needs torch: run `pip install taco_llm[torch]`, "
            "or use a safetensors or GGUF version of the model"
        ) from None
    try:
        state = _load(torch, path)
    except Exception as e:
        # torch raises a different type for each way in which a file can be bad.
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise LoadError(f"{path}: not a file of tensors that torch can read safely: {reason}") from None
    if not isinstance(state, dict):
        raise LoadError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    formats = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    out: dict[str, StoredTensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise LoadError(f"{path}: entry {name!r} is {type(tensor).__name__}, not a tensor")
        format = formats.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        size = tensor.numel() * tensor.element_size()
        out[name] = StoredTensor(name, path, format, tuple(tensor.shape), size, _bytes(torch, tensor))
    return out


def _load(torch: Any, path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as e:
        if "mmap" not in str(e):
            raise
        # Files of torch < 1.6 are no zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


def _bytes(torch: Any, tensor: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array: np.ndarray = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return array

    return read
