"""Prefix caching by its flags: what is asked for, what its tiers get, what is logged.

The tree of blocks is the core's (cpp/cache); docs/prefix-caching.md is for its users.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taco_llm.cache_identity import cache_identity
from taco_llm.flag_table import flags_given, option_name
from taco_llm.logging import get_logger
from taco_llm.memory import GIB, gib, part_of_memory

if TYPE_CHECKING:
    from taco_llm import _core
    from taco_llm.loading import Checkpoint

logger = get_logger(__name__)

_LEAST_BLOCKS = 16  # a tier of fewer is of no use
_LOOK_SECONDS = 0.5

# Flags that say nothing without the one they belong to.
_OF_CACHING = ("apc_offload_enable_hit_cnt", "apc_offload_gpu_evictor_limit")
_OF_OFFLOAD = (
    "cpu_prefill_memory_utilization",
    "apc_offload_not_lazy",
    "apc_offload_min_access_threshold",
)


# --- flags


def check(args: Any) -> None:
    """ValueError for flags that lack one another or are out of range. args: EngineArgs."""
    if args.enable_prefix_cache_offload and not args.enable_prefix_caching:
        raise ValueError(
            "--enable-prefix-cache-offload needs a prefix cache to offload: add --enable-prefix-caching"
        )
    if args.prefix_cache_dir is not None and not args.enable_prefix_cache_offload:
        raise ValueError(
            "--prefix-cache-dir takes what was offloaded to memory: add --enable-prefix-caching "
            "--enable-prefix-cache-offload, or leave it out"
        )
    part = args.cpu_prefill_memory_utilization
    if not 0 < part <= 1:
        raise ValueError(
            f"cpu_prefill_memory_utilization={part} should be above 0 and at most 1: the part of the memory "
            "for offloaded prefix blocks"
        )
    if args.apc_offload_min_access_threshold < 1:
        raise ValueError(
            f"apc_offload_min_access_threshold={args.apc_offload_min_access_threshold} should be 1 (every "
            "block is offloaded) or more"
        )
    if args.apc_offload_gpu_evictor_limit < -1:
        raise ValueError(
            f"apc_offload_gpu_evictor_limit={args.apc_offload_gpu_evictor_limit} should be a number of "
            "blocks, or -1 for no limit"
        )
    if not 0 < args.prefix_cache_disk_gb < 1 << 20:
        raise ValueError(f"prefix_cache_disk_gb={args.prefix_cache_disk_gb} should be GiB, above 0")
    if args.prefix_cache_dir is not None:
        path = folder(args.prefix_cache_dir)
        if path.exists() and not path.is_dir():
            raise ValueError(f"--prefix-cache-dir {path} is a file; name a folder")
        if not path.parent.is_dir():
            raise ValueError(f"--prefix-cache-dir {path}: there is no folder {path.parent}; make it")


def notes(args: Any) -> list[str]:
    """A sentence for each flag that was given and changes nothing beside the others. args: EngineArgs."""
    found = []
    if not args.enable_prefix_caching:
        found += [
            f"{option_name(name)}: there is no prefix cache without --enable-prefix-caching"
            for name in flags_given(args, _OF_CACHING)
        ]
    if not args.enable_prefix_cache_offload:
        found += [
            f"{option_name(name)}: nothing is offloaded without --enable-prefix-cache-offload"
            for name in flags_given(args, _OF_OFFLOAD)
        ]
    if args.prefix_cache_dir is None and flags_given(args, ("prefix_cache_disk_gb",)):
        found.append("--prefix-cache-disk-gb: nothing is kept on disk without --prefix-cache-dir")
    return found


def folder(path: str) -> Path:
    """The folder of --prefix-cache-dir, wherever the process goes later."""
    return Path(path).expanduser().absolute()


# --- sizes


@dataclass(frozen=True)
class Tiers:
    """Blocks that the tiers below the device hold; 0: there is no such tier. disk_dir: the disk's folder."""

    block_bytes: int = 0
    host_blocks: int = 0
    disk_blocks: int = 0
    disk_dir: Path | None = None

    @property
    def host_bytes(self) -> int:
        return self.host_blocks * self.block_bytes

    @property
    def disk_bytes(self) -> int:
        return self.disk_blocks * self.block_bytes


