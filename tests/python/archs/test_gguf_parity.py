"""GGUF files of tiny models against transformers: every GGUF architecture, every tensor type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import arch_zoo
import numpy as np
import parity
import pytest

gguf = pytest.importorskip("gguf")
import gguf_convert  # noqa: E402

ARCHITECTURES = [
    "llama-grouped",
    "llama-wide-heads",
    "llama-rope-linear",
    "llama-rope-yarn",
    "mistral-no-window",
    "qwen2",
    "mixtral-top2",
    "qwen3",
    "qwen3-moe",
    "starcoder2",
    "gemma-multiquery",
    "gemma2",
    "gpt2",
    "gpt2-untied",
    "gpt-neox",
    "gpt-neox-sequential",
    "bloom",
    "falcon-7b",
    "falcon-40b",
]
# GGUF has no field for these; the case is made to have what llama.cpp assumes.
CHANGED = {
    "llama-wide-heads": {"hidden_act": "silu"},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gpt2-untied": {"tie_word_embeddings": False},
    # the context length in a GGUF file is the one after scaling for yarn
    "llama-rope-yarn": {"max_position_embeddings": 128},
}


def make(name, **fields):
    case = arch_zoo.CASES[name.replace("gpt2-untied", "gpt2")]
    return arch_zoo.make_model(
        arch_zoo.Case(
            case.config, {**case.fields, **CHANGED.get(name, {}), **fields}, attention=case.attention
        )
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(tmp_path, name):
    model = make(name)
    path = tmp_path / "model.gguf"
    gguf_convert.write(model, path)
    ids = arch_zoo.prompt()
    out = parity.run(parity.load(path), ids)
    assert parity.error(out, arch_zoo.logits(model, ids)) < parity.TOLERANCE


def test_rope_factors_tensor(tmp_path):
    # llama.cpp stores llama3 scaling as divisors of the frequencies.
    model = make("llama-rope-llama3")
    plain = 10000.0 ** -(np.arange(0, 8, 2) / 8)
    divisors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert divisors.max() > 2
    gguf_convert.write(model, tmp_path / "model.gguf", extra={"rope_freqs.weight": divisors})
    ids = arch_zoo.prompt()
    out = parity.run(parity.load(tmp_path / "model.gguf"), ids)
    assert parity.error(out, arch_zoo.logits(model, ids)) < parity.TOLERANCE


def write_llama(path, kind):
    """A Llama whose rows are whole blocks of 256; returns the model with the weights that the file holds."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
    model = arch_zoo.make_model(arch_zoo.llama(**sizes, tie_word_embeddings=True))
    gguf_convert.write(model, path, kind)
    return model


# With dtype float32 every type is dequantised exactly; otherwise block types stay as they are, and the
# kernels round activations to 8 bits as well.
FLOAT_TYPES = ["F32", "F16", "BF16"]
BLOCK_TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]
CONVERTED_TYPES = ["Q5_0", "Q5_1", "Q5_K"]  # to bfloat16 at load


@pytest.mark.parametrize("kind", FLOAT_TYPES + BLOCK_TYPES)
def test_types_dequantised_exactly(tmp_path, kind):
    model = write_llama(tmp_path / "model.gguf", kind)
    ids = arch_zoo.prompt()
    out = parity.run(parity.load(tmp_path / "model.gguf"), ids)
    assert parity.error(out, arch_zoo.logits(model, ids)) < parity.TOLERANCE


@pytest.mark.parametrize("kind", FLOAT_TYPES + BLOCK_TYPES)
def test_exact_on_the_generic_path(tmp_path, kind):
    model = write_llama(tmp_path / "model.gguf", kind)
    ids = arch_zoo.prompt()
    np.save(tmp_path / "ids.npy", np.array(ids))
    code = (
        "import sys, numpy as np, parity\n"
        "ids = np.load(sys.argv[1] + '/ids.npy').tolist()\n"
        "np.save(sys.argv[1] + '/out.npy', parity.run(parity.load(sys.argv[1] + '/model.gguf'), ids))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "TACO_CPU_ISA": "generic", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(parity.__file__).parent,
        check=True,
        timeout=120,
    )
    assert parity.error(np.load(tmp_path / "out.npy"), arch_zoo.logits(model, ids)) < parity.TOLERANCE


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_quantised_kernels_follow_the_weights(tmp_path, kind):
    model = write_llama(tmp_path / "model.gguf", kind)
    ids = arch_zoo.prompt()
    expected = arch_zoo.logits(model, ids)
    quantised = parity.load(tmp_path / "model.gguf", dtype="auto")
    assert quantised.weight_bytes < parity.load(tmp_path / "model.gguf").weight_bytes * 0.4
    for chunks in (None, [1] * len(ids)):
        out = parity.run(quantised, ids, chunks)
        assert parity.error(out, expected) < 0.1
        assert np.corrcoef(out.ravel(), expected.ravel())[0, 1] > 0.998


@pytest.mark.parametrize("kind", CONVERTED_TYPES)
def test_other_types_become_bfloat16(tmp_path, kind):
    model = write_llama(tmp_path / "model.gguf", kind)
    for p in model.parameters():
        if p.dim() == 2:
            p.data = p.data.bfloat16().float()
    ids = arch_zoo.prompt()
    out = parity.run(parity.load(tmp_path / "model.gguf"), ids)
    assert parity.error(out, arch_zoo.logits(model, ids)) < parity.TOLERANCE
