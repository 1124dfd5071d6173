"""Whose blocks a folder on disk holds: a digest of the weights' content and of what shapes a block."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from taco_llm import cache_identity
from taco_llm.cache_identity import weights_digest


def write(folder: Path, **files: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def test_content_alone_counts(tmp_path: Path) -> None:
    wanted = weights_digest(write(tmp_path / "a", x=b"1" * 1000, y=b"2"))
    assert len(wanted) == 32 and wanted == weights_digest(write(tmp_path / "b", p=b"1" * 1000, q=b"2"))
    for number, files in enumerate(
        [{"x": b"1" * 999 + b"0", "y": b"2"}, {"x": b"1" * 1000}, {"y": b"2", "x": b"1" * 1000},
         {"x": b"1" * 1000 + b"2"}, {"x": b"1" * 1000, "y": b"2", "z": b""}]
    ):  # fmt: skip
        assert weights_digest(write(tmp_path / str(number), **files)) != wanted


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250, 300])
def test_pieces_and_threads_do_not_matter_but_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(cache_identity, "_PIECE", 100)
    monkeypatch.setattr(cache_identity, "_READ", 33)
    data = bytes(i % 251 for i in range(size))
    files = write(tmp_path / "a", x=data, y=data[::-1])
    whole = hashlib.sha256(b"taco_llm weights v1")
    for content in (data, data[::-1]):
        for start in range(0, max(size, 1), 100):
            whole.update(b"more" if start else b"file")
            whole.update(hashlib.sha256(content[start : start + 100]).digest())
    for threads in (0, 1, 3):
        assert weights_digest(files, threads) == whole.digest()


def test_every_fact_counts() -> None:
    facts = {"dtype": "bfloat16", "block_size": 16, "spec": "a", "quantization": None}
    wanted = cache_identity.cache_identity(b"w" * 32, **facts)
    assert len(wanted) == 32
    assert wanted == cache_identity.cache_identity(b"w" * 32, **dict(reversed(facts.items())))
    for change in ({"dtype": "float16"}, {"block_size": 8}, {"spec": "b"}, {"quantization": "fp8"}):
        assert cache_identity.cache_identity(b"w" * 32, **facts | change) != wanted
    assert cache_identity.cache_identity(b"v" * 32, **facts) != wanted
