"""Builds the engine from its settings: checkpoint, backend, model, KV cache, tokenizer."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taco_llm import cuda, default_model, lookahead, prefix_cache, speculation
from taco_llm.device_memory import (
    MemoryPlan,
    check_weights,
    graph_bytes,
    plan_device_memory,
    spec_weight_bytes,
    swap_blocks,
)
from taco_llm.engine_args import EngineArgs
from taco_llm.logging import get_logger
from taco_llm.memory import GIB, available_bytes, plan_kv_cache, space_from_environment, total_bytes

if TYPE_CHECKING:
    from taco_llm import _core
    from taco_llm.loading import Checkpoint
    from taco_llm.tokenizer import Tokenizer

logger = get_logger(__name__)

NULL_MODEL = "null"
DEFAULT_BATCHED_TOKENS = 2048
DEFAULT_BATCHED_TOKENS_CUDA = 8192
MAX_DRAFT_ROWS = 512  # whose logits have a place in memory; beyond, a step is long enough without drafts


@dataclass
class EngineHandle:
    """A running engine and what its users need to know about it.

    model_name: the first name the API offers the model under; served_names: all of them.
    tokenizer is None under skip_tokenizer_init; checkpoint is None for the null model.
    """

    core: _core.Engine
    tokenizer: Tokenizer | None
    checkpoint: Checkpoint | None
    model_name: str
    served_names: list[str]
    max_model_len: int
    eos_token_ids: list[int]
    generation_config: dict[str, Any]
    args: EngineArgs
    vocab_size: int
    num_kv_blocks: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    memory_plan: MemoryPlan | None = None  # of a GPU
    hf_config: dict[str, Any] = field(default_factory=dict)
    speculation: _core.SpeculationConfig | None = None
    companion: lookahead.Companion | None = None
    tiers: prefix_cache.Tiers = field(default_factory=prefix_cache.Tiers)
    disk: _core.DiskStore | None = None
    log: prefix_cache.EngineLog | None = None

    def shutdown(self) -> None:
        """Aborts what runs, stops the engine's thread and saves the draft memory; can be called again."""
        self.core.shutdown()
        if self.companion is not None:
            self.companion.stop()
        if self.disk is not None:
            self.disk.close()
        if self.log is not None:
            self.log.stop()


def build(args: EngineArgs) -> EngineHandle:
    """Starts an engine.

    Raises ValueError (settings), NotBuiltError (settings that need what is not built), FileNotFoundError (no
    such model) and what loading the checkpoint raises; each with a sentence that says what to do.
    """
    args.check()
    if args.model == NULL_MODEL:
        return _build_null(args)
    args.check(cuda.choose(args.device)[0])  # before anything is fetched

    from taco_llm import _core
    from taco_llm.loading import load_model, resolve
    from taco_llm.tokenizer.choice import choose_tokenizer, eos_token_ids

    started = time.perf_counter()
    model_path, names = model_and_names(args)
    checkpoint = resolve_model(
        resolve,
        model_path,
        revision=args.revision,
        download_dir=args.download_dir,
        load_format="gguf"
        if args.quantization == "gguf" and args.load_format == "auto"
        else args.load_format,
        ignore_patterns=args.ignore_patterns,
    )
    _check_quantized(checkpoint)
    device, backend = open_device(args)
    before = backend.memory
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
        check_spec=_weights_check(args, checkpoint, backend),
    )
    limit = model.spec.max_positions
    check_length(wanted_len, limit)
    loaded = time.perf_counter()
    block_bytes = _core.ModelExecutor.block_bytes(model, args.block_size, args.kv_cache_dtype)
    memory_plan = None
    if device == "cpu":
        plan = plan_kv_cache(
            block_bytes=block_bytes,
            block_size=args.block_size,
            model_limit=limit,
            max_model_len=wanted_len,
            max_num_seqs=args.max_num_seqs,
            num_blocks=args.num_gpu_blocks_override,
            available=min(available_bytes(), backend.memory[1]),
            asked_bytes=space_from_environment(),
        )
    else:
        memory_plan = _plan_device(args, device, backend, model, wanted_len, block_bytes, before)
        plan = memory_plan.kv
        logger.info("%s", memory_plan)
    if plan.message:
        logger.warning("%s", plan.message)
    batched = batched_tokens(args, plan.max_model_len, device)
    swapped = _swap_blocks(args, device, block_bytes)
    eos = eos_token_ids(checkpoint, tokenizer)
    drafting = _drafting(
        args,
        vocab_size=model.spec.vocab_size,
        max_model_len=plan.max_model_len,
        eos_token_ids=eos,
        reserved=plan.num_blocks * block_bytes if device == "cpu" else 0,
        fingerprint=_fingerprint(checkpoint),
    )
    tiers = prefix_cache.plan_tiers(
        args,
        device=device,
        block_bytes=block_bytes,
        total=total_bytes(),
        available=available_bytes() - (plan.num_blocks * block_bytes if device == "cpu" else 0),
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
        max_draft_rows=draft_rows(args, batched),
        typical_acceptance=drafting.typical_acceptance,
        host_blocks=tiers.host_blocks,
        loads_by_layer=not args.apc_offload_not_lazy,
        disk=disk,
        **swapped,
    )
    vocabulary = tokenizer.core_vocabulary() if tokenizer is not None else None
    core = _engine(
        args, executor, vocabulary, batched, drafting, prefix_cache.settings(args, tiers, disk), **swapped
    )
    checkpoint = _without_file_contents(checkpoint)
    logger.info(
        "Loaded %s: %s parameters, %.0f MB, in %.2f s, on %s",
        names[0],
        _count(model.num_parameters),
        model.weight_bytes / 1e6,
        loaded - started,
        backend.description,
    )
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
        companion=_companion(args, core, drafting),
        tiers=tiers,
        disk=disk,
        log=prefix_cache.log_of(args, core, disk),
    )


