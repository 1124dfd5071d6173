"""Tiny random models of the architectures whose references are plain_models: cases of arch_zoo.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plain_models

VOCAB = 101


@dataclass(frozen=True)
class PlainCase:
    """A reference of plain_models with its config's fields."""

    architecture: str
    fields: dict[str, Any]
    save: str = "plain"

    def defaults(self) -> dict[str, Any]:
        return dict(plain_models.MODELS[self.architecture].DEFAULTS)

    def build(self) -> Any:
        return plain_models.MODELS[self.architecture](self.fields)


def plain(architecture: str, base: dict[str, Any], **fields: Any) -> PlainCase:
    """`...` leaves a field of the base out."""
    return PlainCase(architecture, {k: v for k, v in {**base, **fields}.items() if v is not ...})


# What the configs of Llama's relations share.
RELATION = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    max_position_embeddings=128,
)
# In place of max_position_embeddings in the configs of Baichuan 13B.
MODEL_MAX_LENGTH = dict(max_position_embeddings=..., model_max_length=128)
CHATGLM = dict(
    num_layers=2,
    padded_vocab_size=VOCAB,
    hidden_size=48,
    ffn_hidden_size=56,
    kv_channels=16,
    num_attention_heads=4,
    seq_length=128,
    add_qkv_bias=True,
    multi_query_attention=True,
    multi_query_group_num=2,
)
QWEN = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    kv_channels=16,
    intermediate_size=112,
    seq_length=128,
)

# Blocks of 4 tokens of which a query sees its own, the one before it and each third or so.
PHI3_SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    ff_intermediate_size=40,
    max_position_embeddings=128,
    blocksparse_block_size=4,
    blocksparse_num_local_blocks=2,
    blocksparse_vert_stride=3,
    gegelu_limit=1.5,
    mup_embedding_multiplier=3.0,
    mup_width_multiplier=2.0,
)

CASES: dict[str, PlainCase] = {
    "baichuan-7b": plain("BaiChuanForCausalLM", RELATION),
    "baichuan-7b-shallow": plain("BaiChuanForCausalLM", RELATION, num_hidden_layers=1, hidden_size=24),
    "baichuan-7b-heads": plain("BaiChuanForCausalLM", RELATION, num_attention_heads=3, rms_norm_eps=1e-5),
    "baichuan-13b": plain("BaichuanForCausalLM", RELATION, **MODEL_MAX_LENGTH),
    "baichuan-13b-power-of-two": plain(
        "BaichuanForCausalLM", RELATION, num_attention_heads=4, **MODEL_MAX_LENGTH
    ),
    "baichuan2-7b": plain("BaichuanForCausalLM", RELATION, z_loss_weight=0, model_max_length=128),
    "baichuan2-13b": plain("BaichuanForCausalLM", RELATION, z_loss_weight=0, **MODEL_MAX_LENGTH),
    "chatglm2": plain("ChatGLMModel", CHATGLM),
    "chatglm2-long": plain("ChatGLMModel", CHATGLM, rope_ratio=4, _name_or_path="THUDM/chatglm2-6b-32k"),
    "chatglm3-long": plain("ChatGLMModel", CHATGLM, multi_query_group_num=1, rope_ratio=50),
    "chatglm-multihead": plain(
        "ChatGLMModel", CHATGLM, multi_query_attention=False, add_bias_linear=True, kv_channels=8
    ),
    "chatglm-layer-norm": plain(
        "ChatGLMModel", CHATGLM, rmsnorm=False, post_layer_norm=False, tie_word_embeddings=True
    ),
    "internlm": plain("InternLMForCausalLM", RELATION),
    "internlm-no-bias": plain("InternLMForCausalLM", RELATION, bias=False, tie_word_embeddings=True),
    "internlm-dynamic": plain(
        "InternLMForCausalLM", RELATION, rotary={"base": 5000, "type": "dynamic"}, rms_norm_eps=1e-5
    ),
    "internlm2": plain("InternLM2ForCausalLM", RELATION, num_key_value_heads=2, bias=False),
    "internlm2-bias": plain("InternLM2ForCausalLM", RELATION, rope_theta=1e6, tie_word_embeddings=True),
    "internlm2-dynamic": plain(
        "InternLM2ForCausalLM",
        RELATION,
        num_key_value_heads=1,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "internlm2-linear": plain(
        "InternLM2ForCausalLM",
        RELATION,
        num_key_value_heads=3,
        rope_scaling={"type": "linear", "factor": 3.0},
    ),
    "phi3-small": plain("Phi3SmallForCausalLM", PHI3_SMALL, dummy_token_indices=[1, 40, 77, 100]),
    "phi3-small-same-heads": plain(
        "Phi3SmallForCausalLM",
        PHI3_SMALL,
        blocksparse_homo_head_pattern=True,
        dense_attention_every_n_layers=None,
        num_key_value_heads=6,
        mup_use_scaling=False,
    ),
    "phi3-small-few-heads": plain(
        "Phi3SmallForCausalLM",
        PHI3_SMALL,
        num_attention_heads=2,
        num_key_value_heads=1,
        blocksparse_vert_stride=5,
        blocksparse_num_local_blocks=1,
        rope_position_scale=2.0,
        gegelu_limit=None,
        tie_word_embeddings=False,
        mup_attn_multiplier=1.7,
    ),
    "phi3-small-longrope": plain(
        "Phi3SmallForCausalLM",
        PHI3_SMALL,
        rope_scaling={
            "type": "su",
            "original_max_position_embeddings": 16,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 7.0],
            "short_mscale": 1.05,
            "long_mscale": 1.2,
        },
    ),
    "qwen": plain("QWenLMHeadModel", QWEN),
    "qwen-biases": plain("QWenLMHeadModel", QWEN, no_bias=False, tie_word_embeddings=True, rotary_pct=0.5),
    # Beyond the trained length queries grow; the base is fixed, so it stays what it is in the reference.
    "qwen-log-n": plain("QWenLMHeadModel", QWEN, seq_length=20, use_dynamic_ntk=False),
    "qwen-no-log-n": plain("QWenLMHeadModel", QWEN, use_logn_attn=False, rotary_emb_base=500.0),
    "xverse": plain("XverseForCausalLM", RELATION),
    "xverse-grouped": plain("XverseForCausalLM", RELATION, num_key_value_heads=2, rope_theta=500000.0),
    "xverse-tied": plain("XverseForCausalLM", RELATION, tie_word_embeddings=True, rms_norm_eps=1e-5),
}
