"""Read-only file mappings whose pages can be given back."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from .tensors import LoadError


class Mapping:
    """A file mapped into memory. Arrays made from it keep it alive; it is unmapped with the last of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise LoadError(f"{path}: the file is empty") from None
        except OSError as e:
            raise LoadError(f"{path}: cannot be read: {e.strerror}") from None
        self.size = len(self._map)
        self.array = np.frombuffer(self._map, dtype=np.uint8)

    def bytes(self, start: int, end: int) -> bytes:
        return self._map[start:end]

    def release_pages(self) -> None:
        """Drops the mapped pages from this process: what is still needed comes back from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
