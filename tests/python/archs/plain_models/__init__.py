"""Plain float32 references of the architectures whose published code is not in transformers.

One readable module for each family, written from the papers and from what the published modelling computes:
whole sequences, no cache, no batching. Parameters have the names of the checkpoints. Used by the parity tests
and by nothing else.
"""

from __future__ import annotations

from .baichuan import BaiChuanForCausalLM, BaichuanForCausalLM
from .chatglm import ChatGLMModel
from .common import PlainModel
from .internlm import InternLM2ForCausalLM, InternLMForCausalLM
from .phi3_small import Phi3SmallForCausalLM
from .qwen import QWenLMHeadModel
from .xverse import XverseForCausalLM

MODELS: dict[str, type[PlainModel]] = {
    model.__name__: model
    for model in (
        BaiChuanForCausalLM,
        BaichuanForCausalLM,
        ChatGLMModel,
        InternLM2ForCausalLM,
        InternLMForCausalLM,
        Phi3SmallForCausalLM,
        QWenLMHeadModel,
        XverseForCausalLM,
    )
}
