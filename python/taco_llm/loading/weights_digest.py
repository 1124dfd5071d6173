"""What a checkpoint's weights are called: a SHA-256 over the names, sizes and contents of its files.

Files are hashed in pieces of 64 MiB by several threads: a file's digest is the SHA-256 of its pieces'
digests. It is remembered by path, size, time of change and inode, so that only new files are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .tensors import LoadError

_PIECE = 64 << 20
_READ = 1 << 20
_MOST_THREADS = 16
_MOST_REMEMBERED = 4096
_MOST_BYTES = 4 << 20  # of the file that remembers
_VERSION = 1


def weights_digest(files: Sequence[Path], *, remember_in: Path | None = None, threads: int = 0) -> bytes:
    """32 bytes. files: in any order; their folders do not count. remember_in: a JSON file for the digests
    of files that do not change; it need not exist or be writable. threads: 0 is one per core, 16 at most.

    LoadError if a file cannot be read, or changes meanwhile."""
    remembered = _read_remembered(remember_in) if remember_in is not None else {}
    threads = threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    paths = sorted(files, key=lambda file: (file.name, str(file)))
    try:
        stats = [os.stat(path) for path in paths]
        known = [_lookup(remembered, path, stat) for path, stat in zip(paths, stats, strict=True)]
        missing = [i for i, digest in enumerate(known) if digest is None]
        with _progress(sum(stats[i].st_size for i in missing)) as advance:
            for i in missing:
                known[i] = _file_digest(paths[i], stats[i].st_size, threads, advance)
                if _state(os.stat(paths[i])) != _state(stats[i]):
                    raise LoadError(f"{paths[i]} changed while it was read; start again when it is complete")
    except OSError as e:
        raise LoadError(f"the weights cannot be read for the prefix cache on disk: {e}") from None
    if remember_in is not None and missing:
        new = {
            str(paths[i].resolve()): [*_state(stats[i]), d.hex()]
            for i in missing
            if (d := known[i]) is not None
        }
        _write_remembered(remember_in, {**remembered, **new})
    hashed = hashlib.sha256(b"taco_llm weights v1")
    for path, stat, digest in zip(paths, stats, known, strict=True):
        assert digest is not None
        name = path.name.encode("utf-8", "surrogateescape")
        hashed.update(len(name).to_bytes(8, "little") + name + stat.st_size.to_bytes(8, "little") + digest)
    return hashed.digest()


def dummy_digest(seed: int) -> bytes:
    """Of weights that load_format dummy draws."""
    return hashlib.sha256(b"taco_llm dummy weights v1 %d" % seed).digest()


def _file_digest(path: Path, size: int, threads: int, advance: Callable[[int], Any]) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def piece(start: int) -> bytes:
            hashed, buffer = hashlib.sha256(), bytearray(_READ)
            view = memoryview(buffer)
            end = min(start + _PIECE, size)
            while start < end:
                count = os.preadv(fd, [view[: end - start]], start)  # lets other threads run, as does hashing
                if count == 0:
                    raise LoadError(
                        f"{path} became shorter while it was read; start again when it is complete"
                    )
                hashed.update(view[:count])
                start += count
                advance(count)
            return hashed.digest()

        with ThreadPoolExecutor(threads, thread_name_prefix="taco-digest") as pool:
            return hashlib.sha256(b"".join(pool.map(piece, range(0, size, _PIECE)))).digest()
    finally:
        os.close(fd)


# --- what is remembered: {"version": 1, "files": {path: [size, mtime_ns, inode, digest]}}


def _state(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _lookup(remembered: dict[str, list[Any]], path: Path, stat: os.stat_result) -> bytes | None:
    entry = remembered.get(str(path.resolve()))
    return bytes.fromhex(entry[3]) if entry is not None and tuple(entry[:3]) == _state(stat) else None


def _read_remembered(file: Path) -> dict[str, list[Any]]:
    """Only entries that are what they should be; nothing if the file is not."""
    try:
        with open(file, "rb") as opened:
            content = json.loads(opened.read(_MOST_BYTES))
        if content.get("version") != _VERSION:
            return {}
        return {path: entry for path, entry in content["files"].items() if _is_entry(entry)}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[3], str):
        return False
    digits = set("0123456789abcdef")
    return all(type(n) is int for n in entry[:3]) and len(entry[3]) == 64 and set(entry[3]) <= digits


def _write_remembered(file: Path, entries: dict[str, list[Any]]) -> None:
    """All or nothing; where it cannot be written, the next start reads the weights again."""
    newest = dict(list(entries.items())[-_MOST_REMEMBERED:])
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name + ".")
        with open(fd, "w") as opened:
            json.dump({"version": _VERSION, "files": newest}, opened)
        os.replace(temporary, file)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


class _progress:
    """A tqdm bar of bytes on stderr, for what takes more than two seconds."""

    def __init__(self, total: int) -> None:
        self.bar: Any = None
        if total and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="Hashing weights", delay=2
            )

    def __enter__(self) -> Callable[[int], Any]:
        return self.bar.update if self.bar is not None else lambda n: None

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.close()
