"""Prometheus metrics: each family as `taco:NAME` and, for existing dashboards, as `vllm:NAME`.

Counts that the engine keeps are read from it at scrape time. Histograms are filled on the event loop, once
per token, so a value is a list entry at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from taco_llm.server import cache_figures, speculation

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
                20.0, 40.0, 80.0, 160.0)  # fmt: skip
_PER_TOKEN = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
)
_REQUEST = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
            120.0, 240.0, 480.0)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)
_SMALL = (1, 2, 5, 10, 20)


class Histogram:
    """`observe` only notes the value; `settle` sorts many into the buckets. Somebody has to call it."""

    __slots__ = ("_pending", "bounds", "counts", "observe", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.total = 0.0
        self._pending: list[float] = []
        self.observe = self._pending.append

    def settle(self) -> None:
        if self._pending:
            values = np.array(self._pending, np.float64)
            self._pending.clear()
            self.counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts))
            self.total += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        self.settle()
        cumulative = 0.0
        result: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            cumulative += int(count)
            result.append(("+Inf" if bound == float("inf") else str(float(bound)), cumulative))
        return result


class Metrics(Collector):
    """Metrics of one engine and its server, in a registry of its own."""

    def __init__(self, model_name: str, handle: Any) -> None:
        self._model = model_name
        self._handle = handle
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

        self.time_to_first_token = Histogram(_FIRST_TOKEN)
        self.inter_token = Histogram(_PER_TOKEN)
        self.request_per_token = Histogram(_PER_TOKEN)
        self.latency = Histogram(_REQUEST)
        self.queue_time = Histogram(_REQUEST)
        self.prefill_time = Histogram(_REQUEST)
        self.decode_time = Histogram(_REQUEST)
        self.prompt_tokens = Histogram(_TOKENS)
        self.generation_tokens = Histogram(_TOKENS)
        self.n = Histogram(_SMALL)
        self.best_of = Histogram(_SMALL)
        self.success: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.http: dict[tuple[str, int], int] = {}
        self.recent_latency = 1.0  # smoothed seconds per request, for Retry-After

    def request_done(self, times: tuple[float, float, float, float, float]) -> None:
        arrival, scheduled, _, _, finished = times
        seconds = max(0.0, finished - arrival)
        self.latency.observe(seconds)
        self.recent_latency += 0.1 * (seconds - self.recent_latency)
        if scheduled > 0:
            self.queue_time.observe(max(0.0, scheduled - arrival))

    def sequence_done(self, output: Any) -> None:
        """Counts one finished choice."""
        reason = output.finish_reason
        self.success[reason] = self.success.get(reason, 0) + 1
        count = output.num_output_tokens
        self.generation_tokens.observe(count)
        _, scheduled, first, last, _ = output.times
        if first > 0:
            self.prefill_time.observe(max(0.0, first - scheduled))
            self.decode_time.observe(max(0.0, last - first))
            if count > 1:
                self.request_per_token.observe(max(0.0, last - first) / (count - 1))

    def settle(self) -> None:
        """To be called now and then, so that notes do not pile up until the next scrape."""
        for value in vars(self).values():
            if isinstance(value, Histogram):
                value.settle()

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        stats = self._handle.core.stats()
        for prefix in ("taco:", "vllm:"):
            yield from self._gauges(prefix, stats)
            yield from self._counters(prefix, stats)
            yield from self._histograms(prefix)
        yield from self._own(stats)
        if speculation.enabled(self._handle):
            for prefix in ("taco:", "vllm:"):
                yield from speculation.vllm_families(prefix, self._model, stats.speculation)
            yield from speculation.own_families(stats.speculation)
        if cache_figures.enabled(self._handle):
            for prefix in ("taco:", "vllm:"):
                yield from cache_figures.vllm_families(prefix, self._model, stats.prefix_cache)
            yield from cache_figures.own_families(self._handle, stats.prefix_cache)

    def _gauges(self, prefix: str, stats: Any) -> Iterable[Metric]:
        used = 1.0 - stats.free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        swapped = 1.0 - stats.free_swap_blocks / stats.swap_blocks if stats.swap_blocks else 0.0
        rows: list[tuple[str, str, float]] = [
            ("num_requests_running", "Sequences in the running batch", stats.running),
            ("num_requests_waiting", "Sequences waiting to be scheduled", stats.waiting),
            ("num_requests_swapped", "Not counted (always 0): see cpu_cache_usage_perc", 0),
            ("kv_cache_usage_perc", "KV blocks in use, 1 = all", used),
            # The names of vLLM 0.6, whose main pool was the GPU's; ours is the device's, whichever it is.
            ("gpu_cache_usage_perc", "KV blocks in use, 1 = all", used),
            ("cpu_cache_usage_perc", "Swap blocks in use, 1 = all; 0 without swap space", swapped),
        ]
        for name, text, value in rows:
            family = GaugeMetricFamily(prefix + name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family
        config = {
            "block_size": str(getattr(self._handle.args, "block_size", "")),
            "num_gpu_blocks": str(stats.num_blocks),
            "cache_dtype": str(getattr(self._handle.args, "kv_cache_dtype", "auto")),
        }
        info = GaugeMetricFamily(prefix + "cache_config_info", "KV cache configuration", labels=list(config))
        info.add_metric(list(config.values()), 1)
        yield info

    def _counters(self, prefix: str, stats: Any) -> Iterable[Metric]:
        for name, text, value in (
            ("num_preemptions", "Preemptions", stats.preemptions),
            ("prompt_tokens", "Prompt tokens, computed or found in the cache", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.generation_tokens),
        ):
            family = CounterMetricFamily(prefix + name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family
        success = CounterMetricFamily(
            prefix + "request_success", "Finished sequences", labels=["model_name", "finished_reason"]
        )
        for reason, count in self.success.items():
            success.add_metric([self._model, reason], count)
        yield success

    def _histograms(self, prefix: str) -> Iterable[Metric]:
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Arrival to first token", self.time_to_first_token),
            ("time_per_output_token_seconds", "Between outputs of a sequence", self.inter_token),
            ("inter_token_latency_seconds", "Between outputs of a sequence", self.inter_token),
            ("request_time_per_output_token_seconds", "Mean per request", self.request_per_token),
            ("e2e_request_latency_seconds", "Arrival to last token", self.latency),
            ("request_queue_time_seconds", "Arrival to first scheduled", self.queue_time),
            ("request_prefill_time_seconds", "First scheduled to first token", self.prefill_time),
            ("request_decode_time_seconds", "First token to last", self.decode_time),
            ("request_prompt_tokens", "Tokens of a prompt", self.prompt_tokens),
            ("request_generation_tokens", "Tokens generated for a sequence", self.generation_tokens),
            ("request_params_n", "n of a request", self.n),
            ("request_params_best_of", "best_of of a request", self.best_of),
        ):
            family = HistogramMetricFamily(prefix + name, text, labels=["model_name"])
            family.add_metric([self._model], buckets=histogram.buckets(), sum_value=histogram.total)
            yield family

    def _own(self, stats: Any) -> Iterable[Metric]:
        for name, text, value in (
            ("num_kv_blocks", "KV blocks", stats.num_blocks),
            ("num_free_kv_blocks", "Free KV blocks", stats.free_blocks),
            ("engine_dead", "1: the engine has failed", int(stats.dead)),
        ):
            yield GaugeMetricFamily("taco:" + name, text, value=value)
        yield CounterMetricFamily("taco:engine_steps", "Engine steps", value=stats.steps)
        http = CounterMetricFamily(
            "taco:http_requests", "Responses by route and status", labels=["route", "status"]
        )
        for (route, status), count in self.http.items():
            http.add_metric([route, str(status)], count)
        yield http
