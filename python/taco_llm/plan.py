"""Where a model's memory would go: the plan that the engine makes, without loading weights.

What a step takes is measured when the engine starts; here it is estimated, so the KV cache comes out a few
percent different.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from taco_llm import cuda, prefix_cache
from taco_llm.device_memory import (
    CONTEXT_BYTES,
    DTYPE_BYTES,
    MemoryPlan,
    kv_block_bytes,
    spec_weight_bytes,
    step_estimate,
)
from taco_llm.engine.checkpoint import model_and_names, products_in_fp8, resolve_model
from taco_llm.engine.device import device_name, make_backend
from taco_llm.engine.memory import check_weights, plan_on_cpu, plan_on_gpu
from taco_llm.engine.sizes import batched_tokens, check_length, wanted_length
from taco_llm.engine_args import EngineArgs
from taco_llm.memory import GIB, KvPlan, available_bytes, total_bytes
from taco_llm.prefix_cache import Tiers


@dataclass(frozen=True)
class Plan:
    """The plan of one model on one device; sizes are bytes. memory is None on the CPU."""

    model: str
    device: str
    parameters: int
    dtype: str
    kv_dtype: str
    weights: int
    block_bytes: int
    block_size: int
    batched_tokens: int
    max_num_seqs: int
    kv: KvPlan
    memory: MemoryPlan | None
    tiers: Tiers
    prefix_caching: bool

    @property
    def kv_tokens(self) -> int:
        return self.kv.num_blocks * self.block_size

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything in bytes and tokens."""
        out: dict[str, Any] = {
            "model": self.model,
            "device": self.device,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "kv_cache_dtype": self.kv_dtype,
            "weight_bytes": self.weights,
            "kv_bytes_per_token": self.block_bytes // self.block_size,
            "kv_block_bytes": self.block_bytes,
            "num_blocks": self.kv.num_blocks,
            "kv_tokens": self.kv_tokens,
            "max_model_len": self.kv.max_model_len,
            "full_sequences": round(self.kv_tokens / self.kv.max_model_len, 2),
        }
        if self.memory is not None:
            out |= {
                "total_bytes": self.memory.total,
                "budget_bytes": self.memory.budget,
                "context_bytes": self.memory.context,
                "step_bytes": self.memory.step * self.memory.step_reserve,
                "graph_bytes": self.memory.graphs,
                "kv_cache_bytes": self.memory.kv_bytes,
            }
        if self.prefix_caching:
            out["prefix_cache"] = {
                "host_blocks": self.tiers.host_blocks,
                "host_bytes": self.tiers.host_bytes,
                "disk_blocks": self.tiers.disk_blocks,
                "disk_bytes": self.tiers.disk_bytes,
            }
        return out

    def lines(self) -> list[str]:
        """For people."""

        def row(name: str, size: float, what: str) -> str:
            return f"  {name:<14}{size / GIB:9.2f} GiB  {what}"

        token = self.block_bytes / self.block_size
        blocks = f"{self.kv.num_blocks:,} blocks of {self.block_size}"
        cache = f"{self.kv_tokens:,} tokens: {blocks}, {token / 1024:.1f} KiB a token ({self.kv_dtype})"
        head = f"{self.model}: {self.parameters / 1e9:.2f} billion parameters, {self.dtype}, on {self.device}"
        weights = row("weights", self.weights, f"{self.weights / self.parameters:.2f} bytes a parameter")
        cached = self.kv.num_blocks * self.block_bytes
        out = [head]
        memory = self.memory
        if memory is None:
            out += [weights, row("KV cache", cached, f"{cache}, used as it fills")]
        else:
            step = f"of {self.batched_tokens:,} tokens and {self.max_num_seqs} sequences, estimated"
            if memory.step_reserve > 1:
                step += f", {memory.step_reserve} times (--conservative-dry-run)"
            out += [
                row("device", memory.total, f"{memory.utilization:g} of it is {memory.budget / GIB:.2f} GiB"),
                row("context", memory.context, "of the driver"),
                weights,
                row("a step", memory.step * memory.step_reserve, step),
                row("CUDA graphs", memory.graphs, "estimated"),
                row("KV cache", cached, cache),
            ]
            if memory.others:
                out.insert(2, row("others", memory.others, "held by other programs"))
        for name, number, size in (
            ("in memory", self.tiers.host_blocks, self.tiers.host_bytes),
            ("on disk", self.tiers.disk_blocks, self.tiers.disk_bytes),
        ):
            if number:
                tokens = number * self.block_size
                out.append(row(f"  {name}", size, f"{tokens:,} tokens of cold prefixes: {number:,} blocks"))
        if self.prefix_caching:
            where = "evicted" if not self.tiers.host_blocks else "moved to memory"
            out.append(f"  prefix caching: what no request uses stays in the KV cache until it is {where}")
        length = self.kv.max_model_len
        at_once = self.kv_tokens / length
        out.append(f"  {at_once:.1f} sequences of {length:,} tokens at once; at most {self.max_num_seqs} run")
        if self.kv.message:
            out.append(f"  {self.kv.message}")
        return out