def plan_tiers(args: Any, *, device: str, block_bytes: int, total: int, available: int) -> Tiers:
    """Decides the tiers' sizes. args: EngineArgs that were checked.

    total: bytes of memory that this process may have; available: those still free, without what the KV cache
    of a CPU is going to fill. ValueError where offloaded blocks, the lookahead cache and swap space together
    are more than there is at all; MemoryError where nothing useful is left.
    """
    if not args.enable_prefix_cache_offload:
        return Tiers(block_bytes)
    draft_bytes = swap_bytes = 0
    if args.lookahead_cache_config_dir is not None:
        draft_bytes = int(args.cpu_decoding_memory_utilization * total)
    if device != "cpu" and args.preemption_mode != "recompute":
        swap_bytes = int(args.swap_space * GIB)
    asked = int(args.cpu_prefill_memory_utilization * total)
    if asked + swap_bytes + draft_bytes > total:
        parts = [f"--cpu-prefill-memory-utilization {args.cpu_prefill_memory_utilization:g} is {gib(asked)}"]
        if draft_bytes:
            parts.append(f"the lookahead cache (--cpu-decoding-memory-utilization) {gib(draft_bytes)}")
        if swap_bytes:
            parts.append(f"--swap-space {gib(swap_bytes)}")
        raise ValueError(
            f"{' and '.join(parts)} GiB, and this process may have {gib(total)} GiB of memory in all: lower "
            "one of them"
        )
    share = part_of_memory(
        args.cpu_prefill_memory_utilization,
        total,
        available - min(swap_bytes + draft_bytes, available // 2),  # they take half of it at most
        what="the prefix cache in memory",
        flag="--cpu-prefill-memory-utilization",
    )
    share //= args.tensor_parallel_size * args.pipeline_parallel_size  # the GPUs share it
    if share < _LEAST_BLOCKS * block_bytes:
        raise MemoryError(
            f"offloaded prefix blocks would have {share / 2**20:.1f} MiB, and one block is "
            f"{block_bytes / 2**20:.1f} MiB: free some memory, raise --cpu-prefill-memory-utilization, or "
            "leave out --enable-prefix-cache-offload"
        )
    if args.prefix_cache_dir is None:
        return Tiers(block_bytes, share // block_bytes)
    path = folder(args.prefix_cache_dir)
    return Tiers(
        block_bytes, share // block_bytes, _disk_blocks(path, args.prefix_cache_disk_gb, block_bytes), path
    )


def null_tiers(args: Any, num_blocks: int) -> Tiers:
    """Tiers of the null model, whose blocks are numbers only: a memory of four times the device."""
    if args.prefix_cache_dir is not None:
        raise ValueError("--prefix-cache-dir needs a model: the null model has no blocks to write")
    return Tiers(block_bytes=1, host_blocks=4 * num_blocks if args.enable_prefix_cache_offload else 0)


def digest_of_weights(args: Any, checkpoint: Checkpoint) -> Future[bytes] | None:
    """Begins to read the weights, beside their loading, for a disk tier that is theirs; None without one."""
    if args.prefix_cache_dir is None:
        return None
    from taco_llm.loading.weights_digest import dummy_digest, weights_digest

    if checkpoint.format == "dummy":
        made_up: Future[bytes] = Future()
        made_up.set_result(dummy_digest(args.seed))
        return made_up
    pool = ThreadPoolExecutor(1, thread_name_prefix="taco-digest")
    reading = pool.submit(
        weights_digest,
        list(checkpoint.files),
        remember_in=folder(args.prefix_cache_dir) / "taco-kv-weights.json",
    )
    pool.shutdown(wait=False)
    return reading


def open_disk(
    args: Any, tiers: Tiers, weights: Future[bytes] | None, model: _core.Model, device: str
) -> tuple[Tiers, _core.DiskStore | None]:
    """Opens the disk tier of this model, where one was asked for: the tiers as they are with it; its store.

    weights: of digest_of_weights. RuntimeError where the folder cannot be used; its text says what to do."""
    if tiers.disk_dir is None or weights is None:
        return tiers, None
    from taco_llm import _core

    started = time.perf_counter()
    identity = cache_identity(
        weights.result(),
        version=_core.__version__,
        spec=repr(model.spec),
        dtype=model.dtype,
        kv_cache_dtype=model.dtype if args.kv_cache_dtype == "auto" else args.kv_cache_dtype,
        quantization=args.quantization,
        block_size=args.block_size,
        block_bytes=tiers.block_bytes,
        device=device.partition(":")[0],
    )
    store = _core.DiskStore.open(
        str(tiers.disk_dir),
        identity=identity,
        block_bytes=tiers.block_bytes,
        block_size=args.block_size,
        capacity_bytes=tiers.disk_bytes,
    )
    logger.info(
        "Prefix cache on disk: %s has %s blocks of this model and room for %s (%s GiB), opened in %.2f s",
        tiers.disk_dir,
        f"{store.num_found:,}",
        f"{store.num_slots:,}",
        gib(store.num_slots * tiers.block_bytes),
        time.perf_counter() - started,
    )
    return dataclasses.replace(tiers, disk_blocks=store.num_slots), store


def settings(
    args: Any, tiers: Tiers, disk: _core.DiskStore | None = None
) -> _core.PrefixCachingConfig | None:
    """The core's settings; None: no prefix cache. args: EngineArgs that were checked."""
    from taco_llm import _core

    if not args.enable_prefix_caching:
        return None
    config = _core.PrefixCachingConfig(
        enabled=True,
        host_blocks=tiers.host_blocks,
        block_bytes=tiers.block_bytes,
        min_accesses=args.apc_offload_min_access_threshold,
        max_idle_blocks=args.apc_offload_gpu_evictor_limit,
        lazy=not args.apc_offload_not_lazy,
        log_hits=args.apc_offload_enable_hit_cnt,
    )
    if disk is not None:
        config.use_disk(disk)
    return config


def _disk_blocks(path: Path, limit_gib: float, block_bytes: int) -> int:
    """Blocks for a folder that may hold so many GiB: fewer where the disk has no room for them."""
    wanted, room = int(limit_gib * GIB), _room(path)
    if wanted > room:
        logger.warning(
            "the prefix cache on disk gets %s GiB and not %g GiB (--prefix-cache-disk-gb): that is nine "
            "tenths of what is free at %s",
            gib(room),
            limit_gib,
            path,
        )
        wanted = room
    if wanted < _LEAST_BLOCKS * block_bytes:
        raise MemoryError(
            f"the prefix cache on disk would have {wanted / 2**20:.1f} MiB, and one block is "
            f"{block_bytes / 2**20:.1f} MiB: free some of the disk of {path}, raise --prefix-cache-disk-gb, "
            "or leave out --prefix-cache-dir"
        )
    return wanted // block_bytes


def _room(path: Path) -> int:
    """Nine tenths of the bytes that are free on the path's disk, and what the folder holds already."""
    existing = path if path.is_dir() else path.parent
    held = 0
    if path.is_dir():
        for base, _, names in os.walk(path):
            held += sum(os.lstat(os.path.join(base, name)).st_blocks * 512 for name in names)
    return shutil.disk_usage(existing).free * 9 // 10 + held


# --- the log


def log_of(args: Any, core: _core.Engine, disk: _core.DiskStore | None = None) -> EngineLog | None:
    """Writes the log of the engine and of its disk, if the settings have them say something."""
    hits = args.enable_prefix_caching and args.apc_offload_enable_hit_cnt
    if disk is None:
        return EngineLog(core.take_log_lines) if hits else None
    return EngineLog(core.take_log_lines, disk.take_log_lines)


class EngineLog:
    """Writes what the engine has to say (a line every 100 blocks of prompts) to the log, and what its disk
    complains of, from a thread of its own. Both are to be called until stop()."""

    def __init__(
        self,
        take_lines: Callable[[], list[str]],
        take_complaints: Callable[[], list[str]] = list,
    ) -> None:
        self._take_lines = take_lines
        self._take_complaints = take_complaints
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taco-engine-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Writes what is left to write and ends the thread. Idempotent."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        for line in self._take_lines():
            logger.info("%s", line)
        for line in self._take_complaints():
            logger.warning("Prefix cache on disk: %s", line)
