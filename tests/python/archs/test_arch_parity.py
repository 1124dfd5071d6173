"""Every architecture against transformers: float32 logits within 1e-4 and 32 greedy tokens equal.

Greedy equality is checked by feeding transformers' own tokens one by one: if the core's argmax is the next
token at every step, then its free-running greedy text is the same.
"""

from __future__ import annotations

import arch_zoo
import numpy as np
import parity
import pytest

ALL = list(arch_zoo.CASES)


@pytest.mark.parametrize("name", ALL)
def test_prefill_and_greedy(reference, name):
    ref = reference(name)
    model = parity.load(ref.folder)
    out = parity.run(model, ref.ids[: ref.prompt_len])
    assert parity.error(out, ref.logits[: ref.prompt_len]) < parity.TOLERANCE

    decode = [ref.prompt_len] + [1] * (len(ref.ids) - ref.prompt_len)
    out = parity.run(model, ref.ids, decode)
    assert parity.error(out, ref.logits) < parity.TOLERANCE
    tokens = out[ref.prompt_len - 1 : -1].argmax(-1)
    assert tokens.tolist() == ref.ids[ref.prompt_len :]


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("name", ALL)
def test_odd_chunks_and_block_sizes(reference, name, block_size):
    ref = reference(name)
    model = parity.load(ref.folder)
    for sizes in ([7], [1, 17, 3], [33, 2]):
        out = parity.run(model, ref.ids, parity.split(len(ref.ids), sizes), block_size)
        assert parity.error(out, ref.logits) < parity.TOLERANCE, sizes


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.1), ("float16", 0.01)])
@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "gemma2", "stablelm-2-12b", "deepseek-v2-lite"])
def test_16_bits_follow_float32(reference, name, dtype, limit):
    # Weights are rounded to 8 or 11 bits: near the float32 logits, and far from unrelated ones.
    ref = reference(name)
    out = parity.run(parity.load(ref.folder, dtype=dtype), ref.ids)
    assert 1e-6 < parity.error(out, ref.logits) < limit
    assert np.corrcoef(out.ravel(), ref.logits.ravel())[0, 1] > 0.999


def test_dynamic_rope_beyond_the_original_length(tmp_path):
    # At exactly the served length, transformers' changing base is the one fixed here.
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    case = arch_zoo.llama(max_position_embeddings=32, rope_parameters=rope)
    model = arch_zoo.make_model(case)
    arch_zoo.save(case, model, tmp_path)
    ids = arch_zoo.prompt(length=56)
    ours = parity.run(parity.load(tmp_path, max_model_len=56), ids)
    assert parity.error(ours, arch_zoo.logits(model, ids)) < parity.TOLERANCE


@pytest.mark.parametrize(("served", "long"), [(32, False), (33, True), (None, True)])
def test_longrope_factors_follow_the_served_length(tmp_path, served, long):
    # Up to the original context transformers has the short factors, beyond it the long ones for every token.
    case = arch_zoo.phi3(**arch_zoo.longrope(8, 32))
    model = arch_zoo.make_model(case)
    arch_zoo.save(case, model, tmp_path)
    ids = arch_zoo.prompt(length=40 if long else 32)
    ours = parity.run(parity.load(tmp_path, max_model_len=served), ids)
    assert parity.error(ours, arch_zoo.logits(model, ids)) < parity.TOLERANCE
