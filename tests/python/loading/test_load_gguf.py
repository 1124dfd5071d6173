"""The GGUF reader: agreement with the gguf package, and refusal of spoilt files."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from taco_llm import _core
from taco_llm.archs.gguf import ARCHITECTURES
from taco_llm.loading import LoadError, load_model, resolve
from taco_llm.loading.gguf import TYPES, read_gguf, to_bfloat16
from tiny_checkpoint import logits

U8, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 6, 7, 8, 9, 10


def string(text):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind, data):
    return struct.pack("<I", kind) + data


def header(pairs=(), tensors=(), version=3, num_tensors=None, num_values=None):
    out = b"GGUF" + struct.pack("<I", version)
    out += struct.pack("<Q", len(tensors) if num_tensors is None else num_tensors)
    out += struct.pack("<Q", len(pairs) if num_values is None else num_values)
    for key, data in pairs:
        out += string(key) + data
    for name, dims, kind, offset in tensors:
        out += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", kind, offset)
    return out


def write(tmp_path, raw, data=b""):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw + b"\0" * (-len(raw) % 32) + data)
    return path


def read(tmp_path, raw, data=b""):
    return read_gguf(write(tmp_path, raw, data))


def test_every_value_type(tmp_path):
    nested = struct.pack("<IQ", ARRAY, 2) + (struct.pack("<IQ", U8, 2) + b"\1\2") * 2
    pairs = [
        ("u8", value(0, b"\xff")),
        ("i8", value(1, b"\xff")),
        ("u16", value(2, b"\xff\xff")),
        ("i16", value(3, b"\xfe\xff")),
        ("u32", value(4, struct.pack("<I", 1 << 31))),
        ("i32", value(5, struct.pack("<i", -5))),
        ("f32", value(6, struct.pack("<f", 0.5))),
        ("bool", value(7, b"\1")),
        ("str", value(8, string("grüße"))),
        ("u64", value(10, struct.pack("<Q", 1 << 63))),
        ("i64", value(11, struct.pack("<q", -(1 << 62)))),
        ("f64", value(12, struct.pack("<d", 0.1))),
        ("strings", value(9, struct.pack("<IQ", STRING, 2) + string("a") + string(b"\xff"))),
        ("floats", value(9, struct.pack("<IQ2f", F32, 2, 1.5, -2))),
        ("bools", value(9, struct.pack("<IQ", BOOL, 2) + b"\0\1")),
        ("nested", value(9, nested)),
    ]
    assert read(tmp_path, header(pairs)).metadata == {
        "u8": 255,
        "i8": -1,
        "u16": 65535,
        "i16": -2,
        "u32": 1 << 31,
        "i32": -5,
        "f32": 0.5,
        "bool": True,
        "str": "grüße",
        "u64": 1 << 63,
        "i64": -(1 << 62),
        "f64": 0.1,
        "strings": ["a", "\udcff"],
        "floats": [1.5, -2.0],
        "bools": [False, True],
        "nested": [[1, 2], [1, 2]],
    }


def test_version_2_and_another_alignment(tmp_path):
    pairs = [("general.alignment", value(4, struct.pack("<I", 64)))]
    raw = header(pairs, [("t", (4, 2), 0, 0)], version=2)
    raw += b"\0" * (-len(raw) % 64)
    data = np.arange(8, dtype="<f4")
    tensor = read(tmp_path, raw, data.tobytes()).tensors["t"]
    assert tensor.shape == (2, 4) and tensor.format == "F32"
    np.testing.assert_array_equal(tensor.read().view("<f4"), data)


def test_type_table_is_that_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    for kind, (name, cols, size) in TYPES.items():
        assert gguf.GGMLQuantizationType(kind).name == name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == (cols, size)


def test_reads_what_the_gguf_package_writes(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokens = [f"token {i} é" for i in range(49152)]
    writer.add_token_list(tokens)
    writer.add_token_scores([float(i) for i in range(49152)])
    values = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    times = []
    for _ in range(5):
        start = time.process_time()
        file = read_gguf(path)
        times.append(time.process_time() - start)
    assert file.metadata["tokenizer.ggml.tokens"] == tokens
    assert file.metadata["tokenizer.ggml.scores"][-1] == 49151.0
    tensor = file.tensors["blk.0.attn_q.weight"]
    assert (tensor.format, tensor.shape) == ("Q4_1", (8, 64))
    assert tensor.read().tobytes() == raw.tobytes()
    assert min(times) < 0.25  # 98k strings and numbers take some 0.04 s of a CPU


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty"),
        (b"GGUF", "truncated"),
        (b"GGML" + b"\0" * 40, "not a GGUF file"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "big-endian"),
        (header(num_values=1 << 62), "a count of 4611686018427387904"),
        (header(num_tensors=1 << 63), "a count of 9223372036854775808"),
        (header([(b"k" * 70000, value(U8, b"\0"))]), "a name of 70000 bytes"),
        (header([(b"\xff\xfe", value(U8, b"\0"))]), "not UTF-8"),
        (header([("a", value(U8, b"\0")), ("a", value(U8, b"\0"))]), "metadata 'a': given twice"),
        (header([("a", value(99, b"\0" * 8))]), "metadata 'a': unknown value type 99"),
        (header([("a", value(STRING, struct.pack("<Q", 1 << 63)))]), "metadata 'a': the file is truncated"),
        (header([("a", value(ARRAY, struct.pack("<IQ", STRING, 1 << 61)))]), "metadata 'a': a count of"),
        (header([("a", value(ARRAY, struct.pack("<IQ", F32, 1 << 62)))]), "metadata 'a': a count of"),
        (header([("a", value(ARRAY, struct.pack("<IQ", 77, 0)))]), "unknown array type 77"),
        (
            header([("a", value(ARRAY, struct.pack("<IQ", ARRAY, 1) * 9 + b"\0" * 64))]),
            "nested more than 4 deep",
        ),
        (
            header(
                [
                    (
                        "a",
                        value(
                            ARRAY, struct.pack("<IQ", STRING, 2) + string("x") + struct.pack("<Q", 1 << 40)
                        ),
                    )
                ]
            ),
            "metadata 'a': the file is truncated",
        ),
        (header([("general.alignment", value(4, struct.pack("<I", 24)))]), "must be a power of two"),
        (header([("general.alignment", value(8, string("32")))]), "must be a power of two"),
        (header(tensors=[("t", (), 0, 0)]), "tensor 't': 0 dimensions"),
        (header(tensors=[("t", (1,) * 9, 0, 0)]), "tensor 't': 9 dimensions"),
        (header(tensors=[("t", (4, 0), 0, 0)]), "tensor 't': a dimension of 0"),
        (header(tensors=[("t", (4,), 4, 0)]), "tensor 't': type 4 is not known"),
        (header(tensors=[("t", (1 << 63, 1 << 63, 4), 0, 0)]), "tensor 't': the file is truncated"),
        (header(tensors=[("t", (4,), 0, 1 << 63)]), "tensor 't': the file is truncated"),
        (header(tensors=[("t", (4,), 0, 8)]), "tensor 't': offset 8 is not a multiple"),
        (header(tensors=[("t", (33,), 8, 0)]), "no multiple of Q8_0's block"),
        (header(tensors=[("t", (1024,), 0, 0)]), "tensor 't': the file is truncated: 4096 bytes"),
        (header(tensors=[("t", (4,), 0, 0), ("t", (4,), 0, 32)]), "tensor 't': given twice"),
        (
            header(tensors=[("t", (16,), 0, 0), ("u", (4,), 0, 32)]),
            "tensor 'u': its data overlaps that of tensor 't'",
        ),
    ],
)
def test_spoilt_files(tmp_path, raw, message):
    path = write(tmp_path, raw, b"\0" * 64)
    if len(raw) < 24:
        path.write_bytes(raw)
    with pytest.raises(LoadError, match=f"model.gguf: .*({message})"):
        read_gguf(path)


@pytest.fixture
def llama(tmp_path):
    gguf = pytest.importorskip("gguf")
    return GgufModel(gguf, tmp_path / "llama.gguf")


class GgufModel:
    """A tiny Llama as GGUF that tests may spoil."""

    def __init__(self, gguf, path):
        self.gguf, self.path = gguf, path
        rng = np.random.default_rng(0)

        def matrix(*shape):
            return rng.normal(size=shape).astype(np.float32) * 0.2

        self.tensors = {"token_embd.weight": matrix(32, 16), "output_norm.weight": matrix(16)}
        for p in ("blk.0.", "blk.1."):
            self.tensors |= {p + "attn_norm.weight": matrix(16), p + "ffn_norm.weight": matrix(16)}
            for name, rows, cols in (
                ("attn_q", 16, 16),
                ("attn_k", 8, 16),
                ("attn_v", 8, 16),
                ("attn_output", 16, 16),
                ("ffn_gate", 24, 16),
                ("ffn_up", 24, 16),
                ("ffn_down", 16, 24),
            ):
                self.tensors[p + name + ".weight"] = matrix(rows, cols)

    def write(self, architecture="llama", without=()):
        writer = self.gguf.GGUFWriter(self.path, architecture)
        for add, number in (
            ("add_block_count", 2),
            ("add_context_length", 64),
            ("add_embedding_length", 16),
            ("add_feed_forward_length", 24),
            ("add_head_count", 2),
            ("add_head_count_kv", 1),
            ("add_layer_norm_rms_eps", 1e-5),
            ("add_bos_token_id", 1),
            ("add_eos_token_id", 2),
        ):
            if add not in without:
                getattr(writer, add)(number)
        for name, values in self.tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def load(self, **options):
        backend = _core.Backend("cpu", threads=1)
        return load_model(resolve(str(self.path)), backend=backend, show_progress=False, **options)

    def refused(self, message):
        with pytest.raises(LoadError, match=message):
            self.load()


def test_resolved_config(llama):
    llama.write()
    checkpoint = resolve(str(llama.path))
    assert checkpoint.format == "gguf" and checkpoint.tokenizer_files is None
    assert checkpoint.hf_config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.hf_config["vocab_size"] == 32 and checkpoint.hf_config["tie_word_embeddings"] is True
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": 2}
    assert checkpoint.gguf_metadata["llama.block_count"] == 2
    assert resolve(str(llama.path.parent)).path == llama.path
    model = llama.load()
    assert model.dtype == "bfloat16"
    assert np.isfinite(logits(model)).all()


def test_missing_extra_misshapen(llama):
    full = dict(llama.tensors)
    del llama.tensors["blk.1.attn_k.weight"]
    llama.write()
    llama.refused("llama.gguf: 1 tensor missing: 'blk.1.attn_k.weight'")
    llama.tensors = full | {"blk.0.attn_q.lora": np.zeros((4, 4), np.float32)}
    llama.write()
    llama.refused("llama.gguf: 1 unexpected tensor: 'blk.0.attn_q.lora'")
    llama.tensors = full | {"blk.0.ffn_up.weight": np.zeros((25, 16), np.float32)}
    llama.write()
    llama.refused(r"tensor 'blk.0.ffn_up.weight' has shape \(25, 16\), expected \(24, 16\)")
    llama.tensors = full | {"blk.0.attn_q.weight": np.zeros((8, 16), np.float32)}
    llama.write()
    llama.refused(r"tensor 'blk.0.attn_q.weight' has shape \(8, 16\), expected \(16, 16\)")


def test_unknown_architecture_names_the_nearest(llama):
    llama.write("llama4")
    llama.refused("GGUF architecture 'llama4' is not supported; did you mean llama")
    assert "gptneox" in ARCHITECTURES


def test_missing_metadata_is_named(llama):
    llama.write(without=("add_head_count",))
    llama.refused("llama.attention.head_count must be one integer")
    llama.write(without=("add_layer_norm_rms_eps",))
    llama.refused("llama.attention.layer_norm_rms_epsilon must be a number")


def test_bit_flips_never_crash(llama):
    llama.write()
    data = llama.path.read_bytes()
    end = data.index(b"output_norm.weight") + 60
    rng = np.random.default_rng(0)
    for _ in range(300):
        spoilt = bytearray(data)
        for _ in range(3):
            spoilt[int(rng.integers(4, end))] ^= 1 << int(rng.integers(0, 8))
        llama.path.write_bytes(spoilt)
        try:
            llama.load()
        except LoadError as e:
            assert "llama.gguf" in str(e)


def test_bfloat16_rounding():
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, np.nan, 3.4e38], np.float32)
    bits = to_bfloat16(values)
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    assert back[:3].tolist() == [1.0, 1.0, 1.015625]  # ties to even
    assert np.signbit(back[3]) and back[4] == np.inf and np.isnan(back[5]) and back[6] == np.inf
