"""Flags about steps: how many tokens and sequences, which order, who gives way; logs and traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taco_llm import refusal_reasons as why
from taco_llm.flag_table import flag

GROUP = "scheduling"


@dataclass
class SchedulingArgs:
    """What a step computes, and when."""

    max_num_batched_tokens: int | None = flag(
        None,
        "Most tokens computed in one step. Default: 8192 on GPUs, 2048 on the CPU.",
        GROUP,
        kind="int",
    )
    max_num_seqs: int = flag(256, "Most sequences in one step.", GROUP, kind="int")
    max_logprobs: int = flag(20, "Most logprobs that a request may ask for.", GROUP, kind="int")
    disable_log_stats: bool = flag(False, "Do not log throughput from time to time.", GROUP, kind="bool")
    enforce_eager: bool | None = flag(
        None, "Do not capture CUDA graphs.", GROUP, kind="bool", cpu_note=why.GRAPHS
    )
    max_context_len_to_capture: int | None = flag(
        None, "Old name of --max-seq-len-to-capture.", GROUP, kind="int", cpu_note=why.GRAPHS
    )
    max_seq_len_to_capture: int = flag(
        8192, "Longest sequence that CUDA graphs cover.", GROUP, kind="int", cpu_note=why.GRAPHS
    )
    tokenizer_pool_size: int = flag(0, "Tokenizers in the pool.", GROUP, kind="int", note=why.POOL)
    tokenizer_pool_type: str = flag("ray", "Kind of tokenizer pool.", GROUP, note=why.POOL)
    tokenizer_pool_extra_config: dict[str, Any] | None = flag(
        None, "Settings of the tokenizer pool.", GROUP, kind="json", note=why.POOL
    )
    limit_mm_per_prompt: Mapping[str, int] | None = flag(
        None,
        "Most images, videos and so on in one prompt, such as image=2,video=1. Default: 1 of each.",
        GROUP,
        kind="pairs",
        needs="needs multimodal models, which are not built yet; leave it out",
    )
    num_scheduler_steps: int = flag(
        1,
        "Steps run between two visits of the scheduler.",
        GROUP,
        kind="int",
        note=why.STEPS,
    )
    scheduler_delay_factor: float = flag(
        0.0,
        "Wait this many times the last prompt's latency before the next prompt.",
        GROUP,
        kind="float",
        needs="needs delayed scheduling, which is not built yet; leave it at 0",
    )
    enable_chunked_prefill: bool | None = flag(
        None,
        "Compute long prompts in pieces of --max-num-batched-tokens, along with decoding. On unless false.",
        GROUP,
        kind="maybe_bool",
    )
    preemption_mode: str | None = flag(
        None,
        "What becomes of a request when KV blocks run out: recompute drops and recomputes its cache, swap "
        "moves it to host memory and back. Default: recompute, but swap for requests with several answers.",
        GROUP,
        choices=("recompute", "swap"),
        cpu_needs=why.cpu_preemption,
    )
    disable_async_output_proc: bool = flag(
        False,
        "Do not process outputs while the next step runs.",
        GROUP,
        kind="bool",
        note="the engine's thread makes the text of a step itself",
    )
    otlp_traces_endpoint: str | None = flag(
        None, "Where OpenTelemetry traces go.", GROUP, metavar="URL", needs=why.TRACES
    )
    collect_detailed_traces: str | None = flag(
        None,
        "Modules to trace: model, worker, all, separated by commas.",
        GROUP,
        metavar="MODULES",
        needs=why.TRACES,
    )