def wanted_length(args: EngineArgs, checkpoint: Checkpoint) -> int | None:
    """The longest sequence that was asked for; None: the model's own."""
    wanted = args.max_model_len
    if args.disable_sliding_window and (window := checkpoint.hf_config.get("sliding_window")):
        wanted = min(wanted or window, window)
    return wanted


def check_length(wanted: int | None, limit: int) -> None:
    """ValueError for a length that the model cannot have."""
    if wanted is not None and wanted > limit:
        raise ValueError(
            f"max_model_len={wanted} is more than the {limit} tokens that the model was made for; "
            "lower it, or stretch the context with --rope-scaling"
        )


def open_device(args: EngineArgs) -> tuple[str, _core.Backend]:
    """("cpu" or "cuda:N", its backend) for the settings; what they mean there is checked and logged."""
    device, reason = cuda.choose(args.device)
    args.check(device)
    if device != "cpu" and args.cpu_offload_gb * GIB > available_bytes():
        raise MemoryError(
            f"cpu_offload_gb={args.cpu_offload_gb:g} is more than the {available_bytes() / GIB:.1f} GiB of "
            "host memory that are free; lower it"
        )
    try:
        backend = make_backend(args, device)
    except RuntimeError as error:  # a driver older than the plugin, a device that does not answer
        if args.device != "auto" or device == "cpu":
            raise
        device, reason = "cpu", str(error)
        args.check(device)
        backend = make_backend(args, device)
    for note in args.notes(device):
        logger.info("%s", note)
    if reason:
        logger.info("Running on the CPU: %s", reason)
    return device, backend


def make_backend(args: EngineArgs, device: str) -> _core.Backend:
    """The backend of a device that cuda.choose returned."""
    from taco_llm import _core

    if device == "cpu":
        return _core.Backend("cpu", args.threads)
    return _core.Backend(
        device,
        args.threads,
        plugin=str(cuda.plugin_path()),
        cublaslt=cuda.cublaslt_path(),
        batch_invariant=args.batch_invariant,
        offload_bytes=int(args.cpu_offload_gb * GIB),
    )


def products_in_fp8(args: EngineArgs, checkpoint: Checkpoint) -> bool:
    """Whether a GPU keeps the matrices in FP8."""
    from taco_llm.archs.fp8 import fp8_checkpoint

    return args.quantization == "fp8" or fp8_checkpoint(checkpoint.hf_config) is not None


