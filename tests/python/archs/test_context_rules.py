"""What depends on the context's length beyond the trained one: dynamic NTK bases and growing queries.

The published models compute the base anew for each length, so that cached keys disagree with new ones; here
it is fixed at the length that is served. At exactly that length both are the same.
"""

from __future__ import annotations

import arch_zoo
import parity
import plain_zoo
import pytest
from taco_llm.archs import build_spec
from taco_llm.archs.qwen import ntk_alpha

TRAINED, SERVED = 20, 56

CASES = {
    "qwen": plain_zoo.plain("QWenLMHeadModel", plain_zoo.QWEN, seq_length=TRAINED),
    "qwen-partial": plain_zoo.plain(
        "QWenLMHeadModel", plain_zoo.QWEN, seq_length=TRAINED, rotary_pct=0.5, use_logn_attn=False
    ),
    "internlm": plain_zoo.plain(
        "InternLMForCausalLM",
        plain_zoo.RELATION,
        max_position_embeddings=TRAINED,
        rotary={"base": 10000, "type": "dynamic"},
    ),
    "internlm2": plain_zoo.plain(
        "InternLM2ForCausalLM",
        plain_zoo.RELATION,
        num_key_value_heads=2,
        max_position_embeddings=TRAINED,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_beyond_the_trained_length(name, tmp_path):
    model = arch_zoo.make_model(CASES[name])
    arch_zoo.save(CASES[name], model, tmp_path)
    ids = arch_zoo.prompt(length=SERVED)
    expected = arch_zoo.logits(model, ids)
    ours = parity.load(tmp_path, max_model_len=SERVED)
    assert parity.error(parity.run(ours, ids), expected) < parity.TOLERANCE
    assert parity.error(parity.run(ours, ids, [7, 30] + [1] * 19), expected) < parity.TOLERANCE
    # Shorter prefixes have another base in the published model, and the rule is not a no-op here.
    short = arch_zoo.logits(model, ids[:TRAINED])
    assert parity.error(parity.run(ours, ids[:TRAINED], max_len=SERVED), short) > 1e-3
    plain = parity.load(tmp_path, max_model_len=TRAINED)
    assert parity.error(parity.run(plain, ids[:TRAINED]), short) < parity.TOLERANCE


@pytest.mark.parametrize(
    ("length", "alpha"), [(1, 1), (8192, 1), (8193, 3), (16384, 3), (16385, 7), (32768, 7), (32769, 15)]
)
def test_qwen_alpha_grows_in_powers_of_two(length, alpha):
    assert ntk_alpha(length, 8192) == alpha


def test_qwen_serves_its_trained_length_unless_more_is_asked_for():
    config = {"architectures": ["QWenLMHeadModel"], "seq_length": 2048}
    assert build_spec(config)[0].max_positions == 2048
    longer = build_spec(config, max_model_len=8192)[0]
    assert longer.max_positions == 8192 and longer.layers[0].attn.log_length == 2048
    fixed = build_spec({**config, "use_dynamic_ntk": False, "use_logn_attn": False}, max_model_len=8192)[0]
    assert fixed.max_positions == 2048 and fixed.layers[0].attn.log_length == 0


PUBLISHED = {  # what the config.json of each published model says of what tells them apart
    "Baichuan-7B": ("BaiChuanForCausalLM", dict(hidden_size=4096, max_position_embeddings=4096), False),
    "Baichuan-13B": ("BaichuanForCausalLM", dict(hidden_size=5120, model_max_length=4096), True),
    "Baichuan2-7B": (
        "BaichuanForCausalLM",
        dict(hidden_size=4096, max_position_embeddings=4096, model_max_length=4096, vocab_size=125696),
        False,
    ),
    "Baichuan2-13B": (
        "BaichuanForCausalLM",
        dict(hidden_size=5120, model_max_length=4096, vocab_size=125696, z_loss_weight=0),
        True,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_baichuan_sizes_are_told_apart(name):
    architecture, fields, alibi = PUBLISHED[name]
    heads = fields["hidden_size"] // 128
    spec, rules = build_spec(
        {"architectures": [architecture], "num_attention_heads": heads, "vocab_size": 64000, **fields}
    )
    assert bool(spec.layers[0].attn.alibi_slopes) == alibi and bool(spec.ropes) != alibi
    assert spec.max_positions == 4096
    head = next(r for r in rules.rules if r.name == "lm_head.weight")
    assert (head.cut.__name__ == "unit_rows") == name.startswith("Baichuan2")


def test_normalised_rows_keep_their_format():
    import numpy as np
    import torch
    from taco_llm.archs.rules import Misshapen, Tensor, unit_rows

    rows = torch.randn(7, 48, generator=torch.Generator().manual_seed(1))
    for name, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        stored = rows.to(dtype)
        raw = stored.view(torch.uint8).numpy().reshape(-1)
        (out,) = unit_rows(Tensor.from_bytes(name, (7, 48), raw), [(7, 48)])
        expected = torch.nn.functional.normalize(stored.float()).to(dtype)
        got = torch.from_numpy(out.bytes().copy()).view(dtype).reshape(7, 48)
        torch.testing.assert_close(got, expected, rtol=1e-6 if name == "F32" else 0, atol=0)
    with pytest.raises(Misshapen):
        unit_rows(Tensor("Q8_0", (7, 64), np.zeros((7, 68), np.uint8)), [(7, 64)])
