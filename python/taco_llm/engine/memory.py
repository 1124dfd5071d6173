"""How much memory becomes KV cache by the settings, on the CPU and on a GPU, and how much swap space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from taco_llm import device_memory
from taco_llm.device_memory import MemoryPlan
from taco_llm.engine.checkpoint import products_in_fp8
from taco_llm.engine.device import device_name
from taco_llm.engine.sizes import batched_tokens, draft_rows
from taco_llm.engine_args import EngineArgs
from taco_llm.logging import get_logger
from taco_llm.memory import GIB, KvPlan, available_bytes, plan_kv_cache, space_from_environment

if TYPE_CHECKING:
    from taco_llm import _core
    from taco_llm.loading import Checkpoint

logger = get_logger(__name__)


def plan_on_cpu(
    args: EngineArgs, *, block_bytes: int, model_limit: int, wanted_len: int | None, available: int
) -> KvPlan:
    """The KV cache of a CPU. available: bytes that the weights leave."""
    return plan_kv_cache(
        block_bytes=block_bytes,
        block_size=args.block_size,
        model_limit=model_limit,
        max_model_len=wanted_len,
        max_num_seqs=args.max_num_seqs,
        num_blocks=args.num_gpu_blocks_override,
        available=available,
        asked_bytes=space_from_environment(),
    )


def plan_on_gpu(
    args: EngineArgs,
    *,
    name: str,
    total: int,
    available: int,
    available_before: int,
    step_bytes: int,
    num_layers: int,
    block_bytes: int,
    model_limit: int,
    wanted_len: int | None,
) -> MemoryPlan:
    """The memory of a GPU. total, available (with the weights loaded), available_before (without them) and
    step_bytes (of a step of the largest size): bytes."""
    return device_memory.plan_device_memory(
        device=name,
        total=total,
        available=available,
        available_before=available_before,
        utilization=args.gpu_memory_utilization,
        step_bytes=step_bytes,
        graph_bytes=0 if args.enforce_eager else device_memory.graph_bytes(num_layers, args.max_num_seqs),
        conservative=args.conservative_dry_run,
        block_bytes=block_bytes,
        block_size=args.block_size,
        model_limit=model_limit,
        max_model_len=wanted_len,
        max_num_seqs=args.max_num_seqs,
        num_blocks=args.num_gpu_blocks_override,
    )


def check_weights(
    args: EngineArgs, spec: Any, slots: Mapping[str, Any], dtype: str, fp8: bool, total: int, available: int
) -> int:
    """Bytes of a model's weights on a GPU; MemoryError where they cannot fit. slots: their shapes by name."""
    weights = device_memory.spec_weight_bytes(spec, slots, dtype, fp8)
    weights = max(weights - int(args.cpu_offload_gb * GIB), 0)
    device_memory.check_weights(weights, total, available, args.gpu_memory_utilization, fp8)
    return weights


def weights_check(
    args: EngineArgs, checkpoint: Checkpoint, backend: _core.Backend
) -> Callable[[_core.ModelSpec, Mapping[str, Any], str], None] | None:
    """What load_model calls before it takes the weights of a GPU: what cannot fit is said at once."""
    if backend.name == "cpu":
        return None
    total, available = backend.memory
    fp8 = products_in_fp8(args, checkpoint)

    def check(spec: _core.ModelSpec, slots: Mapping[str, Any], dtype: str) -> None:
        check_weights(args, spec, slots, dtype, fp8, total, available)

    return check


def plan_loaded(
    args: EngineArgs,
    device: str,
    backend: _core.Backend,
    model: _core.Model,
    *,
    wanted_len: int | None,
    block_bytes: int,
    available_before: int,
) -> tuple[KvPlan, MemoryPlan | None]:
    """The plan beside loaded weights; on a GPU a step of the largest size is tried for it.

    available_before: bytes that were free on the device before the weights came."""
    from taco_llm import _core

    limit = model.spec.max_positions
    total, available = backend.memory
    if device == "cpu":
        plan = plan_on_cpu(
            args,
            block_bytes=block_bytes,
            model_limit=limit,
            wanted_len=wanted_len,
            available=min(available_bytes(), available),
        )
        return plan, None
    length = wanted_len or limit
    batched = batched_tokens(args, length, device)
    try:
        step = _core.ModelExecutor.profile(
            model,
            max_model_len=length,
            block_size=args.block_size,
            kv_dtype=args.kv_cache_dtype,
            max_num_batched_tokens=batched,
            max_num_seqs=args.max_num_seqs,
            max_draft_rows=draft_rows(args, batched),
        )
    except MemoryError as error:
        raise MemoryError(
            f"a step of the largest size does not fit beside the weights ({model.weight_bytes / GIB:.2f} "
            f"GiB): lower --max-num-batched-tokens, --max-num-seqs or --max-model-len ({error})"
        ) from None
    memory = plan_on_gpu(
        args,
        name=device_name(backend),
        total=total,
        available=available,
        available_before=available_before,
        step_bytes=step,
        num_layers=len(model.spec.layers),
        block_bytes=block_bytes,
        model_limit=limit,
        wanted_len=wanted_len,
    )
    logger.info("%s", memory)
    return memory.kv, memory


def swap_blocks(args: EngineArgs, device: str, block_bytes: int) -> int:
    """Blocks of swap space; 0 where nothing is swapped."""
    if device == "cpu" or args.preemption_mode == "recompute":
        return 0
    number, message = device_memory.swap_blocks(args.swap_space, block_bytes, available_bytes())
    if message:
        logger.warning("%s", message)
    return number
