"""An engine in Python with _core.Engine's surface, for what the real one cannot be made to do at will: die,
hang, fail one request, stay silent, refuse. Token i of a request is " w<i>", whatever the prompt."""

from __future__ import annotations

import json
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

VOCAB = 1000


class FakeVocabulary:
    def piece(self, token: int) -> bytes:
        return b"" if token >= VOCAB else (bytes([token]) if token < 256 else f" w{token - 256}".encode())

    def __len__(self) -> int:
        return VOCAB


class FakeTokenizer:
    """Bytes; " w<i>" for what the engine answers."""

    eos_token_id, bos_token_id, pad_token_id, vocab_size = 999, None, None, VOCAB
    special_ids = [999]
    chat_template = "{{ messages }}"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return b"".join(FakeVocabulary().piece(i) for i in ids).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [self.decode([i]) for i in ids]

    def core_vocabulary(self) -> FakeVocabulary:
        return FakeVocabulary()

    def apply_chat_template(
        self,
        messages: Any,
        *,
        chat_template: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Any = None,
        documents: Any = None,
        **kwargs: Any,
    ) -> str:
        if any(m["role"] == "raise" for m in messages):
            raise ValueError("roles must alternate")
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        text += "".join(f"[{k}={v}]" for k, v in sorted(kwargs.items()))
        return text + ("<assistant>" if add_generation_prompt else "")


SOURCES = ("ngram", "raw_local", "raw_global", "turbo_local", "turbo_global", "other")


def speculation_stats(busy: bool = True) -> SimpleNamespace:
    """A _core.SpeculationStats of 20 steps: 8 ordinary ones, 5 of no hit, 7 hits; or of none."""
    lengths = {source: [0] * 17 for source in ("root", *SOURCES)}
    drafted, accepted = dict.fromkeys(SOURCES, 0), dict.fromkeys(SOURCES, 0)
    if busy:
        lengths["root"][0] = 13
        lengths["raw_global"][1] = 3
        lengths["turbo_local"][3], lengths["turbo_local"][16] = 3, 1
        drafted |= {"raw_global": 20, "turbo_local": 40}
        accepted |= {"raw_global": 3, "turbo_local": 29}
    names = "num_iters hit_iters hit_len invalid_len hit_rate valid_average_hit_len".split()
    averages = dict.fromkeys(names, 0.0) | {"global_average_hit_len": 1.5, "hit_valid_rate": 0.5}
    return SimpleNamespace(
        iterations=20 * busy,
        drafted_iterations=12 * busy,
        hit_iterations=7 * busy,
        drafted=60 * busy,
        accepted=32 * busy,
        possible=80 * busy,
        drafted_by_source=drafted,
        accepted_by_source=accepted,
        hit_lengths=lengths,
        averages=SimpleNamespace(**averages),
        reports=0,
        reported=SimpleNamespace(**averages),
        draft_seconds=0.25 * busy,
        cache_bytes=123456 * busy,
        expected_speedup=1.9 * busy,
        realised_speedup=1.75 * busy,
    )


def cache_stats(busy: bool = True) -> SimpleNamespace:
    """A _core.PrefixCacheStats: of 1,000 tokens looked up 400 came from the device, 200 from memory, 50 from
    disk; or of nothing."""
    by_tier = {
        "blocks": [30, 80, 200],
        "capacity": [1000, 500, 4000],
        "tokens_hit": [400, 200, 50],
        "blocks_hit": [25, 12, 3],
        "evicted": [70, 4, 1],
    }
    counts = dict(
        entries=210, idle_blocks=20, clean_idle_blocks=12, loading_blocks=1, fetches=2, transfers=3,
        lookups=17, tokens_queried=1000, blocks_queried=60, published=90, exchanged=5, dropped=6,
        stored=75, loaded=13, written=201, read=4, stored_by_steps=7, failed=1, fetches_started=8,
        fetches_declined=9, resets=2,
        store_speed=5e9, load_speed=4e9, write_speed=3e8, read_speed=0.0, prefill_speed=2500.0,
    )  # fmt: skip
    if not busy:
        by_tier = {k: v if k == "capacity" else [0, 0, 0] for k, v in by_tier.items()}
        counts = dict.fromkeys(counts, 0)
    named = {k: dict(zip(("device", "host", "disk"), v, strict=True)) for k, v in by_tier.items()}
    return SimpleNamespace(**named, **counts)


