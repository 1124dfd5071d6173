"""FP8 checkpoints: the model is that of the weights times their scales; what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from taco_llm.loading import LoadError
from taco_llm.loading.fp8 import widened
from tiny_checkpoint import DTYPES, Folder, logits

FP8 = {"quant_method": "fp8", "activation_scheme": "static"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}
Q0 = "model.layers.0.self_attn.q_proj.weight"


def e4m3(code: int) -> float:
    """As the format's definition has it."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    value = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if sign else value


NUMBERS = np.array([e4m3(c) for c in range(256)])


def is_linear(name: str) -> bool:
    return "proj" in name


def narrow(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The codes of the nearest numbers."""
    good = np.array([c for c in range(256) if c & 127 != 127])
    near = np.abs((values / scale)[..., None] - NUMBERS[good]).argmin(-1)
    return good[near].astype(np.uint8)


def make(folder: Folder, shape: str, block: tuple[int, int] = (8, 8), wide: tuple[str, ...] = ()) -> Folder:
    """Writes the folder's model in FP8 and returns one of the same weights, dequantised."""
    path = folder.path.parent / "plain"
    path.mkdir()
    plain = Folder(path)
    tensors: dict[str, np.ndarray] = {}
    for name, values in folder.tensors.items():
        if not is_linear(name) or name in wide:
            tensors[name] = values
            continue
        rows, cols = values.shape
        if shape == "tensor":
            scale = np.array([np.abs(values).max() / 448], np.float32)
            full = scale
        elif shape == "channel":
            scale = full = (np.abs(values).max(1, keepdims=True) / 448).astype(np.float32)
        else:
            grid = (-(-rows // block[0]), -(-cols // block[1]))
            scale = np.random.default_rng(len(tensors)).uniform(0.001, 0.003, grid).astype(np.float32)
            full = np.repeat(np.repeat(scale, block[0], 0)[:rows], block[1], 1)[:, :cols]
        codes = narrow(values, full)
        tensors[name] = codes
        tensors[name + ("_scale_inv" if shape == "block" else "_scale")] = scale
        if shape == "tensor":
            tensors[name.removesuffix("weight") + "input_scale"] = np.array([0.25], np.float32)
        plain.tensors[name] = (NUMBERS[codes] * full).astype(np.float32)
    tensors["model.layers.0.self_attn.k_scale"] = np.array([1.0], np.float32)
    folder.tensors = tensors
    plain.write()
    return plain


@pytest.fixture(autouse=True)
def _bytes_are_fp8(monkeypatch):
    monkeypatch.setitem(DTYPES, "|u1", "F8_E4M3")


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ("tensor", FP8),
        ("channel", COMPRESSED),
        ("block", {**FP8, "weight_block_size": [8, 8], "activation_scheme": "dynamic"}),
    ],
)
def test_equals_the_dequantised_weights(folder, shape, config):
    plain = make(folder, shape)
    folder.write()
    folder.write_config(quantization_config=config)
    expected = logits(plain.load())
    np.testing.assert_allclose(logits(folder.load()), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0.05
    # In 16 bits the products see weights rounded once more.
    half = logits(folder.load(dtype="bfloat16"))
    assert np.linalg.norm(half - expected) < 0.02 * np.linalg.norm(expected)


def test_layers_may_be_left_out(folder):
    plain = make(folder, "tensor", wide=(Q0,))
    folder.write()
    folder.write_config(
        quantization_config={**FP8, "ignored_layers": ["lm_head", Q0.removesuffix(".weight")]}
    )
    np.testing.assert_allclose(logits(folder.load()), logits(plain.load()), rtol=1e-5, atol=1e-6)


def test_the_names_that_were_fp8(folder):
    from taco_llm.archs.fp8 import fp8_checkpoint
    from taco_llm.loading.safetensors import read_safetensors

    make(folder, "tensor", wide=(Q0,))
    tensors, _ = read_safetensors(folder.write())
    scheme = fp8_checkpoint({"quantization_config": FP8})
    out, narrow_names = widened(tensors, scheme, "BF16")
    assert narrow_names == {n for n in out if is_linear(n) and n != Q0}
    assert not any(n.endswith("scale") for n in out)
    # Every number of the format, by its definition.
    codes = tensors["model.layers.0.mlp.up_proj.weight"].read()
    scale = tensors["model.layers.0.mlp.up_proj.weight_scale"].read().view("<f4")[0]
    values = out["model.layers.0.mlp.up_proj.weight"].read().view("<u2").astype(np.uint32) << 16
    np.testing.assert_allclose(values.view(np.float32), NUMBERS[codes] * scale, rtol=2**-8)


def test_missing_and_misshapen_scales_are_named(folder):
    make(folder, "tensor")
    folder.write_config(quantization_config=FP8)
    scale = folder.tensors.pop(Q0 + "_scale")
    folder.write()
    with pytest.raises(LoadError, match=rf"{Q0}.*no .*_scale"):
        folder.load()
    for wrong in (np.ones(3, np.float32), np.array([np.nan], np.float32), np.array([1], np.int64)):
        folder.tensors[Q0 + "_scale"] = wrong
        folder.write()
        with pytest.raises(LoadError, match=rf"{Q0}_scale"):
            folder.load()
    folder.tensors[Q0 + "_scale"] = scale
    folder.tensors[Q0] = folder.tensors[Q0].copy()
    folder.tensors[Q0][0, 0] = 0x7F
    folder.write()
    with pytest.raises(LoadError, match="NaN"):
        folder.load()


def test_other_methods_are_refused(folder):
    folder.write()
    int8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
    for config in (
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": int8}}},
        {"quant_method": "compressed-tensors"},
    ):
        folder.write_config(quantization_config=config)
        with pytest.raises(LoadError, match=config["quant_method"]):
            folder.load()
    folder.write_config(quantization_config={**FP8, "weight_block_size": [128]})
    with pytest.raises(LoadError, match="weight_block_size"):
        folder.load()
