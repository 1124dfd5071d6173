"""Flags that vLLM 0.6.1 does not have: the lookahead cache, the tiers of the prefix cache and others."""

from __future__ import annotations

from dataclasses import dataclass

from taco_llm import refusal_reasons as why
from taco_llm.flag_table import flag

GROUP = "taco_llm"


@dataclass
class OwnArgs:
    """taco_llm's own settings."""

    lookahead_cache_config_dir: str | None = flag(
        None,
        "Turns the lookahead cache on: tokens are drafted from what prompts and answers have shown. The "
        "folder may hold settings, lookahead_cache_config.json; without the file the defaults apply.",
        GROUP,
        metavar="DIR",
    )
    cpu_decoding_memory_utilization: float = flag(
        0.15,
        "Part of the memory (of the machine, or of the container's limit) that the lookahead cache may fill.",
        GROUP,
        kind="float",
    )
    ignore_prompt_for_lookahead_cache: bool = flag(
        False,
        "Let the lookahead cache learn from answers only, not from prompts, as where the two have nothing in "
        "common (translation).",
        GROUP,
        kind="bool",
    )
    lookahead_cache_save: str | None = flag(
        None,
        "File that keeps what the lookahead cache has learnt: read at start if it is there, written at the "
        "end and from time to time.",
        GROUP,
        metavar="FILE",
    )
    lookahead_cache_save_interval: float = flag(
        10,
        "Minutes between two writes of --lookahead-cache-save; 0: at the end only.",
        GROUP,
        kind="float",
    )
    enable_prefix_cache_offload: bool = flag(
        False,
        "Let blocks that must leave the prefix cache on the device move to memory, and come back on a hit.",
        GROUP,
        kind="bool",
    )
    cpu_prefill_memory_utilization: float = flag(
        0.3,
        "Part of the memory (of the machine, or of the container's limit) for offloaded prefix blocks; the "
        "GPUs share it.",
        GROUP,
        kind="float",
    )
    apc_offload_not_lazy: bool = flag(
        False,
        "Debugging: let a request wait until its offloaded blocks are back in all layers, instead of "
        "beginning when the first ones are.",
        GROUP,
        kind="bool",
    )
    apc_offload_min_access_threshold: int = flag(
        1, "Uses of a block before it is worth offloading; 1: every block is.", GROUP, kind="int"
    )
    apc_offload_enable_hit_cnt: bool = flag(
        False, "Log, every 100 blocks of prompts, how many of them the prefix cache had.", GROUP, kind="bool"
    )
    apc_offload_gpu_evictor_limit: int = flag(
        -1,
        "Debugging: most unused blocks that the prefix cache keeps on the device; -1: all there are.",
        GROUP,
        kind="int",
    )
    prefix_cache_dir: str | None = flag(
        None,
        "Folder in which offloaded prefix blocks outlive the process. They are made of prompts and answers: "
        "guard it as those.",
        GROUP,
        metavar="DIR",
    )
    prefix_cache_disk_gb: float = flag(16, "GiB that --prefix-cache-dir may fill.", GROUP, kind="float")
    sequence_parallel_size: int = flag(
        1,
        "Devices that share a prompt's tokens.",
        GROUP,
        kind="int",
        needs=why.more_than_one("sequence parallelism"),
    )
    conservative_dry_run: bool = flag(
        False,
        "Leave twice the memory that a trial of the largest step took beside the weights, where kernels or "
        "other programs may want more later than they did then.",
        GROUP,
        kind="bool",
        cpu_note="sizes GPU memory; on the CPU there is no trial step",
    )
    batch_invariant: bool = flag(
        False,
        "Let no answer depend on what else is in its batch: kernels with a fixed order of sums (GPUs).",
        GROUP,
        kind="bool",
        cpu_needs="is a mode of the CUDA backend; leave it out on the CPU",
    )
    scheduling_policy: str = flag(
        "fcfs",
        "Order of waiting requests: first come, first served, or by the request's priority (lower first).",
        GROUP,
        choices=("fcfs", "priority"),
    )
    threads: int = flag(
        0, "Threads that compute; 0: one for each core that this process may use.", GROUP, kind="int"
    )