class FakeEngine:
    """step_seconds: pause between tokens. Prompts may hold commands: "#fail" errors at its third token,
    "#silent" produces nothing until it is aborted."""

    vocab_size = VOCAB
    max_model_len = 2048

    def __init__(self, step_seconds: float = 0.001, max_waiting: int = -1) -> None:
        self.step_seconds = step_seconds
        self.max_waiting = max_waiting
        self.dead = False
        self.hanging_since = 0.0
        self.refuse: Exception | None = None
        self.speculation = speculation_stats(busy=False)
        self.prefix_cache = cache_stats(busy=False)
        self.hottest: list[SimpleNamespace] = []
        self.cached_tokens = 0  # of each prompt
        self.resets = 0
        self.reset_works = True
        self.aborted: list[int] = []
        self.submitted: list[SimpleNamespace] = []
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._running: dict[int, SimpleNamespace] = {}
        self._outputs: list[Any] = []
        self._next = 1
        self._counts = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._tokens = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    # --- _core.Engine

    def submit(
        self,
        prompt: Any,
        params: Any,
        priority: int = 0,
        name_space: int = 0,
        cache_root: bytes = bytes(32),
    ) -> int:
        if self.refuse is not None:
            raise self.refuse
        if self.dead:
            raise RuntimeError("the engine is dead")
        with self._lock:
            number, self._next = self._next, self._next + 1
            request = SimpleNamespace(
                id=number,
                prompt=list(prompt),
                params=params,
                priority=priority,
                name_space=name_space,
                cache_root=cache_root,
                step=0,
                arrival=time.monotonic(),
                first=0.0,
            )
            self._running[number] = request
            self.submitted.append(request)
            return number

    def abort(self, request: int) -> None:
        with self._lock:
            self.aborted.append(request)
            if (found := self._running.pop(request, None)) is not None:
                self._emit(found, 0, "", [], "abort", True)

    def abort_all(self) -> None:
        for number in list(self._running):
            self.abort(number)

    def poll(self, timeout: float = 0.0) -> list[Any]:
        with self._lock:
            try:
                os.eventfd_read(self._fd)
            except BlockingIOError:
                pass
            outputs, self._outputs = self._outputs, []
            return outputs

    def event_fd(self) -> int:
        return self._fd

    def reset_prefix_cache(self) -> bool:
        self.resets += self.reset_works
        return self.reset_works

    def cache_report(self, hottest: int) -> SimpleNamespace:
        return SimpleNamespace(stats=self.prefix_cache, hottest=self.hottest[:hottest])

    def drain(self, timeout: float) -> bool:
        return not self._running

    def shutdown(self) -> None:
        self._stop.set()
        self._thread.join()

    def stats(self) -> SimpleNamespace:
        used = len(self._running)
        return SimpleNamespace(
            running=used,
            waiting=max(0, self.max_waiting),
            num_blocks=1000,
            free_blocks=1000 - used,
            swap_blocks=100,
            free_swap_blocks=75,
            steps=1,
            preemptions=0,
            prompt_tokens=sum(len(r.prompt) for r in self.submitted),
            generation_tokens=self._tokens,
            **{f"finished_{k}": v for k, v in self._counts.items()},
            last_step_end=time.monotonic(),
            current_step_start=self.hanging_since,
            dead=self.dead,
            death_reason="told to die" if self.dead else "",
            speculation=self.speculation,
            prefix_cache=self.prefix_cache,
        )

    # --- the rest

    def _loop(self) -> None:
        while not self._stop.wait(self.step_seconds):
            if self.dead or self.hanging_since:
                continue
            with self._lock:
                for request in list(self._running.values()):
                    self._step(request)

    def _step(self, request: SimpleNamespace) -> None:
        text = bytes(i for i in request.prompt if i < 256).decode("utf-8", "replace")
        params = request.params
        if "#silent" in text:
            return
        request.step += 1
        request.first = request.first or time.monotonic()
        failed = "#fail" in text and request.step == 3
        last = request.step >= params.max_tokens
        for index in range(params.best_of):
            token = 256 + request.step - 1
            reason = "error" if failed else "length" if last else None
            piece = "" if failed else f" w{request.step - 1}"
            finished = reason is not None and index == params.best_of - 1
            self._emit(request, index, piece, [] if failed else [token], reason, finished)
            self._tokens += 1
        if failed or last:
            del self._running[request.id]

    def _emit(
        self, request: Any, index: int, text: str, ids: list[int], reason: str | None, finished: bool
    ) -> None:
        params, now = request.params, time.monotonic()
        entry = [SimpleNamespace(token=i, logprob=-0.5, rank=1) for i in ids]
        best = [
            SimpleNamespace(token=300 + k, logprob=-1.0 - k, rank=k + 1)
            for k in range(max(0, params.logprobs))
        ]
        prompt_logprobs = []
        if params.prompt_logprobs >= 0 and request.step == 1 and index == 0:
            prompt_logprobs = [
                [SimpleNamespace(token=i, logprob=-2.0, rank=1), *best[: params.prompt_logprobs]]
                for i in request.prompt[1:]
            ]
        if reason is not None:
            self._counts[reason] += 1
        self._outputs.append(
            SimpleNamespace(
                request=request.id,
                index=index,
                text=text,
                text_json=json.dumps(text)[1:-1].encode(),
                token_ids=ids,
                logprobs=[[e, *best] for e in entry] if params.logprobs >= 0 else [],
                prompt_logprobs=prompt_logprobs,
                finish_reason=reason,
                stop_reason=None,
                error="NaN in the logits" if reason == "error" else "",
                cumulative_logprob=-float(index),
                request_finished=finished,
                num_prompt_tokens=len(request.prompt),
                num_output_tokens=request.step,
                num_cached_tokens=min(self.cached_tokens, len(request.prompt) - 1),
                speculation=SimpleNamespace(iterations=0),
                times=(request.arrival, request.arrival, request.first, now, now if finished else 0.0),
            )
        )
        os.eventfd_write(self._fd, 1)


def fake_handle(engine: FakeEngine | None = None, **changes: Any) -> SimpleNamespace:
    """An EngineHandle over a FakeEngine."""
    engine = engine or FakeEngine()
    fields = dict(
        core=engine,
        tokenizer=FakeTokenizer(),
        checkpoint=None,
        model_name="fake",
        max_model_len=2048,
        eos_token_ids=[999],
        generation_config={},
        args=SimpleNamespace(max_logprobs=20, scheduling_policy="priority", block_size=16),
        tiers=SimpleNamespace(block_bytes=4096, host_blocks=0, disk_blocks=0),
    )
    return SimpleNamespace(**{**fields, **changes})
