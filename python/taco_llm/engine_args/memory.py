"""Flags about memory and devices: the KV cache, offloading, where the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taco_llm import refusal_reasons as why
from taco_llm.flag_table import flag

GROUP = "memory and parallelism"


@dataclass
class MemoryArgs:
    """Memory and devices."""

    worker_use_ray: bool = flag(
        False, "The same as --distributed-executor-backend ray.", GROUP, kind="bool", needs=why.RAY
    )
    distributed_executor_backend: str | None = flag(
        None,
        "How the processes of a distributed model are run.",
        GROUP,
        choices=("ray", "mp"),
        needs=why.executor,
        note="the model runs in one process; there is nothing to distribute",
    )
    pipeline_parallel_size: int = flag(
        1,
        "Pipeline stages.",
        GROUP,
        kind="int",
        short=("-pp",),
        needs=why.more_than_one("pipeline parallelism"),
    )
    tensor_parallel_size: int = flag(
        1,
        "Devices that share each layer.",
        GROUP,
        kind="int",
        short=("-tp",),
        needs=why.more_than_one("tensor parallelism"),
    )
    max_parallel_loading_workers: int | None = flag(
        None,
        "Workers that load at the same time under tensor parallelism.",
        GROUP,
        kind="int",
        note="one process loads the model, tensor by tensor",
    )
    ray_workers_use_nsight: bool = flag(
        False,
        "Profile Ray workers with Nsight.",
        GROUP,
        kind="bool",
        needs="needs Ray workers, which taco_llm does not have; profile the process itself, with perf record",
    )
    block_size: int = flag(16, "Tokens in a block of the KV cache.", GROUP, kind="int", choices=(8, 16, 32))
    enable_prefix_caching: bool = flag(
        False,
        "Keep the KV cache of prompts and answers, and reuse it for prompts that begin with the same tokens.",
        GROUP,
        kind="bool",
    )
    disable_sliding_window: bool = flag(
        False, "Limit the context to the model's sliding window instead of sliding it.", GROUP, kind="bool"
    )
    use_v2_block_manager: bool = flag(
        False, "vLLM's second block manager.", GROUP, kind="bool", note="taco_llm has one block manager"
    )
    num_lookahead_slots: int = flag(
        0,
        "Slots that vLLM's scheduler keeps for speculation.",
        GROUP,
        kind="int",
        note="the scheduler of taco_llm reserves what a step needs",
    )
    swap_space: float = flag(
        4,
        "GiB of host memory for swapped-out KV blocks, per GPU.",
        GROUP,
        kind="float",
        cpu_note=why.cpu_swap,
    )
    cpu_offload_gb: float = flag(
        0,
        "GiB of weights kept in host memory, from where each visits the GPU for its use.",
        GROUP,
        kind="float",
        cpu_note="on the CPU all weights are in memory anyway",
    )
    gpu_memory_utilization: float = flag(
        0.9,
        "Part of a GPU's memory to use, from 0 to 1.",
        GROUP,
        kind="float",
        cpu_note="sizes GPU memory; on the CPU, TACO_CPU_KVCACHE_SPACE (GiB, environment) sizes the KV cache",
    )
    num_gpu_blocks_override: int | None = flag(
        None, "Number of KV cache blocks, instead of what the memory allows.", GROUP, kind="int"
    )
    disable_custom_all_reduce: bool = flag(
        False,
        "Leave sums over devices to NCCL.",
        GROUP,
        kind="bool",
        note="one device has nothing to sum over",
    )
    device: str = flag(
        "auto",
        "Where the model runs: cpu, cuda or cuda:N. auto: a GPU of compute capability 8.0 or newer where "
        "there is one, else the CPU.",
        GROUP,
        choices=("auto", "cuda", "neuron", "cpu", "openvino", "tpu", "xpu"),
        also=r"cuda:\d{1,3}",
        needs=why.device,
    )
    override_neuron_config: dict[str, Any] | None = flag(
        None,
        "Settings of a Neuron device.",
        GROUP,
        kind="json",
        needs="is for AWS Neuron, on which taco_llm does not run; use --device cpu without it",
    )