def make(args: EngineArgs, device_memory_gib: float | None = None) -> Plan:
    """The plan of the settings on the device that they name, or on a GPU of so much memory.

    Raises what building the engine would raise: ValueError, MemoryError, FileNotFoundError, NotBuiltError.
    """
    args.check()
    if device_memory_gib is not None:
        device = args.device if args.device.startswith("cuda") else "cuda"
        if args.device == "cpu" or device_memory_gib <= 0:
            raise ValueError("--device-memory-gb is the memory of a GPU: above 0, and without --device cpu")
    else:
        device, _ = cuda.choose(args.device)
    args.check(device)
    from taco_llm.loading import describe

    path, names = model_and_names(args)
    checkpoint = resolve_model(args, path, "auto" if path.endswith(".gguf") else "dummy")
    wanted = wanted_length(args, checkpoint)
    spec, slots, dtype = describe(
        checkpoint,
        dtype=args.dtype,
        rope_scaling=args.rope_scaling,
        rope_theta=args.rope_theta,
        max_model_len=wanted,
    )
    fp8 = device != "cpu" and products_in_fp8(args, checkpoint)
    kv_dtype = dtype if args.kv_cache_dtype == "auto" else args.kv_cache_dtype
    limit = spec.max_positions
    check_length(wanted, limit)
    block_bytes = kv_block_bytes(spec, args.block_size, kv_dtype)
    batched = batched_tokens(args, wanted or limit, device)
    parameters = sum(math.prod(shape) for shape in slots.values())
    memory = None
    if device == "cpu":
        where = "the CPU"
        weights = spec_weight_bytes(spec, slots, dtype, fp8)
        if checkpoint.gguf is not None:  # quantised matrices stay as they are
            weights = sum(tensor.num_bytes for tensor in checkpoint.gguf.tensors.values())
        elif spec.tied_head and DTYPE_BYTES[dtype] == 2:
            weights -= math.prod(slots["embed.tokens"]) * 2  # one table serves both
        kv = plan_on_cpu(
            args,
            block_bytes=block_bytes,
            model_limit=limit,
            wanted_len=wanted,
            available=available_bytes() - weights,
        )
    else:
        where, total, free = _device_memory(args, device, device_memory_gib)
        weights = check_weights(args, spec, slots, dtype, fp8, total, free)
        memory = plan_on_gpu(
            args,
            name=where,
            total=total,
            available=free - weights,
            available_before=free,
            step_bytes=step_estimate(spec, dtype, batched, args.max_num_seqs, fp8),
            num_layers=len(spec.layers),
            block_bytes=block_bytes,
            model_limit=limit,
            wanted_len=wanted,
        )
        kv = memory.kv
    tiers = prefix_cache.plan_tiers(
        args,
        device=device,
        block_bytes=block_bytes,
        total=total_bytes(),
        available=available_bytes() - (weights + kv.num_blocks * block_bytes if device == "cpu" else 0),
    )
    return Plan(
        model=names[0],
        device=where,
        parameters=parameters,
        dtype=f"{dtype}, products in fp8" if fp8 else dtype,
        kv_dtype=kv_dtype,
        weights=weights,
        block_bytes=block_bytes,
        block_size=args.block_size,
        batched_tokens=batched,
        max_num_seqs=args.max_num_seqs,
        kv=kv,
        memory=memory,
        tiers=tiers,
        prefix_caching=args.enable_prefix_caching,
    )


def _device_memory(args: EngineArgs, device: str, given_gib: float | None) -> tuple[str, int, int]:
    """(name, bytes in all, bytes free with the driver's context there)."""
    if given_gib is not None:
        total = int(given_gib * GIB)
        return f"a GPU of {given_gib:g} GiB", total, total - CONTEXT_BYTES
    backend = make_backend(args, device)
    return (device_name(backend), *backend.memory)
