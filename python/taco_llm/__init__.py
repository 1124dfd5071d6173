"""taco_llm: an LLM inference engine.

    from taco_llm import LLM, SamplingParams

Names are imported when they are first used, so that `import taco_llm` is quick.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's would cost most of this module's import time; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from taco_llm.async_engine import AsyncLLMEngine
    from taco_llm.engine_args import AsyncEngineArgs, EngineArgs
    from taco_llm.llm import LLM
    from taco_llm.outputs import CompletionOutput, RequestOutput
    from taco_llm.prompts import PromptInputs, TextPrompt, TokensPrompt
    from taco_llm.sampling_params import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "CompletionOutput",
    "EngineArgs",
    "PromptInputs",
    "RequestOutput",
    "SamplingParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]

_HOMES = {
    "LLM": "taco_llm.llm",
    "AsyncLLMEngine": "taco_llm.async_engine",
    "AsyncEngineArgs": "taco_llm.engine_args",
    "EngineArgs": "taco_llm.engine_args",
    "CompletionOutput": "taco_llm.outputs",
    "RequestOutput": "taco_llm.outputs",
    "PromptInputs": "taco_llm.prompts",
    "TextPrompt": "taco_llm.prompts",
    "TokensPrompt": "taco_llm.prompts",
    "SamplingParams": "taco_llm.sampling_params",
}
_NOT_BUILT = {
    "LoRARequest": "LoRA adapters",
    "PromptAdapterRequest": "prompt adapters",
    "LLMGuidedOptions": "guided decoding",
    "GuidedDecodingRequest": "guided decoding",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is not None:
        from importlib import import_module

        value = getattr(import_module(home), name)
        globals()[name] = value
        return value
    if name in _NOT_BUILT:
        raise AttributeError(f"taco_llm.{name} is not there: {_NOT_BUILT[name]} are not built yet")
    raise AttributeError(f"module 'taco_llm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
