"""How much memory this process may use, and how much of it becomes KV cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from taco_llm.logging import get_logger

logger = get_logger(__name__)

GIB = 1 << 30
SPACE_VARIABLES = ("TACO_CPU_KVCACHE_SPACE", "VLLM_CPU_KVCACHE_SPACE")
_DEFAULT_LIMIT = 4 * GIB


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" means no limit


def _cgroup_folders(root: Path, own: Path) -> list[Path]:
    """The memory cgroups of this process, innermost first (version 2, then version 1)."""
    folders: list[Path] = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) != 3 or not (parts[1] == "" or "memory" in parts[1].split(",")):
            continue
        base = root if parts[1] == "" else root / "memory"
        inner = base / parts[2].lstrip("/")
        while True:
            folders.append(inner)
            if inner == base or base not in inner.parents:
                break
            inner = inner.parent
    return folders + [root, root / "memory"]


def total_bytes(
    *,
    meminfo: Path = Path("/proc/meminfo"),
    cgroup_root: Path = Path("/sys/fs/cgroup"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
) -> int:
    """Bytes that this process could have at all: the machine's memory, or the container's limit if less."""
    total = 0
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemTotal:"):
                total = int(line.split()[1]) * 1024
    except OSError:
        pass
    if total == 0:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in _cgroup_folders(cgroup_root, own_cgroup):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read_int(folder / name)
            if limit is not None and limit < 1 << 60:
                total = min(total, limit)
    return total


def available_bytes(
    *,
    meminfo: Path = Path("/proc/meminfo"),
    cgroup_root: Path = Path("/sys/fs/cgroup"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
) -> int:
    """Bytes that can still be allocated: what the machine has, and what the container's limit leaves."""
    available = 0
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except OSError:
        pass
    if available == 0:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in _cgroup_folders(cgroup_root, own_cgroup):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _read_int(folder / limit_name)
            if limit is None or limit >= 1 << 60:
                continue
            used = _read_int(folder / used_name) or 0
            # The page cache counts as used, but goes when it is needed.
            stat = folder / "memory.stat"
            for line in stat.read_text().splitlines() if stat.exists() else []:
                name, _, value = line.partition(" ")
                if name in ("inactive_file", "total_inactive_file") and value.isdigit():
                    used -= int(value)
                    break
            available = min(available, max(limit - max(used, 0), 0))
    return available


def gib(number: int) -> str:
    """Bytes as GiB, for people."""
    return f"{number / GIB:.2f}"


def part_of_memory(part: float, total: int, available: int, *, what: str, flag: str) -> int:
    """Bytes for something that the flag gives a `part` of the `total` memory that this process may have: not
    more than half of what is `available`, which is told. what: its name, to be told."""
    wanted, most = int(part * total), max(available, 0) // 2
    if wanted <= most:
        return wanted
    logger.warning(
        "%s gets %.2f GiB, half of the memory that is free, and not %.2f GiB (%s %g)",
        what,
        most / GIB,
        wanted / GIB,
        flag,
        part,
    )
    return most


def space_from_environment() -> int | None:
    """The KV cache size in bytes that the environment asks for (GiB), or None."""
    for name in SPACE_VARIABLES:
        text = os.environ.get(name)
        if not text:
            continue
        try:
            gib = float(text)
        except ValueError:
            gib = -1.0
        if not 0 <= gib < 1 << 20:
            raise ValueError(f"{name}={text!r} should be the size of the KV cache in GiB, such as 4")
        if gib > 0:
            return int(gib * GIB)
    return None


@dataclass(frozen=True)
class KvPlan:
    """num_blocks of KV cache, the longest sequence they allow, and what a person should know about it."""

    num_blocks: int
    max_model_len: int
    message: str | None = None


def plan_kv_cache(
    *,
    block_bytes: int,
    block_size: int,
    model_limit: int,
    max_model_len: int | None,
    max_num_seqs: int,
    num_blocks: int | None,
    available: int,
    asked_bytes: int | None,
) -> KvPlan:
    """Decides the number of KV blocks.

    Without a size asked for: a quarter of the available memory, at most 4 GiB, but always one sequence of the
    longest length if that fits into 80% of what is available; never more than max_num_seqs such sequences.
    max_model_len None: the model's limit, shortened (with a message) when the memory does not hold one
    sequence of it. A length that was asked for is not shortened: ValueError.
    """
    length = model_limit if max_model_len is None else max_model_len

    def blocks_for(tokens: int) -> int:
        return -(-tokens // block_size)

    if num_blocks is None:
        usable = int(available * 0.8)
        if asked_bytes is not None:
            if asked_bytes > available:
                raise ValueError(
                    f"the KV cache should have {asked_bytes / GIB:.2f} GiB, but only "
                    f"{available / GIB:.2f} GiB of memory are available; lower {SPACE_VARIABLES[0]}"
                )
            budget = asked_bytes
        else:
            budget = min(_DEFAULT_LIMIT, available // 4)
            one = blocks_for(length) * block_bytes
            if budget < one <= usable:
                budget = one
        num_blocks = min(budget // block_bytes, max_num_seqs * blocks_for(length))
        how = f"set {SPACE_VARIABLES[0]} (GiB) higher" if asked_bytes is not None else "free some memory"
    else:
        how = "raise --num-gpu-blocks-override"
    return fit_length(num_blocks, block_bytes, block_size, model_limit, max_model_len, how)


def fit_length(
    num_blocks: int,
    block_bytes: int,
    block_size: int,
    model_limit: int,
    max_model_len: int | None,
    how: str,
) -> KvPlan:
    """The longest sequence that a number of blocks allows. how: what gives more of them, for the messages."""
    length = model_limit if max_model_len is None else max_model_len
    room = num_blocks * block_size
    if room >= length:
        return KvPlan(num_blocks, length)
    if room < 2 * block_size:
        raise MemoryError(
            f"there is no room for a KV cache: one block needs {block_bytes / 1e6:.1f} MB; {how}"
        )
    if max_model_len is not None:
        needed = -(-max_model_len // block_size)
        raise ValueError(
            f"max_model_len={max_model_len} needs {needed} blocks of KV cache, and there are "
            f"{num_blocks} ({room} tokens); use max_model_len={room} or less, or {how}"
        )
    message = (
        f"the model's context of {model_limit} tokens does not fit into the KV cache; the longest sequence "
        f"is {room} tokens. To have more, {how}."
    )
    return KvPlan(num_blocks, room, message)