def _weights_check(args: EngineArgs, checkpoint: Checkpoint, backend: _core.Backend) -> Any:
    """What load_model calls before it takes the weights of a GPU: what cannot fit is said at once."""
    if backend.name == "cpu":
        return None
    total, available = backend.memory
    fp8 = products_in_fp8(args, checkpoint)

    def check(spec: Any, slots: Any, dtype: str) -> None:
        weights = spec_weight_bytes(spec, slots, dtype, fp8)
        weights = max(weights - int(args.cpu_offload_gb * GIB), 0)
        check_weights(weights, total, available, args.gpu_memory_utilization, fp8)

    return check


def _plan_device(
    args: EngineArgs,
    device: str,
    backend: _core.Backend,
    model: _core.Model,
    wanted_len: int | None,
    block_bytes: int,
    before: tuple[int, int],
) -> MemoryPlan:
    """The memory plan of a GPU whose weights are loaded: a step of the largest size is tried for it."""
    from taco_llm import _core

    limit = model.spec.max_positions
    length = wanted_len or limit
    shape: dict[str, Any] = dict(
        block_size=args.block_size,
        kv_dtype=args.kv_cache_dtype,
        max_num_seqs=args.max_num_seqs,
    )
    total, available = backend.memory
    batched = batched_tokens(args, length, device)
    try:
        step = _core.ModelExecutor.profile(
            model,
            max_model_len=length,
            max_num_batched_tokens=batched,
            max_draft_rows=draft_rows(args, batched),
            **shape,
        )
    except MemoryError as error:
        raise MemoryError(
            f"a step of the largest size does not fit beside the weights ({model.weight_bytes / GIB:.2f} "
            f"GiB): lower --max-num-batched-tokens, --max-num-seqs or --max-model-len ({error})"
        ) from None
    return plan_device_memory(
        device=backend.description.partition(",")[0],
        total=total,
        available=available,
        available_before=before[1],
        utilization=args.gpu_memory_utilization,
        step_bytes=step,
        graph_bytes=0 if args.enforce_eager else graph_bytes(len(model.spec.layers), args.max_num_seqs),
        conservative=args.conservative_dry_run,
        block_bytes=block_bytes,
        block_size=args.block_size,
        model_limit=limit,
        max_model_len=wanted_len,
        max_num_seqs=args.max_num_seqs,
        num_blocks=args.num_gpu_blocks_override,
    )


def _swap_blocks(args: EngineArgs, device: str, block_bytes: int) -> dict[str, Any]:
    """The executor's and engine's arguments about swap space; empty where nothing is swapped."""
    if device == "cpu" or args.preemption_mode == "recompute":
        return {}
    number, message = swap_blocks(args.swap_space, block_bytes, available_bytes())
    if message:
        logger.warning("%s", message)
    return {"swap_blocks": number} if number else {}


def resolve_model(resolve: Any, model: str, **options: Any) -> Checkpoint:
    """loading.resolve; an error of the hub's client or of the network names the model and says what to do."""
    try:
        return resolve(model, **options)  # type: ignore[no-any-return]
    except (ValueError, FileNotFoundError, MemoryError, NotImplementedError):
        raise
    except Exception as error:
        if Path(model).expanduser().exists():
            raise
        raise FileNotFoundError(
            f"no model at {model!r}: it is no file or folder of this machine, and the hub could not be asked "
            f"for it ({error}); give a path, or check the name and the network"
        ) from error


@dataclass
class _Drafting:
    """How tokens are drafted; config is None where they are not. taught: by a warm-up, just now."""

    config: _core.SpeculationConfig | None = None
    drafter: _core.Drafter | None = None
    taught: bool = False

    @property
    def typical_acceptance(self) -> tuple[float, float] | None:
        config = self.config
        if config is None or not config.typical_acceptance:
            return None
        return config.typical_threshold, config.typical_alpha


