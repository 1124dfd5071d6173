"""Checkpoints: finding them (`resolve`) and loading their weights into the core (`load_model`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint, resolve
from .tensors import LoadError

if TYPE_CHECKING:
    from .loader import describe, load_model

__all__ = ["Checkpoint", "LoadError", "describe", "load_model", "resolve"]


def __getattr__(name: str) -> Any:
    # The loader imports the core; finding a checkpoint does not need it.
    if name in ("describe", "load_model"):
        from . import loader

        return getattr(loader, name)
    raise AttributeError(name)
