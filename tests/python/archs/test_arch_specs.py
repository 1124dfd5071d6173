"""Specs from configs: both config layouts of transformers, rope arithmetic, messages for what cannot be."""

from __future__ import annotations

import arch_zoo
import numpy as np
import pytest
import torch
import transformers
from taco_llm.archs import build_spec, supported
from taco_llm.archs.registry import ARCHITECTURES
from taco_llm.archs.rules import Misshapen, Tensor, grouped_qkv, transposed
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def spec(**fields):
    return build_spec({**LLAMA, **fields})[0]


ROPES = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-range": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.5,
        "mscale_all_dim": 1.5,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 64,
        "long_factor": [1.0 + 0.5 * i for i in range(64)],
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_is_that_of_transformers(name):
    params = {"rope_type": name.split("-")[0], "rope_theta": 30000.0, **ROPES[name]}
    config = {**LLAMA, "head_dim": 128, "rope_parameters": params}
    rope = build_spec(config)[0].ropes[0]
    hf = transformers.LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"})
    if name == "default":
        expected, factor = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(hf).inv_freq, 1.0
    else:
        # The length that is served here without max_model_len: what longrope chooses by.
        expected, factor = ROPE_INIT_FUNCTIONS[params["rope_type"]](hf, torch.device("cpu"), seq_len=256)
    # A few units in the last place: NumPy and torch round powers differently.
    np.testing.assert_allclose(np.array(rope.inv_freq), expected.numpy(), rtol=6e-7)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-6)
    assert rope.rotary_dim == 128


def test_old_rope_layout_is_the_same():
    old = spec(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = spec(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    assert repr(old) == repr(new)
    assert repr(old) != repr(spec(rope_theta=5e5))


def test_old_window_layout_is_the_same():
    base = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 16}
    old = build_spec({**base, "max_window_layers": 1})[0]
    new = build_spec({**base, "layer_types": ["full_attention", "sliding_attention"]})[0]
    assert [layer.attn.window for layer in old.layers] == [0, 16]
    assert repr(old) == repr(new)


def test_old_gemma3_rope_layout_is_the_same():
    base = {"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 6}
    old = build_spec(
        {
            **base,
            "rope_theta": 5e5,
            "rope_local_base_freq": 2e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }
    )[0]
    params = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    new = build_spec({**base, "rope_parameters": params})[0]
    assert repr(old) == repr(new)
    assert [layer.attn.rope for layer in old.layers] == [1, 1, 1, 1, 1, 0]
    assert old.ropes[0].inv_freq[1] != old.ropes[1].inv_freq[1]


def test_old_falcon_and_bloom_names():
    fields = {"vocab_size": 64, "hidden_size": 64, "n_head": 4, "n_layer": 2}
    falcon = build_spec({"architectures": ["RWForCausalLM"], **fields})[0]
    assert len(falcon.layers) == 2 and falcon.layers[0].attn.num_kv_heads == 1
    bloom = build_spec({"architectures": ["BloomForCausalLM"], "n_embed": 64, "vocab_size": 64, "n_head": 4})[
        0
    ]
    assert bloom.hidden == 64


def test_old_stablelm_names():
    fields = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    old = {"architectures": ["StableLMEpochForCausalLM"], "norm_eps": 1e-3, "rope_pct": 0.5, **fields}
    new = {"architectures": ["StableLmForCausalLM"], "layer_norm_eps": 1e-3, **fields}
    assert repr(build_spec(old)[0]) == repr(build_spec({**new, "partial_rotary_factor": 0.5})[0])
    assert build_spec(old)[0].ropes[0].rotary_dim == 64


def test_old_gpt_neox_rotation_names():
    fields = {"architectures": ["GPTNeoXForCausalLM"], "hidden_size": 64, "num_attention_heads": 2}
    fields |= {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 64}
    old = build_spec({**fields, "rotary_pct": 0.5, "rotary_emb_base": 500})[0]
    params = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    assert repr(old) == repr(build_spec({**fields, "rope_parameters": params})[0])
    assert old.ropes[0].rotary_dim == 16


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_left_out_fields_have_the_config_class_defaults(name, tmp_path):
    # transformers 4 saved only what differs from the defaults of the config class.
    full = _defaults(name)
    full.pop("architectures", None)
    rope = {"rope_parameters", "layer_types"}  # derived ones
    minimal = build_spec({"architectures": [name]})[0]
    complete = build_spec({"architectures": [name], **{k: v for k, v in full.items() if k not in rope}})[0]
    assert repr(minimal) == repr(complete)
    with_rope = build_spec({"architectures": [name], **full})[0]
    assert repr(minimal) == repr(with_rope)


def _defaults(name):
    return next(case.defaults() for case in arch_zoo.CASES.values() if case.architecture == name)


def test_served_context_of_scaled_ropes():
    assert spec().max_positions == 256
    assert spec(rope_scaling={"type": "linear", "factor": 2.0}).max_positions == 512
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert spec(rope_scaling=yarn).max_positions == 1024
    dynamic = {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert build_spec(dynamic)[0].max_positions == 256
    assert build_spec(dynamic, max_model_len=400)[0].max_positions == 400


def test_gemma2_embedding_factor_is_rounded_like_the_checkpoint():
    config = {"architectures": ["Gemma2ForCausalLM"], "hidden_size": 2304, "num_hidden_layers": 1}
    assert build_spec({**config, "torch_dtype": "bfloat16"})[0].embed_scale == 48.0
    odd = {**config, "hidden_size": 3584, "num_attention_heads": 16}
    expected = float(torch.tensor(3584**0.5, dtype=torch.bfloat16))
    assert build_spec({**odd, "torch_dtype": "bfloat16"})[0].embed_scale == expected
    assert build_spec({**odd, "dtype": "float32"})[0].embed_scale == pytest.approx(3584**0.5, rel=1e-7)


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(
        ValueError, match="'LlamaForCausalLn' is not supported; did you mean LlamaForCausalLM"
    ):
        build_spec({"architectures": ["LlamaForCausalLn"]})
    with pytest.raises(ValueError, match="Supported: .*OPTForCausalLM"):
        build_spec({"architectures": ["T5ForConditionalGeneration"]})
    with pytest.raises(ValueError, match="architectures is missing"):
        build_spec({"model_type": "llama"})
    assert set(ARCHITECTURES) <= set(supported())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "big"}, "hidden_size must be an integer"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"hidden_size": float("nan")}, "hidden_size is out of range"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is out of range"),
        ({"vocab_size": 10**400}, "vocab_size is out of range"),
        ({"hidden_size": 64.5}, "hidden_size must be an integer"),
        ({"num_hidden_layers": 1 << 24}, "num_hidden_layers must be at least 1 and at most 1024"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"num_attention_heads": 6}, "64 is not divisible by 6"),
        ({"num_key_value_heads": 3}, "4 is not divisible by 3"),
        ({"hidden_act": "snake"}, "hidden_act 'snake'"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        ({"rope_scaling": {"type": "warp"}}, "rope type 'warp' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "needs a number for 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "'factor' must be positive"),
        ({"rope_scaling": {"type": "longrope", "short_factor": 1}}, "short_factor must be a list of 8"),
        (
            {
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1] * 8,
                    "short_mscale": -1,
                    "original_max_position_embeddings": 256,
                }
            },
            "'short_mscale' must be positive",
        ),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with 'gptq'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        spec(**fields)


