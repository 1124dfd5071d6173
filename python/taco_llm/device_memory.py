"""The memory plan of a GPU: weights, a step's working memory, CUDA graphs, and what is left for the KV cache.

Sizes are bytes. Where the model is loaded, weights and a step are measured; `spec_weight_bytes` and
`step_estimate` say about what they will be, from the model's description alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taco_llm.memory import GIB, KvPlan, fit_length, gib

if TYPE_CHECKING:
    from taco_llm import _core

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
CONTEXT_BYTES = 600 << 20
"""What the driver keeps for a process that uses the GPU: about 0.5 GiB."""
_MARGIN = 64 << 20  # allocations are rounded up
_WORKSPACE = 160 << 20  # of matrix products, split attention and sampling


# --- what a model needs


def spec_weight_bytes(
    spec: _core.ModelSpec, slots: Mapping[str, Sequence[int]], dtype: str, fp8: bool = False
) -> int:
    """Device memory of the weights. slots: ModelBuilder.slots(); dtype: what matrices are kept in; fp8: all
    but the embeddings, the head and the routers have 8 bits. Vectors are float32."""
    size = DTYPE_BYTES[dtype]
    total = 0
    for slot, shape in slots.items():
        if len(shape) == 1:
            total += shape[0] * 4
            continue
        wide = slot.startswith(("embed.tokens", "embed.positions", "head.")) or ".router." in slot
        total += shape[0] * shape[1] * (1 if fp8 and not wide else size)
    if spec.tied_head:  # the table is kept once for looking up and once for the product
        rows, cols = slots["embed.tokens"]
        total += rows * cols * size
    return total


def kv_block_bytes(spec: _core.ModelSpec, block_size: int, dtype: str) -> int:
    """K and V of one block over all layers. dtype: of the cache."""
    attn = spec.layers[0].attn
    return len(spec.layers) * 2 * attn.num_kv_heads * attn.head_dim * block_size * DTYPE_BYTES[dtype]


def step_estimate(spec: _core.ModelSpec, dtype: str, tokens: int, seqs: int, fp8: bool = False) -> int:
    """About what a step of `tokens` rows takes: activations, logits of `seqs` rows, workspaces."""
    qkv = heads = inner = experts = 0
    for layer in spec.layers:
        attn, ffn = layer.attn, layer.ffn
        latents = attn.q_rank + attn.kv_rank + attn.kv_extra if attn.kv_rank else 0
        qkv = max(qkv, (attn.num_heads + 2 * attn.num_kv_heads) * attn.head_dim + latents)
        heads = max(heads, attn.num_heads * attn.head_dim)
        if ffn.num_experts:
            # Every token's rows of its experts: gathered, between the products, and their results.
            experts = max(experts, ffn.top_k * (2 * spec.hidden + 3 * ffn.intermediate))
            if ffn.shared_intermediate:
                inner = max(inner, ffn.shared_intermediate + spec.hidden)
        else:
            inner = max(inner, ffn.intermediate)
    row = 5 * spec.hidden + qkv + heads + inner + experts
    quantized = (spec.hidden + heads + inner) if fp8 else 0
    rows = max(tokens, seqs)
    activations = rows * (row * DTYPE_BYTES[dtype] + quantized)
    return activations + seqs * spec.vocab_size * 4 + _WORKSPACE


def graph_bytes(num_layers: int, max_num_seqs: int) -> int:
    """About what the captured steps take: one for each padded batch size, some kernels for each layer."""
    buckets = 3 + -(-max_num_seqs // 8)
    return buckets * ((1 << 20) + num_layers * (32 << 10))


# --- the plan


@dataclass(frozen=True)
class MemoryPlan:
    """Where a GPU's memory goes. budget: what utilization allows; kv: the blocks that fit.

    others: what other programs hold; step: what the largest step takes, reserved `step_reserve` times.
    """

    device: str
    total: int
    utilization: float
    budget: int
    others: int
    context: int
    weights: int
    step: int
    step_reserve: int
    graphs: int
    kv_bytes: int
    block_bytes: int
    block_size: int
    kv: KvPlan

    @property
    def kv_tokens(self) -> int:
        return self.kv.num_blocks * self.block_size

    def __str__(self) -> str:
        step = f"{self.step_reserve} x {gib(self.step)}" if self.step_reserve > 1 else gib(self.step)
        others = f"; other programs hold {gib(self.others)}" if self.others else ""
        return (
            f"Memory of {self.device}: {gib(self.total)} GiB x {self.utilization:g} = {gib(self.budget)}, "
            f"less context {gib(self.context)}, weights {gib(self.weights)}, a step {step}, CUDA graphs "
            f"{gib(self.graphs)}: {gib(self.kv_bytes)} for the KV cache, of which {gib(self.kv_used)} are "
            f"used{others}"
        )

    @property
    def kv_used(self) -> int:
        return self.kv.num_blocks * self.block_bytes


def check_weights(weights: int, total: int, available: int, utilization: float, fp8: bool) -> None:
    """MemoryError when weights of this size cannot fit, before anything is loaded."""
    if weights <= min(int(total * utilization), available):
        return
    ways = ([] if fp8 else ["--quantization fp8"]) + ["--cpu-offload-gb", "a smaller model"]
    first = ""
    if weights <= available:
        first = f"raise --gpu-memory-utilization (now {utilization:g}), or "
    elif weights <= total * utilization:
        first = "end other programs that use the GPU, or "
    raise MemoryError(
        f"the weights need {gib(weights)} GiB, and of the GPU's {gib(total)} GiB "
        f"{gib(min(int(total * utilization), available))} can be used: {first}use "
        f"{' or '.join(', '.join(ways).rsplit(', ', 1))}"
    )


def plan_device_memory(
    *,
    device: str,
    total: int,
    available: int,
    available_before: int,
    utilization: float,
    step_bytes: int,
    graph_bytes: int,
    conservative: bool,
    block_bytes: int,
    block_size: int,
    model_limit: int,
    max_model_len: int | None,
    max_num_seqs: int,
    num_blocks: int | None,
) -> MemoryPlan:
    """Decides the number of KV blocks of a GPU.

    available: free memory with the weights loaded; available_before: without them, with the driver's context.
    utilization: the part of `total` that this process may use (vLLM's meaning); other programs' memory is not
    counted into it, but what they hold is not there either. conservative: the step's memory twice.
    Never more blocks than max_num_seqs sequences of the longest length fill. max_model_len: as plan_kv_cache.
    """
    in_use = total - available_before
    context = min(in_use, CONTEXT_BYTES)
    others = in_use - context if in_use - context > _MARGIN else 0
    weights = max(available_before - available, 0)
    budget = int(total * utilization)
    reserve = 2 if conservative else 1
    kv_bytes = min(budget - context - weights, available - _MARGIN) - step_bytes * reserve - graph_bytes
    how = "raise --gpu-memory-utilization, or lower --max-num-batched-tokens or --max-num-seqs"
    if others:
        how += f", or end the other programs on the GPU (they hold {gib(others)} GiB)"

    def parts() -> str:
        return (
            f"{gib(budget)} GiB of {device} may be used, the weights and the driver's context hold "
            f"{gib(context + weights)}, a step needs {gib(step_bytes * reserve)}, CUDA graphs "
            f"{gib(graph_bytes)}"
        )

    if num_blocks is None:
        if kv_bytes < 2 * block_bytes:
            raise MemoryError(f"there is no room for a KV cache: {parts()}; {how}")
        length = model_limit if max_model_len is None else max_model_len
        num_blocks = min(kv_bytes // block_bytes, max_num_seqs * -(-length // block_size))
    else:
        how = "raise --num-gpu-blocks-override"
        if num_blocks * block_bytes > available - _MARGIN - step_bytes - graph_bytes:
            raise MemoryError(
                f"num_gpu_blocks_override={num_blocks} needs {gib(num_blocks * block_bytes)} GiB: "
                f"{parts()}; lower --num-gpu-blocks-override"
            )
    kv = fit_length(num_blocks, block_bytes, block_size, model_limit, max_model_len, how)
    return MemoryPlan(
        device=device,
        total=total,
        utilization=utilization,
        budget=budget,
        others=others,
        context=context,
        weights=weights,
        step=step_bytes,
        step_reserve=reserve,
        graphs=graph_bytes,
        kv_bytes=max(kv_bytes, 0),
        block_bytes=block_bytes,
        block_size=block_size,
        kv=kv,
    )


def swap_blocks(space_gib: float, block_bytes: int, host_available: int) -> tuple[int, str | None]:
    """(blocks of swap space on the host, a message when it is less than asked for)."""
    asked = int(space_gib * GIB)
    limit = host_available // 2
    if asked <= limit:
        return asked // block_bytes, None
    return limit // block_bytes, (
        f"swap space: {gib(limit)} GiB instead of the {space_gib:g} asked for, half of the host memory that "
        "is free; lower --swap-space"
    )
