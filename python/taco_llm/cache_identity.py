"""What a block of KV on disk belongs to: a digest of all that its numbers depend on besides the tokens."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_PIECE = 64 << 20  # bytes that one thread hashes at a time
_READ = 1 << 20


def weights_digest(files: Sequence[Path], threads: int = 0) -> bytes:
    """SHA-256 (32 bytes) over the content of the files: of the digests of their pieces, in order.

    threads: 0: one for each core. Names and times of the files do not matter. OSError: one cannot be read."""
    pieces = [(path, start) for path in files for start in range(0, max(path.stat().st_size, 1), _PIECE)]
    workers = threads or len(os.sched_getaffinity(0))
    whole = hashlib.sha256(b"taco_llm weights v1")
    with ThreadPoolExecutor(min(workers, max(len(pieces), 1)), thread_name_prefix="taco-digest") as pool:
        digests = list(pool.map(_piece, pieces))
    for (_, start), digest in zip(pieces, digests, strict=True):
        whole.update(b"file" if start == 0 else b"more")
        whole.update(digest)
    return whole.digest()


def _piece(piece: tuple[Path, int]) -> bytes:
    path, start = piece
    hashed = hashlib.sha256()
    buffer = memoryview(bytearray(_READ))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = _PIECE
        while left > 0 and (count := file.readinto(buffer[: min(left, _READ)])):
            hashed.update(buffer[:count])
            left -= count
    return hashed.digest()


def cache_identity(weights: bytes, **facts: Any) -> bytes:
    """32 bytes: SHA-256 over the weights' digest and the facts (texts and numbers) that shape a block."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(b"taco_llm prefix cache identity v1" + weights + text.encode()).digest()
