"""safetensors checkpoints: whole ones load, spoilt ones are refused with the name of what is wrong."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from taco_llm.loading import LoadError
from taco_llm.loading.safetensors import read_safetensors
from tiny_checkpoint import logits

Q0 = "model.layers.0.self_attn.q_proj.weight"


def test_loads_and_counts(folder):
    folder.write()
    model = folder.load()
    assert model.num_parameters == sum(t.size for t in folder.tensors.values())
    out = logits(model)
    assert out.shape == (4, 32) and np.isfinite(out).all()


def test_sharded_equals_whole(folder):
    folder.write()
    whole = logits(folder.load())
    (folder.path / "model.safetensors").unlink()
    shards = write_shards(folder)
    assert len(shards) == 2
    np.testing.assert_array_equal(logits(folder.load()), whole)


def write_shards(folder):
    names, tensors = list(folder.tensors), folder.tensors
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {n: files[i % 2] for i, n in enumerate(names)}
    for file in files:
        folder.tensors = {n: tensors[n] for n in names if weight_map[n] == file}
        folder.write(name=file)
    folder.tensors = tensors
    (folder.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return files


def test_shards_without_an_index(folder):
    write_shards(folder)
    (folder.path / "model.safetensors.index.json").unlink()
    assert folder.load().num_parameters > 0


def test_names_without_the_prefix_load(folder):
    folder.write()
    whole = logits(folder.load())
    folder.tensors = {n.removeprefix("model."): t for n, t in folder.tensors.items()}
    folder.write()
    np.testing.assert_array_equal(logits(folder.load()), whole)


def test_buffers_and_tied_heads_are_left_out(folder):
    folder.tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    folder.write()
    folder.load()
    folder.write_config(tie_word_embeddings=True)
    assert folder.load().num_parameters < sum(t.size for t in folder.tensors.values())


@pytest.mark.parametrize("dtype", ["<f2", "<f8"])
def test_other_float_types(folder, dtype):
    folder.write()
    whole = logits(folder.load())
    folder.tensors = {n: t.astype(dtype) for n, t in folder.tensors.items()}
    folder.write()
    np.testing.assert_allclose(logits(folder.load()), whole, atol=0.02)


def test_dtype_auto(folder):
    folder.write()
    assert folder.load(dtype="auto").dtype == "float16"
    folder.write_config(torch_dtype="bfloat16")
    assert folder.load(dtype="auto").dtype == "bfloat16"
    folder.write_config(torch_dtype=None, dtype="float16")
    assert folder.load(dtype="auto").dtype == "float16"
    with pytest.raises(LoadError, match="dtype 'int7' is not supported"):
        folder.load(dtype="int7")


def refused(folder, message):
    with pytest.raises(LoadError, match=message):
        folder.load()


def test_missing_tensor_is_named(folder):
    del folder.tensors[Q0], folder.tensors["lm_head.weight"]
    folder.write()
    refused(folder, f"2 tensors missing: .*'{Q0}'")


def test_extra_tensor_is_named(folder):
    folder.tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
    folder.write()
    refused(folder, "model.safetensors: 1 unexpected tensor: 'model.layers.0.self_attn.q_proj.bias'")


def test_an_unknown_architecture_names_the_one_with_the_nearest_tensors(folder):
    folder.write()
    folder.write_config(architectures=["LlamoidForCausalLM"])
    refused(
        folder,
        r"'LlamoidForCausalLM' is not supported; did you mean LlamaForCausalLM\?.* "
        r"nearest to those of LlamaForCausalLM \(12 of 12 kinds of tensors\)\.",
    )
    folder.tensors["model.layers.0.self_attn.smoothing"] = np.zeros(3, np.float32)
    folder.write()
    refused(folder, r"12 of 13 kinds of tensors\), which does not have 'model.layers.N.self_attn.smoothing'")
    folder.write_config(architectures=None)
    refused(folder, r"architectures is missing.* nearest to those of LlamaForCausalLM \(12 of 13")
    # Tensors that no family has say nothing.
    folder.tensors = {f"unet.block.{i}.conv{i}": np.zeros(3, np.float32) for i in range(4)}
    folder.write()
    with pytest.raises(LoadError) as e:
        folder.load()
    assert "nearest" not in str(e.value) and "Supported: " in str(e.value)


def test_tensors_of_another_architecture_are_recognised(folder):
    folder.write()
    folder.write_config(architectures=["GPTNeoXForCausalLM"])
    refused(
        folder, r"unexpected tensors: .* not part of a GPTNeoXForCausalLM .* nearest to those of LlamaForC"
    )
    # What another config of the same family has is no reason to name a relation of it.
    folder.tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
    folder.write()
    folder.write_config(architectures=["MistralForCausalLM"])
    with pytest.raises(LoadError, match="1 unexpected tensor: .*q_proj.bias") as e:
        folder.load()
    assert "nearest" not in str(e.value)


def test_a_layer_more_than_the_config_says(folder):
    folder.write()
    folder.write_config(num_hidden_layers=1)
    refused(folder, r"9 unexpected tensors: .*model\.layers\.1\.")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (Q0, (8, 16), r"shape \(8, 16\), expected \(16, 16\)"),
        (Q0, (16, 4), r"shape \(16, 4\), expected \(16, 16\)"),
        (Q0, (256,), r"shape \(256,\), expected \(16, 16\)"),
        ("model.norm.weight", (17,), r"shape \(17,\), expected \(16,\)"),
        ("model.embed_tokens.weight", (31, 16), r"shape \(31, 16\), expected \(32, 16\)"),
    ],
)
def test_misshapen_tensor_is_named(folder, name, shape, message):
    folder.tensors[name] = np.zeros(shape, np.float32)
    folder.write()
    refused(folder, f"model.safetensors: tensor '{name}' has {message}")


def test_integer_tensor_is_named(folder):
    folder.tensors[Q0] = np.zeros((16, 16), np.int64)
    folder.write()
    refused(folder, f"tensor '{Q0}' is stored as I64")


@pytest.mark.parametrize("keep", [0, 3, 8, 100, -4])
def test_truncated_file_is_named(folder, keep):
    path = folder.write()
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    refused(folder, "model.safetensors: .*(truncated|empty)")


def test_trailing_bytes_are_refused(folder):
    path = folder.write()
    path.write_bytes(path.read_bytes() + b"more")
    refused(folder, "bytes of data, but the tensors take")


def spoil(name, **fields):
    def edit(header):
        header[name].update(fields)

    return edit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [16, 17]}, "takes 1088 bytes"),
        ({"shape": [-16, -16]}, "shape must be a list of sizes"),
        ({"shape": [16.0, 16]}, "shape must be a list of sizes"),
        ({"shape": [1 << 62, 1 << 62]}, "takes 85"),
        ({"shape": "16"}, "shape must be a list of sizes"),
        ({"dtype": "F33"}, "unknown dtype 'F33'"),
        ({"dtype": None}, "unknown dtype None"),
        ({"dtype": ["F32"]}, "unknown dtype"),
        ({"data_offsets": [0]}, "bad data_offsets"),
        ({"data_offsets": [1024, 0]}, "bad data_offsets"),
        ({"data_offsets": [1 << 62, (1 << 62) + 1024]}, "truncated"),
        ({"data_offsets": [0, 1024]}, "overlaps"),
        ({"data_offsets": [4, 1028]}, "(overlaps|hole)"),
    ],
)
def test_bad_header_entries(folder, fields, message):
    folder.write(spoil(Q0, **fields))
    refused(folder, f"tensor .*{message}")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (struct.pack("<Q", 1 << 60), "at most 100000000"),
        (struct.pack("<Q", 50) + b"{}", "truncated"),
        (struct.pack("<Q", 4) + b"null", "not an object"),
        (struct.pack("<Q", 4) + b"{{{{", "not valid JSON"),
        (struct.pack("<Q", 2) + b"\xff\xff", "not valid JSON"),
        (struct.pack("<Q", 100000) + b"[" * 100000, "not valid JSON"),
        (struct.pack("<Q", 9) + b'{"a": 1 }', "entry is not an object"),
        (struct.pack("<Q", 17) + b'{"a": {},"a": {}}', "'a' is given twice"),
    ],
)
def test_bad_headers(folder, raw, message):
    path = folder.path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(LoadError, match=message):
        read_safetensors(path)


def test_bad_shard_sets(folder):
    shards = write_shards(folder)
    index = folder.path / "model.safetensors.index.json"
    good = json.loads(index.read_text())

    (folder.path / shards[1]).rename(folder.path / "away")
    refused(folder, f"1 of 2 weight files are missing: {shards[1]}")
    (folder.path / "away").rename(folder.path / shards[1])

    index.write_text(json.dumps({"weight_map": {**good["weight_map"], Q0: "../../etc/passwd"}}))
    refused(folder, f"tensor '{Q0}': '../../etc/passwd' is not a plain file name")

    other = shards[1] if good["weight_map"][Q0] == shards[0] else shards[0]
    index.write_text(json.dumps({"weight_map": {**good["weight_map"], Q0: other}}))
    refused(folder, f"{other}: tensor '{Q0}' is missing")

    index.write_text("{}")
    refused(folder, "weight_map is missing")

    index.unlink()
    folder.write(name="model-00003.safetensors")
    refused(folder, "model-00003.safetensors: tensor .* is also in")


def test_bit_flips_never_crash(folder):
    path = folder.write()
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    rng = np.random.default_rng(0)
    for _ in range(200):
        spoilt = bytearray(data)
        for _ in range(3):
            spoilt[int(rng.integers(0, 8 + size))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(spoilt)
        try:
            read_safetensors(path)
        except LoadError as e:
            assert "model.safetensors" in str(e)
