"""What every reader gives: tensors by name with format, shape and raw bytes, and errors that name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class LoadError(ValueError):
    """A checkpoint that cannot be loaded. The message names the file, the tensor, and what to do."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    `read` gives its bytes in `format` as flat uint8: a view where the file is mapped, or converted where the
    core does not take the type as stored. `num_bytes` is its size in the file.
    """

    name: str
    file: Path
    format: str
    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[], np.ndarray]
