"""Whose blocks a folder on disk holds: a digest of the weights' and of what shapes a block."""

from __future__ import annotations

import pytest
from taco_llm import cache_identity


def test_every_fact_counts() -> None:
    facts = {"dtype": "bfloat16", "block_size": 16, "spec": "a", "quantization": None}
    wanted = cache_identity.cache_identity(b"w" * 32, **facts)
    assert len(wanted) == 32
    assert wanted == cache_identity.cache_identity(b"w" * 32, **dict(reversed(facts.items())))
    for change in ({"dtype": "float16"}, {"block_size": 8}, {"spec": "b"}, {"quantization": "fp8"}):
        assert cache_identity.cache_identity(b"w" * 32, **facts | change) != wanted
    assert cache_identity.cache_identity(b"v" * 32, **facts) != wanted


def test_the_format_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_identity.cache_identity(b"w" * 32, dtype="float32")
    monkeypatch.setattr(cache_identity, "FORMAT_VERSION", cache_identity.FORMAT_VERSION + 1)
    assert cache_identity.cache_identity(b"w" * 32, dtype="float32") != before


def test_the_specs_text_has_the_rope_in_it() -> None:
    _core = pytest.importorskip("taco_llm._core")
    spec = _core.ModelSpec()
    before = repr(spec)
    spec.ropes = [_core.RopeSpec(inv_freq=[1.0, 0.12345])]
    assert repr(spec) != before and "0.12345" in repr(spec)
