"""Flags about adapters of models."""

from __future__ import annotations

from dataclasses import dataclass

from taco_llm import refusal_reasons as why
from taco_llm.flag_table import flag

GROUP = "adapters"


@dataclass
class AdapterArgs:
    """LoRA and prompt adapters."""

    enable_lora: bool = flag(False, "Serve LoRA adapters.", GROUP, kind="bool", needs=why.LORA)
    max_loras: int = flag(1, "LoRA adapters in one step.", GROUP, kind="int", needs=why.LORA)
    max_lora_rank: int = flag(16, "Highest rank of a LoRA adapter.", GROUP, kind="int", needs=why.LORA)
    lora_extra_vocab_size: int = flag(
        256, "Tokens that LoRA adapters may add.", GROUP, kind="int", needs=why.LORA
    )
    lora_dtype: str = flag(
        "auto",
        "Data type of LoRA adapters.",
        GROUP,
        choices=("auto", "float16", "bfloat16", "float32"),
        needs=why.LORA,
    )
    long_lora_scaling_factors: str | None = flag(
        None, "Scaling factors of long-context LoRA adapters, separated by commas.", GROUP, needs=why.LORA
    )
    max_cpu_loras: int | None = flag(None, "LoRA adapters kept in memory.", GROUP, kind="int", needs=why.LORA)
    fully_sharded_loras: bool = flag(
        False, "Share LoRA layers fully among devices.", GROUP, kind="bool", needs=why.LORA
    )
    enable_prompt_adapter: bool = flag(
        False, "Serve prompt adapters.", GROUP, kind="bool", needs=why.PROMPT_ADAPTERS
    )
    max_prompt_adapters: int = flag(
        1, "Prompt adapters in one step.", GROUP, kind="int", needs=why.PROMPT_ADAPTERS
    )
    max_prompt_adapter_token: int = flag(
        0, "Tokens of a prompt adapter.", GROUP, kind="int", needs=why.PROMPT_ADAPTERS
    )