WEIRD = [None, True, "x", "", -1, 0, 1, 0.5, 3, 1 << 40, float("nan"), float("inf"), [], [1], {}, {"a": 1}]
WEIRD_ROPES = [
    {
        "rope_type": kind,
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "short_factor": [1.0] * 64 if high == 4.0 else high,
        "long_factor": [factor] * 64,
        "long_mscale": factor,
    }
    for kind in ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
    for theta in (1.0, 1e300, "x", 10000.0)
    for factor in (1e-300, 4.0, float("inf"), None)
    for high in (4.0, 1.0, [])
]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_weird_fields_are_values_or_value_errors(name):
    base = _defaults(name) | {"architectures": [name]}
    layers = next(f for f in ("n_layer", "num_layers", "num_hidden_layers") if f in base)
    base |= {layers: 2, "layer_types": None, "no_rope_layers": None}  # lists with an entry for each layer
    build_spec(base)
    built = refused = 0
    spoilt = [{**base, field: value} for field in base for value in WEIRD]
    spoilt += [{**base, "rope_parameters": rope, "max_position_embeddings": 64} for rope in WEIRD_ROPES]
    for config in spoilt:
        try:
            build_spec(config)
            built += 1
        except ValueError as e:
            assert str(e)
            refused += 1
    assert built and refused


def test_cuts_move_rows_without_converting():
    rows = Tensor("BF16", (8, 3), np.arange(24, dtype="<u2").reshape(8, 3))
    # two groups of [2 query heads, key, value] with heads of one row
    q, k, v = grouped_qkv(1)(rows, [(4, 3), (2, 3), (2, 3)])
    assert q.data[:, 0].tolist() == [0, 3, 12, 15]
    assert k.data[:, 0].tolist() == [6, 18] and v.data[:, 0].tolist() == [9, 21]
    a, b = transposed(rows, [(1, 8), (2, 8)])
    assert a.data.tolist() == [list(range(0, 24, 3))] and b.shape == (2, 8)
    with pytest.raises(Misshapen, match=r"\(9, 3\)"):
        grouped_qkv(1)(rows, [(5, 3), (2, 3), (2, 3)])


def test_a_quantised_row_stays_whole():
    raw = np.arange(4 * 34, dtype=np.uint8)
    tensor = Tensor.from_bytes("Q8_0", (4, 32), raw)
    assert tensor.data.shape == (4, 34)
    moved = tensor.rows(np.array([2, 0]))
    assert moved.shape == (2, 32)
    assert moved.bytes().tolist() == raw[68:102].tolist() + raw[:34].tolist()