def _drafting(args: EngineArgs, *, reserved: int, vocab_size: int, **facts: Any) -> _Drafting:
    """The drafter that the settings ask for, with what it knows from before. reserved: bytes of memory that
    something else is going to fill."""
    from taco_llm import _core

    config = speculation.settings(args, reserved=reserved, vocab_size=vocab_size, **facts)
    if config is None:
        return _Drafting()
    drafter = _core.make_drafter(config)
    assert drafter is not None
    if config.method == "ngram":
        logger.info("Drafting by n-grams: up to %d tokens a step", config.num_speculative_tokens)
        return _Drafting(config, drafter)
    settings = config.lookahead
    logger.info(
        "Lookahead cache: mode %d, drafts of up to %d tokens with %d at each depth, up to %.2f GiB of memory",
        settings.cache_mode,
        settings.copy_length,
        settings.token_paths_top_k,
        config.memory_bytes / GIB,
    )
    taught = 0
    if (path := save_path(args)) is not None:
        lookahead.restore(drafter, path)
    if settings.warmup_file:
        taught = lookahead.warm_up(
            drafter, settings.warmup_file, vocab_size=vocab_size, memory_bytes=config.memory_bytes
        )
    return _Drafting(config, drafter, taught > 0)


# What makes ids of text. Not tokenizer_config.json: a chat template may change.
_VOCABULARY_FILES = (
    *("added_tokens.json", "merges.txt", "special_tokens_map.json", "spiece.model", "tekken.json"),
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
)
_VOCABULARY_KEYS = ("added_tokens", "merges", "model", "pre", "scores", "token_type", "tokens")


