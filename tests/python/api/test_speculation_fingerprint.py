"""A saved lookahead cache belongs to a model's configuration and vocabulary."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from taco_llm.engine.drafting import fingerprint
from taco_llm.loading.checkpoint import Checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    return tmp_path


def test_the_configuration_and_every_file_of_the_vocabulary_count(folder: Path) -> None:
    model = Checkpoint(folder, "safetensors", {"vocab_size": 2}, tokenizer_files=folder)
    first = fingerprint(model)
    assert first == fingerprint(model)
    assert first != fingerprint(dataclasses.replace(model, hf_config={"vocab_size": 3}))
    assert first != fingerprint(dataclasses.replace(model, tokenizer_files=None))

    (folder / "tokenizer_config.json").write_text('{"chat_template": "y"}')  # ids mean what they meant
    assert first == fingerprint(model)
    seen = {first}
    for name in ("added_tokens.json", "merges.txt", "tokenizer.json", "tokenizer.model", "qwen.tiktoken"):
        (folder / name).write_text("{}")
        seen.add(fingerprint(model))
    assert len(seen) == 6


def test_a_gguf_vocabulary_counts(tmp_path: Path) -> None:
    def of(**keys: object) -> str:
        metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        return fingerprint(Checkpoint(tmp_path / "m.gguf", "gguf", {}, gguf_metadata=metadata))

    tokens = of(tokens=["a", "b"])
    assert tokens == of(tokens=["a", "b"], chat_template="x")
    assert len({tokens, of(tokens=["b", "a"]), of(tokens=["ab"]), of(tokens=["a", "b"], pre="llama")}) == 4
