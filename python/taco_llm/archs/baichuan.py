"""Baichuan and Baichuan 2: Llama with q, k and v in one matrix. 7B rotates, 13B has ALiBi; Baichuan 2 divides
the rows of its head by their lengths.

Both sizes of Baichuan 2 have one name and no field that says which is which. What tells them apart is what
their configs leave out: only 13B has no max_position_embeddings (its context is model_max_length), and only
Baichuan 2 has z_loss_weight.
"""

from __future__ import annotations

from taco_llm._core import ModelSpec

from .alibi import alibi_slopes
from .config import Config
from .llama_like import IGNORE, RULES, llama_like
from .rules import Rule, WeightRules, stacked, unit_rows


def _build(
    c: Config, max_model_len: int | None, architecture: str, vocab: int, alibi: bool, unit_head: bool
) -> tuple[ModelSpec, WeightRules]:
    heads = c.integer("num_attention_heads", default=32)
    length = max(c.integer("model_max_length", default=4096), max_model_len or 0)  # there is no last position
    spec = llama_like(
        c,
        max_model_len,
        architecture=architecture,
        max_positions=4096,
        vocab=vocab,
        attn=dict(rope=-1, alibi_slopes=alibi_slopes(heads)) if alibi else None,
        model=dict(ropes=[], max_positions=length) if alibi else None,
    )
    if unit_head and spec.tied_head:
        raise ValueError("config.json: tie_word_embeddings with a normalised head is not supported")
    rules = [
        *(r for r in RULES if r.name != "lm_head.weight"),
        Rule(
            "model.layers.{i}.self_attn.W_pack.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
        ),
        Rule("lm_head.weight", ("head.weight",), unit_rows if unit_head else stacked),
    ]
    return spec, WeightRules(rules, len(spec.layers), prefix="model.", ignore=IGNORE)


def baichuan(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    hidden = c.integer("hidden_size", default=4096)
    vocab = c.integer("vocab_size", default=125696)
    # The published sizes by themselves, others by their fields.
    alibi = hidden == 5120 or (hidden != 4096 and c.raw("max_position_embeddings") is None)
    unit_head = vocab == 125696 or c.raw("z_loss_weight") is not None
    return _build(c, max_model_len, "BaichuanForCausalLM", vocab, alibi, unit_head)


def baichuan_7b(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    """The spelling of the first 7B model's checkpoints."""
    return _build(c, max_model_len, "BaiChuanForCausalLM", 64000, alibi=False, unit_head=False)
