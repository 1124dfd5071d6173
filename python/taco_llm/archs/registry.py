"""Architecture names -> functions, imported when asked for. One entry for each name of `config.json`'s
architectures: the function's module and name, the models, checkpoints on the hub for example.
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

ARCHITECTURES: dict[str, tuple[str, str, str, str]] = {
    "BaichuanForCausalLM": (
        "baichuan",
        "baichuan",
        "Baichuan 13B, Baichuan 2",
        "baichuan-inc/Baichuan2-7B-Chat baichuan-inc/Baichuan2-13B-Chat baichuan-inc/Baichuan-13B-Chat",
    ),
    "BaiChuanForCausalLM": ("baichuan", "baichuan_7b", "Baichuan 7B", "baichuan-inc/Baichuan-7B"),
    "BloomForCausalLM": ("bloom", "bloom", "Bloom", "bigscience/bloom-560m bigscience/bloomz-7b1"),
    "ChatGLMModel": (
        "chatglm",
        "chatglm",
        "ChatGLM 2 and 3, GLM-4",
        "THUDM/chatglm2-6b THUDM/chatglm3-6b THUDM/glm-4-9b-chat",
    ),
    "DeepseekV2ForCausalLM": ("deepseek", "deepseek_v2", "DeepSeek-V2", "deepseek-ai/DeepSeek-V2-Lite-Chat"),
    "FalconForCausalLM": (
        "falcon",
        "falcon",
        "Falcon",
        "tiiuae/falcon-7b-instruct tiiuae/falcon-40b tiiuae/falcon-11B",
    ),
    "Gemma2ForCausalLM": ("gemma", "gemma2", "Gemma 2", "google/gemma-2-2b-it google/gemma-2-9b-it"),
    "Gemma3ForCausalLM": ("gemma", "gemma3", "Gemma 3, text", "google/gemma-3-1b-it"),
    "GemmaForCausalLM": ("gemma", "gemma", "Gemma", "google/gemma-2b google/gemma-7b-it"),
    "GPT2LMHeadModel": ("gpt2", "gpt2", "GPT-2", "openai-community/gpt2 openai-community/gpt2-xl"),
    "GPTBigCodeForCausalLM": (
        "gpt_bigcode",
        "gpt_bigcode",
        "GPTBigCode",
        "bigcode/starcoder bigcode/gpt_bigcode-santacoder",
    ),
    "GPTJForCausalLM": ("gptj", "gptj", "GPT-J", "EleutherAI/gpt-j-6b nomic-ai/gpt4all-j"),
    "GPTNeoXForCausalLM": (
        "gpt_neox",
        "gpt_neox",
        "GPT-NeoX, Pythia",
        "EleutherAI/pythia-1.4b EleutherAI/gpt-neox-20b",
    ),
    "GptOssForCausalLM": ("gpt_oss", "gpt_oss", "GPT-OSS", "openai/gpt-oss-20b"),
    "InternLM2ForCausalLM": (
        "internlm",
        "internlm2",
        "InternLM 2",
        "internlm/internlm2-chat-7b internlm/internlm2_5-7b-chat",
    ),
    "InternLMForCausalLM": ("internlm", "internlm", "InternLM", "internlm/internlm-chat-7b"),
    "LlamaForCausalLM": (
        "llama_like",
        "llama",
        "Llama 1 to 3.2 and what has its shape",
        "meta-llama/Llama-3.2-1B-Instruct meta-llama/Llama-3.1-8B-Instruct HuggingFaceTB/SmolLM2-135M",
    ),
    "MistralForCausalLM": ("llama_like", "mistral", "Mistral", "mistralai/Mistral-7B-Instruct-v0.3"),
    "MixtralForCausalLM": ("llama_like", "mixtral", "Mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    "NemotronForCausalLM": ("nemotron", "nemotron", "Nemotron", "nvidia/Minitron-8B-Base"),
    "Olmo2ForCausalLM": ("olmo2", "olmo2", "OLMo 2", "allenai/OLMo-2-1124-7B-Instruct"),
    "OPTForCausalLM": ("opt", "opt", "OPT", "facebook/opt-125m facebook/opt-350m facebook/opt-6.7b"),
    "Phi3ForCausalLM": (
        "phi",
        "phi3",
        "Phi-3, Phi-3.5, Phi-4",
        "microsoft/Phi-3-mini-4k-instruct microsoft/phi-4",
    ),
    "Phi3SmallForCausalLM": (
        "phi3_small",
        "phi3_small",
        "Phi-3-small",
        "microsoft/Phi-3-small-8k-instruct microsoft/Phi-3-small-128k-instruct",
    ),
    "PhiForCausalLM": ("phi", "phi", "Phi 1, 1.5, 2", "microsoft/phi-1_5 microsoft/phi-2"),
    "PhimoeForCausalLM": ("phi", "phimoe", "Phi-3.5-MoE", "microsoft/Phi-3.5-MoE-instruct"),
    "Qwen2ForCausalLM": (
        "llama_like",
        "qwen2",
        "Qwen 1.5, 2, 2.5",
        "Qwen/Qwen2-7B-Instruct Qwen/Qwen2.5-0.5B",
    ),
    "Qwen2MoeForCausalLM": (
        "moe",
        "qwen2_moe",
        "Qwen MoE",
        "Qwen/Qwen1.5-MoE-A2.7B-Chat Qwen/Qwen2-57B-A14B",
    ),
    "Qwen3ForCausalLM": ("llama_like", "qwen3", "Qwen 3", "Qwen/Qwen3-0.6B Qwen/Qwen3-8B"),
    "Qwen3MoeForCausalLM": ("moe", "qwen3_moe", "Qwen 3 MoE", "Qwen/Qwen3-30B-A3B"),
    "QWenLMHeadModel": ("qwen", "qwen", "Qwen", "Qwen/Qwen-7B-Chat Qwen/Qwen-1_8B"),
    "SmolLM3ForCausalLM": ("smollm3", "smollm3", "SmolLM3", "HuggingFaceTB/SmolLM3-3B"),
    "StableLmForCausalLM": (
        "stablelm",
        "stablelm",
        "StableLM",
        "stabilityai/stablelm-3b-4e1t stabilityai/stablelm-2-12b",
    ),
    "Starcoder2ForCausalLM": (
        "starcoder2",
        "starcoder2",
        "StarCoder2",
        "bigcode/starcoder2-3b bigcode/starcoder2-15b",
    ),
    "XverseForCausalLM": ("llama_like", "xverse", "XVERSE", "xverse/XVERSE-7B-Chat xverse/XVERSE-13B-Chat"),
}

# Names under which older checkpoints have the same models.
ALIASES = {
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "ChatGLMForConditionalGeneration": "ChatGLMModel",
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
    "StableLMEpochForCausalLM": "StableLmForCausalLM",
}


class UnknownArchitecture(ValueError):
    """config.json names an architecture that is not here."""


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
        raise UnknownArchitecture(
            f"architecture {name!r} is not supported{nearest(name, supported())}. "
            f"Supported: {', '.join(supported())}"
        )
    module, function, *_ = target
    builder: Builder = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return builder
