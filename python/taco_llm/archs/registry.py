"""Architecture names -> functions, imported when asked for. One line for each name of `config.json`'s
architectures.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taco_llm._core import ModelSpec

    from .config import Config
    from .rules import WeightRules

    Builder = Callable[[Config, int | None], tuple[ModelSpec, WeightRules]]

ARCHITECTURES: dict[str, tuple[str, str]] = {
    "BaichuanForCausalLM": ("baichuan", "baichuan"),
    "BaiChuanForCausalLM": ("baichuan", "baichuan_7b"),
    "BloomForCausalLM": ("bloom", "bloom"),
    "ChatGLMModel": ("chatglm", "chatglm"),
    "DeepseekV2ForCausalLM": ("deepseek", "deepseek_v2"),
    "FalconForCausalLM": ("falcon", "falcon"),
    "Gemma2ForCausalLM": ("gemma", "gemma2"),
    "Gemma3ForCausalLM": ("gemma", "gemma3"),
    "GemmaForCausalLM": ("gemma", "gemma"),
    "GPT2LMHeadModel": ("gpt2", "gpt2"),
    "GPTBigCodeForCausalLM": ("gpt_bigcode", "gpt_bigcode"),
    "GPTJForCausalLM": ("gptj", "gptj"),
    "GPTNeoXForCausalLM": ("gpt_neox", "gpt_neox"),
    "GptOssForCausalLM": ("gpt_oss", "gpt_oss"),
    "InternLM2ForCausalLM": ("internlm", "internlm2"),
    "InternLMForCausalLM": ("internlm", "internlm"),
    "LlamaForCausalLM": ("llama_like", "llama"),
    "MistralForCausalLM": ("llama_like", "mistral"),
    "MixtralForCausalLM": ("llama_like", "mixtral"),
    "NemotronForCausalLM": ("nemotron", "nemotron"),
    "Olmo2ForCausalLM": ("olmo2", "olmo2"),
    "OPTForCausalLM": ("opt", "opt"),
    "Phi3ForCausalLM": ("phi", "phi3"),
    "Phi3SmallForCausalLM": ("phi3_small", "phi3_small"),
    "PhiForCausalLM": ("phi", "phi"),
    "PhimoeForCausalLM": ("phi", "phimoe"),
    "Qwen2ForCausalLM": ("llama_like", "qwen2"),
    "Qwen2MoeForCausalLM": ("moe", "qwen2_moe"),
    "Qwen3ForCausalLM": ("llama_like", "qwen3"),
    "Qwen3MoeForCausalLM": ("moe", "qwen3_moe"),
    "QWenLMHeadModel": ("qwen", "qwen"),
    "SmolLM3ForCausalLM": ("smollm3", "smollm3"),
    "StableLmForCausalLM": ("stablelm", "stablelm"),
    "Starcoder2ForCausalLM": ("starcoder2", "starcoder2"),
    "XverseForCausalLM": ("llama_like", "xverse"),
}

# Names under which older checkpoints have the same models.
ALIASES = {
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "ChatGLMForConditionalGeneration": "ChatGLMModel",
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
}


def supported() -> list[str]:
    """Architecture names that can be loaded, sorted."""
    return sorted([*ARCHITECTURES, *ALIASES])


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean X?', or nothing where no known name is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def find(name: str) -> Builder:
    """The function of an architecture. ValueError naming the nearest known one and all supported."""
    target = ARCHITECTURES.get(ALIASES.get(name, name))
    if target is None:
        raise ValueError(
            f"architecture {name!r} is not supported{nearest(name, supported())}. "
            f"Supported: {', '.join(supported())}"
        )
    module, function = target
    builder: Builder = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return builder
