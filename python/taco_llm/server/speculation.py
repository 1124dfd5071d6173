"""What speculation does, for /metrics and for the web page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

_AVERAGES = (
    ("num_iters", "Decoding steps of a sequence"),
    ("hit_iters", "Decoding steps of a sequence that accepted a drafted token"),
    ("hit_len", "Accepted tokens of a sequence"),
    ("invalid_len", "Rejected tokens of a sequence"),
    ("hit_rate", "hit_iters / num_iters of a sequence"),
    ("global_average_hit_len", "hit_len / num_iters of a sequence"),
    ("valid_average_hit_len", "hit_len / hit_iters of a sequence"),
    ("hit_valid_rate", "hit_len / drafted tokens of a sequence"),
)


def enabled(handle: Any) -> bool:
    return getattr(handle, "speculation", None) is not None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def vllm_families(prefix: str, model: str, stats: Any) -> Iterable[Metric]:
    """The families that vLLM has. Iterations are what it calls drafts where something was drafted."""
    emitted = stats.iterations + stats.accepted
    for name, text, value in (
        ("draft_acceptance_rate", "Accepted of the drafted tokens", _ratio(stats.accepted, stats.drafted)),
        ("efficiency", "Tokens given of those that drafts could give", _ratio(emitted, stats.possible)),
    ):
        gauge = GaugeMetricFamily(f"{prefix}spec_decode_{name}", text, labels=["model_name"])
        gauge.add_metric([model], value)
        yield gauge
    for name, text, value in (
        ("num_drafts", "Steps of a sequence that verified drafted tokens", stats.drafted_iterations),
        ("num_draft_tokens", "Drafted tokens that were verified", stats.drafted),
        ("num_accepted_tokens", "Drafted tokens that were accepted", stats.accepted),
        ("num_emitted_tokens", "Tokens given by decoding steps", emitted),
    ):
        counter = CounterMetricFamily(f"{prefix}spec_decode_{name}", text, labels=["model_name"])
        counter.add_metric([model], value)
        yield counter
    by_position = CounterMetricFamily(
        f"{prefix}spec_decode_num_accepted_tokens_per_pos",
        "Steps that accepted the drafted token at this place or a later one; the last place: 16 and beyond",
        labels=["model_name", "position"],
    )
    for position, count in enumerate(accepted_at_least(stats)[1:]):
        by_position.add_metric([model, str(position)], count)
    yield by_position


def accepted_at_least(stats: Any) -> list[int]:
    """[k]: steps that accepted at least k drafted tokens, k up to 16."""
    totals = [sum(column) for column in zip(*stats.hit_lengths.values(), strict=True)]
    return [sum(totals[k:]) for k in range(len(totals))]


def own_families(stats: Any) -> Iterable[Metric]:
    """taco_llm's own: by source, speedups, the drafter's cost, the means of the lookahead log line."""
    for outcome, text, counts in (
        ("drafted", "Drafted tokens that were verified", stats.drafted_by_source),
        ("accepted", "Drafted tokens that were accepted", stats.accepted_by_source),
        ("rejected", "Drafted tokens that were rejected", rejected_by_source(stats)),
    ):
        tokens = CounterMetricFamily(f"taco:speculation_{outcome}_tokens", text, labels=["source"])
        for source, count in counts.items():
            tokens.add_metric([source], count)
        yield tokens
    lengths = HistogramMetricFamily(
        "taco:speculation_hit_length",
        "Accepted tokens of a decoding step, by the source of the first (none: there was none)",
        labels=["source"],
    )
    for source, row in stats.hit_lengths.items():
        if sum(row) == 0:
            continue
        cumulative, buckets = 0, []
        for length, count in enumerate(row):
            cumulative += count
            buckets.append((str(float(length)) if length + 1 < len(row) else "+Inf", float(cumulative)))
        # The last row holds all that are longer: the sum is a lower bound there.
        total = float(sum(length * count for length, count in enumerate(row)))
        lengths.add_metric(["none" if source == "root" else source], buckets, total)
    yield lengths
    for name, text, value in (
        (
            "speculation_expected_speedup",
            "As the budget controller expects; 0: not known",
            stats.expected_speedup,
        ),
        ("speculation_realised_speedup", "As step times show; 0: not known", stats.realised_speedup),
        ("lookahead_cache_bytes", "Memory of the lookahead cache", stats.cache_bytes),
    ):
        yield GaugeMetricFamily("taco:" + name, text, value=value)
    yield CounterMetricFamily(
        "taco:speculation_draft_seconds", "Seconds that steps waited for drafts", value=stats.draft_seconds
    )
    for name, text in _AVERAGES:
        yield GaugeMetricFamily(
            f"taco:lookahead_{name}", f"{text}, mean over sequences", value=getattr(stats.averages, name)
        )


def rejected_by_source(stats: Any) -> dict[str, int]:
    return {source: n - stats.accepted_by_source[source] for source, n in stats.drafted_by_source.items()}


def view(handle: Any) -> dict[str, Any]:
    """The figures as JSON, for GET /speculation."""
    if not enabled(handle):
        return {"method": "none"}
    stats = handle.core.stats().speculation
    return {
        "method": handle.speculation.method,
        "iterations": stats.iterations,
        "drafted_tokens": stats.drafted,
        "accepted_tokens": stats.accepted,
        "rejected_tokens": stats.drafted - stats.accepted,
        "acceptance_rate": _ratio(stats.accepted, stats.drafted),
        "tokens_per_step": _ratio(stats.iterations + stats.accepted, stats.iterations),
        "expected_speedup": stats.expected_speedup,
        "realised_speedup": stats.realised_speedup,
        "draft_seconds": stats.draft_seconds,
        "cache_bytes": stats.cache_bytes,
        "drafted_by_source": dict(stats.drafted_by_source),
        "accepted_by_source": dict(stats.accepted_by_source),
        # [k]: steps that accepted k drafted tokens; the last: so many or more.
        "hit_lengths": [sum(column) for column in zip(*stats.hit_lengths.values(), strict=True)],
        "averages": {name: getattr(stats.averages, name) for name, _ in _AVERAGES},
    }
