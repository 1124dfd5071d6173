"""The figures of the prefix cache: Prometheus families, and the JSON of GET /v1/cache.

`stats` is the engine's _core.PrefixCacheStats. Prefixes are shown by the digest of their tokens, which has
their tenant's root in it: never by text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

TIERS = ("device", "host", "disk")
# Ways between tiers (device to host, host to device, host to disk, disk to host): the fields that count
# blocks and measure bytes a second.
_WAYS = (
    ("store", "stored", "store_speed"),
    ("load", "loaded", "load_speed"),
    ("write", "written", "write_speed"),
    ("read", "read", "read_speed"),
)


def enabled(handle: Any) -> bool:
    return bool(getattr(handle.args, "enable_prefix_caching", False))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def vllm_families(prefix: str, model: str, stats: Any) -> Iterable[Metric]:
    """The families that vLLM has, of 0.6 (rates since the start) and of today (tokens)."""
    device, host, disk = (stats.tokens_hit[tier] for tier in TIERS)
    for name, text, value in (
        (
            "gpu_prefix_cache_hit_rate",
            "Prompt tokens found in the prefix cache on the device, 1 = all",
            device,
        ),
        ("cpu_prefix_cache_hit_rate", "Prompt tokens brought back from memory or disk, 1 = all", host + disk),
    ):
        gauge = GaugeMetricFamily(prefix + name, text, labels=["model_name"])
        gauge.add_metric([model], _ratio(value, stats.tokens_queried))
        yield gauge
    for name, text, value in (
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.tokens_queried),
        ("prefix_cache_hits", "Prompt tokens found in it", device + host + disk),
    ):
        counter = CounterMetricFamily(prefix + name, text, labels=["model_name"])
        counter.add_metric([model], value)
        yield counter


def own_families(handle: Any, stats: Any) -> Iterable[Metric]:
    """taco_llm's own: by tier, and what moves between tiers."""
    for kind, name, text, values in (
        (GaugeMetricFamily, "blocks", "Blocks of the prefix cache, by tier", stats.blocks),
        (GaugeMetricFamily, "capacity_blocks", "Blocks that a tier has room for", stats.capacity),
        (
            CounterMetricFamily,
            "hit_tokens",
            "Prompt tokens found, by the tier they came from",
            stats.tokens_hit,
        ),
        (
            CounterMetricFamily,
            "hit_blocks",
            "Full blocks found, by the tier they came from",
            stats.blocks_hit,
        ),
        (CounterMetricFamily, "evicted_blocks", "Blocks that left a tier for want of room", stats.evicted),
    ):
        family = kind(f"taco:prefix_cache_{name}", text, labels=["tier"])
        for tier in TIERS:
            family.add_metric([tier], values[tier])
        yield family
    for name, text, value in (
        ("entries", "Blocks of tokens that some tier holds", stats.entries),
        ("idle_blocks", "Device blocks that no request uses", stats.idle_blocks),
        ("fetches", "Prefixes on their way to the device", stats.fetches),
        (
            "prefill_tokens_per_second",
            "Measured speed that loads compete with; 0: not known",
            stats.prefill_speed,
        ),
        (
            "disk_working",
            "1: the disk tier works; 0: there is none, or it has failed",
            int(disk_works(handle, stats)),
        ),
    ):
        yield GaugeMetricFamily("taco:prefix_cache_" + name, text, value=value)
    for name, text, value in (
        ("lookups", "Prompts looked up", stats.lookups),
        ("query_blocks", "Full blocks of prompts looked up", stats.blocks_queried),
        ("published_blocks", "Blocks that entered the cache", stats.published),
        ("dropped_blocks", "Blocks that no tier holds any more", stats.dropped),
        ("failed_blocks", "Blocks that could not be moved or read", stats.failed),
        ("fetches_started", "Loads of prefixes begun", stats.fetches_started),
        ("fetches_declined", "Loads not begun, as computing is faster", stats.fetches_declined),
        ("resets", "Resets", stats.resets),
    ):
        yield CounterMetricFamily("taco:prefix_cache_" + name, text, value=value)
    blocks = CounterMetricFamily(
        "taco:prefix_cache_moved_blocks", "Blocks moved between tiers", labels=["way"]
    )
    size = CounterMetricFamily("taco:prefix_cache_moved_bytes", "Bytes moved between tiers", labels=["way"])
    speed = GaugeMetricFamily(
        "taco:prefix_cache_move_bytes_per_second", "Measured; 0: not known", labels=["way"]
    )
    for name, count, rate in _WAYS:
        blocks.add_metric([name], getattr(stats, count))
        size.add_metric([name], getattr(stats, count) * handle.tiers.block_bytes)
        speed.add_metric([name], getattr(stats, rate))
    yield from (blocks, size, speed)


def disk_works(handle: Any, stats: Any) -> bool:
    """Whether there is a disk tier that has not switched itself off."""
    return handle.tiers.disk_blocks > 0 and stats.capacity["disk"] > 0


def view(handle: Any, stats: Any, hottest: Any) -> dict[str, Any]:
    """The figures as JSON, for GET /v1/cache. hottest: _core.HotPrefix objects, the most used first."""
    hit = sum(stats.tokens_hit.values())
    tiers: list[dict[str, Any]] = []
    for tier, there in zip(TIERS, (1, handle.tiers.host_blocks, handle.tiers.disk_blocks), strict=True):
        if not there:
            continue
        tiers.append(
            {
                "tier": tier,
                "blocks": stats.blocks[tier],
                "capacity": stats.capacity[tier],
                "bytes": stats.blocks[tier] * handle.tiers.block_bytes,
                "tokens_hit": stats.tokens_hit[tier],
                "hit_rate": _ratio(stats.tokens_hit[tier], stats.tokens_queried),
                "evicted": stats.evicted[tier],
            }
        )
    tiers[0]["idle"] = stats.idle_blocks
    if tiers[-1]["tier"] == "disk":
        tiers[-1]["working"] = disk_works(handle, stats)
    return {
        "enabled": True,
        "block_size": handle.args.block_size,
        "block_bytes": handle.tiers.block_bytes,
        "entries": stats.entries,
        "lookups": stats.lookups,
        "tokens": {"queried": stats.tokens_queried, "hit": hit},
        "hit_rate": _ratio(hit, stats.tokens_queried),
        "tiers": tiers,
        "moves": {
            name: {
                "blocks": getattr(stats, count),
                "bytes": getattr(stats, count) * handle.tiers.block_bytes,
                "bytes_per_second": getattr(stats, rate),
            }
            for name, count, rate in _WAYS
        },
        "fetches": {
            "running": stats.fetches,
            "started": stats.fetches_started,
            "declined": stats.fetches_declined,
        },
        "dropped": stats.dropped,
        "failed": stats.failed,
        "hottest": [
            {"digest": one.digest, "tokens": one.tokens, "accesses": one.accesses, "tier": one.tier}
            for one in hottest
        ],
    }