def _fingerprint(checkpoint: Checkpoint) -> str:
    """Tells models apart whose token ids have nothing to teach each other: the configuration, and what the
    tokenizer's files hold, or a GGUF file's vocabulary."""
    config = json.dumps(checkpoint.hf_config or {}, sort_keys=True, default=str)
    digest = hashlib.sha256(config.encode())

    def add(name: str, content: bytes) -> None:
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)

    metadata = checkpoint.gguf_metadata or {}
    for key in _VOCABULARY_KEYS:
        if (value := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            value = value.tolist() if hasattr(value, "tolist") else value
            add(key, json.dumps(value, default=str).encode())
    if checkpoint.tokenizer_files is not None:
        folder = Path(checkpoint.tokenizer_files)
        for file in sorted([*(folder / name for name in _VOCABULARY_FILES), *folder.glob("*.tiktoken")]):
            if file.is_file():
                add(file.name, file.read_bytes())
    return digest.hexdigest()


def save_path(args: EngineArgs) -> str | None:
    """The file of --lookahead-cache-save, wherever the process goes later."""
    if args.lookahead_cache_save is None:
        return None
    return str(Path(args.lookahead_cache_save).expanduser().absolute())


def _companion(args: EngineArgs, core: _core.Engine, drafting: _Drafting) -> lookahead.Companion | None:
    if drafting.config is None or drafting.drafter is None or drafting.config.method != "lookahead":
        return None
    companion = lookahead.Companion(
        drafting.drafter,
        lambda: core.stats().speculation,
        path=save_path(args),
        minutes=args.lookahead_cache_save_interval,
        debug=drafting.config.lookahead.is_debug,
    )
    companion.start(unsaved=drafting.taught)
    return companion


def _engine(
    args: EngineArgs,
    executor: Any,
    vocabulary: Any,
    batched: int,
    drafting: _Drafting,
    caching: _core.PrefixCachingConfig | None,
    swap_blocks: int = 0,
) -> _core.Engine:
    from taco_llm import _core

    swapping: dict[str, Any] = {}
    if swap_blocks:
        swapping = {"swap_blocks": swap_blocks, "preemption_mode": args.preemption_mode or "auto"}

    return _core.Engine(
        executor,
        vocabulary,
        max_num_batched_tokens=batched,
        max_num_seqs=args.max_num_seqs,
        enable_chunked_prefill=args.enable_chunked_prefill is not False,
        priority_scheduling=args.scheduling_policy == "priority",
        seed=args.seed,
        speculation=drafting.config,
        drafter=drafting.drafter,
        prefix_caching=caching,
        **swapping,
    )


def batched_tokens(args: EngineArgs, max_model_len: int, device: str = "cpu") -> int:
    chunked = args.enable_chunked_prefill is not False
    if args.max_num_batched_tokens is None:
        usual = DEFAULT_BATCHED_TOKENS if device == "cpu" else DEFAULT_BATCHED_TOKENS_CUDA
        usual = max(usual, args.max_num_seqs)
        return usual if chunked else max(usual, max_model_len)
    if not chunked and args.max_num_batched_tokens < max_model_len:
        raise ValueError(
            f"without chunked prefill a prompt is computed in one step: max_num_batched_tokens="
            f"{args.max_num_batched_tokens} must be at least max_model_len={max_model_len}; "
            f"raise it, or turn "
            "chunked prefill on"
        )
    return args.max_num_batched_tokens


def draft_rows(args: EngineArgs, batched: int) -> int:
    """Rows that the drafts of a step may have in all; 0: nothing is drafted."""
    return 0 if speculation.method(args) == "none" else min(batched, MAX_DRAFT_ROWS)


def model_and_names(args: EngineArgs) -> tuple[str, list[str]]:
    """The model to load, and the names to serve it under."""
    model, name = args.model, args.model
    if model is None:
        model, name = str(default_model.path()), default_model.NAME
        logger.info("No model was named: serving the embedded default, %s", default_model.NAME)
    served = args.served_model_name
    names = [served] if isinstance(served, str) else list(served or [])
    return model, names or [name or model]


def _check_quantized(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that is quantised in a format without kernels, before it is read. FP8 has some."""
    from taco_llm.archs.fp8 import fp8_checkpoint

    config = checkpoint.hf_config.get("quantization_config")
    if isinstance(config, dict) and fp8_checkpoint(checkpoint.hf_config) is None:
        from taco_llm import refusal_reasons
        from taco_llm.flag_table import NotBuiltError

        method = str(config.get("quant_method", "unknown"))
        raise NotBuiltError(
            f"the checkpoint is quantised as {method}, which {refusal_reasons.quantization(method)}"
        )


def _without_file_contents(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without what only loading needs: a GGUF's vocabulary and tensor list.

    The memory goes back to the system."""
    kept = checkpoint.gguf_metadata
    if kept is not None:
        kept = {key: value for key, value in kept.items() if not isinstance(value, list) or len(value) < 256}
    checkpoint = dataclasses.replace(checkpoint, gguf_metadata=kept, gguf=None)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)
    return checkpoint


def _build_null(args: EngineArgs) -> EngineHandle:
    """The null model: token = f(prompt, position). TACO_NULL_STEP_SECONDS makes a step take that long."""
    from taco_llm import _core
    from taco_llm.null_model import VOCAB_SIZE, NullTokenizer

    for note in args.notes("cpu"):
        logger.info("%s", note)
    length = args.max_model_len or 4096
    blocks = args.num_gpu_blocks_override or min(args.max_num_seqs, 4096) * -(-length // args.block_size)
    step = float(os.environ.get("TACO_NULL_STEP_SECONDS", "0"))
    tiers = prefix_cache.null_tiers(args, blocks)
    executor = _core.NullExecutor(
        VOCAB_SIZE, length, args.block_size, blocks, step, num_host_blocks=tiers.host_blocks
    )
    tokenizer = None if args.skip_tokenizer_init else NullTokenizer()
    batched = batched_tokens(args, length)
    vocabulary = tokenizer.core_vocabulary() if tokenizer is not None else None
    names = [args.served_model_name] if isinstance(args.served_model_name, str) else args.served_model_name
    logger.info("Null model: no weights, answers are made up of the prompt's hash (a test model)")
    drafting = _drafting(args, reserved=0, vocab_size=VOCAB_SIZE, max_model_len=length, eos_token_ids=[])
    caching = prefix_cache.settings(args, tiers)
    core = _engine(args, executor, vocabulary, batched, drafting, caching)
    return EngineHandle(
        core=core,
        tokenizer=tokenizer,  # type: ignore[arg-type]
        checkpoint=None,
        model_name=names[0] if names else NULL_MODEL,
        served_names=list(names) if names else [NULL_MODEL],
        max_model_len=length,
        eos_token_ids=[],
        generation_config={},
        args=args,
        vocab_size=VOCAB_SIZE,
        num_kv_blocks=blocks,
        speculation=drafting.config,
        companion=_companion(args, core, drafting),
        tiers=tiers,
        log=prefix_cache.log_of(args, core),
    )


def _count(number: int) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
