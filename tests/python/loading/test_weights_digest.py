"""The digest of a checkpoint's weights: what changes it, what does not, and what is remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from taco_llm.loading import LoadError, weights_digest
from taco_llm.loading.weights_digest import dummy_digest


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: Any) -> None:
    """So that files of a few kilobytes have several."""
    monkeypatch.setattr(weights_digest, "_PIECE", 1000)
    monkeypatch.setattr(weights_digest, "_READ", 300)


def write(folder: Path, **contents: bytes) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in contents.items():
        files.append(folder / f"{name}.safetensors")
        files[-1].write_bytes(content)
    return files


A, B = bytes(range(256)) * 17, b"weights" * 400


def digest(files: list[Path], **keywords: Any) -> bytes:
    return weights_digest.weights_digest(files, **keywords)


def test_same_wherever_it_lies_and_however_many_threads(tmp_path: Path) -> None:
    files = write(tmp_path / "one", a=A, b=B)
    expected = digest(files)
    assert len(expected) == 32
    assert digest(files[::-1]) == expected
    assert digest(write(tmp_path / "two", a=A, b=B)) == expected
    for threads in (1, 2, 7):
        assert digest(files, threads=threads) == expected


def test_every_byte_name_and_length_counts(tmp_path: Path) -> None:
    files = write(tmp_path, a=A, b=B)
    seen = {digest(files)}

    def add(files: list[Path]) -> None:
        found = digest(files)
        assert found not in seen
        seen.add(found)

    for at in (0, 299, 300, 999, 1000, len(A) - 1):
        changed = bytearray(A)
        changed[at] ^= 1
        add(write(tmp_path / str(at), a=bytes(changed), b=B))
    add(write(tmp_path / "longer", a=A + b"\0", b=B))
    add(write(tmp_path / "shorter", a=A[:-1], b=B))
    add(write(tmp_path / "names", a=A, c=B))
    add(write(tmp_path / "swapped", a=B, b=A))
    add(files[:1])
    add(write(tmp_path / "moved", a=A[:-7], b=A[-7:] + B))
    add([])


def test_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: Any) -> None:
    files = write(tmp_path / "model", a=A, b=B)
    memory = tmp_path / "cache" / "weights.json"
    expected = digest(files, remember_in=memory)
    read: list[str] = []
    original = weights_digest._file_digest
    monkeypatch.setattr(
        weights_digest, "_file_digest", lambda path, *rest: read.append(path.name) or original(path, *rest)
    )
    assert digest(files, remember_in=memory) == expected
    assert read == []
    before = os.stat(files[0])
    files[0].write_bytes(A[:-1] + b"x")  # of the same size
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = digest(files, remember_in=memory)
    assert changed != expected and read == ["a.safetensors"]
    assert changed == digest(files)
    # Another file in its place, with the same date and size.
    read.clear()
    (tmp_path / "new").write_bytes(A)
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    os.replace(tmp_path / "new", files[0])
    assert digest(files, remember_in=memory) == expected and read == ["a.safetensors"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": 2, "files": {}}',
        b'{"version": 1, "files": [1]}',
        b'{"version": 1}',
    ],
)
def test_a_damaged_memory_is_ignored(tmp_path: Path, content: bytes) -> None:
    files = write(tmp_path / "model", a=A)
    memory = tmp_path / "weights.json"
    memory.write_bytes(content)
    assert digest(files, remember_in=memory) == digest(files)
    assert json.loads(memory.read_bytes())["version"] == 1, "it is made anew"


@pytest.mark.parametrize("entry", [None, [], [1, 2, 3, "0" * 63], [1, 2, 3, "G" * 64], [1, 2, "3", "0" * 64]])
def test_entries_that_are_none_are_ignored(tmp_path: Path, entry: Any) -> None:
    files = write(tmp_path / "model", a=A)
    memory = tmp_path / "weights.json"
    memory.write_text(json.dumps({"version": 1, "files": {str(files[0]): entry}}))
    assert digest(files, remember_in=memory) == digest(files)


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    files = write(tmp_path / "model", a=A)
    (tmp_path / "file").write_text("")
    assert digest(files, remember_in=tmp_path / "file" / "weights.json") == digest(files)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="gone"):
        digest([tmp_path / "gone.safetensors"])


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    files = write(tmp_path, a=A)
    original = weights_digest._file_digest

    def meddling(path: Path, *rest: Any) -> bytes:
        found = original(path, *rest)
        path.write_bytes(B)
        return found

    monkeypatch.setattr(weights_digest, "_file_digest", meddling)
    with pytest.raises(LoadError, match="changed while it was read"):
        digest(files)


def test_dummy_weights_are_their_seed() -> None:
    assert dummy_digest(1) == dummy_digest(1) != dummy_digest(2)
    assert len(dummy_digest(0)) == 32
