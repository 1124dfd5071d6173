"""`build`: the steps from the settings to a running engine, in their order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from taco_llm import cuda, prefix_cache
from taco_llm.engine.checkpoint import check_quantized, model_and_names, resolve_model, without_file_contents
from taco_llm.engine.core import make_core
from taco_llm.engine.device import open_device
from taco_llm.engine.drafting import fingerprint, make_drafting, start_companion
from taco_llm.engine.handle import EngineHandle
from taco_llm.engine.memory import plan_loaded, swap_blocks, weights_check
from taco_llm.engine.null import NULL_MODEL, build_null
from taco_llm.engine.sizes import batched_tokens, check_length, draft_rows, wanted_length
from taco_llm.engine_args import EngineArgs
from taco_llm.logging import get_logger
from taco_llm.memory import GIB, available_bytes, total_bytes

if TYPE_CHECKING:
    from taco_llm import _core

logger = get_logger(__name__)


def build(args: EngineArgs) -> EngineHandle:
    """Starts an engine.

    Raises ValueError (settings), NotBuiltError (settings that need what is not built), FileNotFoundError (no
    such model) and what loading the checkpoint raises; each with a sentence that says what to do.
    """
    args.check()
    if args.model == NULL_MODEL:
        return build_null(args)
    args.check(cuda.choose(args.device)[0])  # before anything is fetched

    from taco_llm import _core
    from taco_llm.loading import load_model
    from taco_llm.tokenizer.choice import choose_tokenizer, eos_token_ids

    started = time.perf_counter()
    model_path, names = model_and_names(args)
    gguf = args.quantization == "gguf" and args.load_format == "auto"
    checkpoint = resolve_model(args, model_path, "gguf" if gguf else args.load_format)
    check_quantized(checkpoint)
    device, backend = open_device(args)
    available_before = backend.memory[1]
    weights = prefix_cache.digest_of_weights(args, checkpoint)
    tokenizer = None if args.skip_tokenizer_init else choose_tokenizer(args, checkpoint)
    wanted_len = wanted_length(args, checkpoint)
    model = load_model(
        checkpoint,
        backend=backend,
        dtype=args.dtype,
        rope_scaling=args.rope_scaling,
        rope_theta=args.rope_theta,
        max_model_len=wanted_len,
        seed=args.seed,
        trust_remote_code=args.trust_remote_code,
        quantize_fp8=args.quantization == "fp8",
        check_spec=weights_check(args, checkpoint, backend),
    )
    check_length(wanted_len, model.spec.max_positions)
    loaded = time.perf_counter()

    block_bytes = _core.ModelExecutor.block_bytes(model, args.block_size, args.kv_cache_dtype)
    plan, memory_plan = plan_loaded(
        args,
        device,
        backend,
        model,
        wanted_len=wanted_len,
        block_bytes=block_bytes,
        available_before=available_before,
    )
    if plan.message:
        logger.warning("%s", plan.message)
    batched = batched_tokens(args, plan.max_model_len, device)
    swapped = swap_blocks(args, device, block_bytes)
    eos = eos_token_ids(checkpoint, tokenizer)
    kv_in_memory = plan.num_blocks * block_bytes if device == "cpu" else 0
    drafting = make_drafting(
        args,
        vocab_size=model.spec.vocab_size,
        max_model_len=plan.max_model_len,
        eos_token_ids=eos,
        reserved=kv_in_memory,
        fingerprint=fingerprint(checkpoint),
    )
    tiers = prefix_cache.plan_tiers(
        args,
        device=device,
        block_bytes=block_bytes,
        total=total_bytes(),
        available=available_bytes() - kv_in_memory,
    )
    tiers, disk = prefix_cache.open_disk(args, tiers, weights, model, device)
    executor = _core.ModelExecutor(
        model,
        max_model_len=plan.max_model_len,
        block_size=args.block_size,
        num_blocks=plan.num_blocks,
        kv_dtype=args.kv_cache_dtype,
        max_num_batched_tokens=batched,
        max_num_seqs=args.max_num_seqs,
        enforce_eager=bool(args.enforce_eager),
        max_seq_len_to_capture=args.max_seq_len_to_capture,
        swap_blocks=swapped,
        max_draft_rows=draft_rows(args, batched),
        typical_acceptance=drafting.typical_acceptance,
        host_blocks=tiers.host_blocks,
        loads_by_layer=not args.apc_offload_not_lazy,
        disk=disk,
    )
    core = make_core(
        args,
        executor,
        tokenizer.core_vocabulary() if tokenizer is not None else None,
        batched=batched,
        drafting=drafting,
        caching=prefix_cache.settings(args, tiers, disk),
        swap_blocks=swapped,
    )
    checkpoint = without_file_contents(checkpoint)
    _log_loaded(names[0], model, backend, loaded - started)
    tokens = plan.num_blocks * args.block_size
    logger.info(
        "KV cache: room for %s tokens (%.2f GiB%s), %.1f sequences of the full %s tokens",
        f"{tokens:,}",
        plan.num_blocks * block_bytes / GIB,
        ", used as it fills" if device == "cpu" else "",
        tokens / plan.max_model_len,
        f"{plan.max_model_len:,}",
    )
    return EngineHandle(
        core=core,
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        model_name=names[0],
        served_names=names,
        max_model_len=plan.max_model_len,
        eos_token_ids=eos,
        generation_config=dict(checkpoint.generation_config or {}),
        args=args,
        vocab_size=model.spec.vocab_size,
        num_kv_blocks=plan.num_blocks,
        dtype=model.dtype,
        device=device,
        memory_plan=memory_plan,
        hf_config=checkpoint.hf_config,
        speculation=drafting.config,
        companion=start_companion(args, core, drafting),
        tiers=tiers,
        disk=disk,
        log=prefix_cache.log_of(args, core, disk),
    )


def _log_loaded(name: str, model: _core.Model, backend: _core.Backend, seconds: float) -> None:
    logger.info(
        "Loaded %s: %s parameters, %.0f MB, in %.2f s, on %s",
        name,
        _count(model.num_parameters),
        model.weight_bytes / 1e6,
        seconds,
        backend.description,
    )


def _count(number: int) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
