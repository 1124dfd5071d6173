"""What the handlers of one server share."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aiohttp import web

from taco_llm.output_hub import OutputHub
from taco_llm.server.auth import Keys
from taco_llm.server.errors import ApiError
from taco_llm.server.metrics import Metrics
from taco_llm.server.options import ServerOptions

if TYPE_CHECKING:
    from taco_llm.server.generation import Job

logger = logging.getLogger("taco_llm.server")

STATE: web.AppKey[State] = web.AppKey("state")  # type: ignore[name-defined]

_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class State:
    """One per application. Belongs to the event loop's thread."""

    def __init__(self, handle: Any, options: ServerOptions) -> None:
        self.handle = handle
        self.options = options
        self.limits = options.limits
        self.core = handle.core
        self.tokenizer = handle.tokenizer
        self.max_model_len: int = handle.max_model_len
        self.vocab_size: int = handle.core.vocab_size
        self.hub = OutputHub(handle.core)
        self.keys = Keys(options.api_key, options.api_key_file)
        self.model_names = _model_names(handle, options)
        if self.keys.several and _warms_up(handle):
            logger.warning(
                "warmup_file is for servers with one API key or none: each of several keys learns for itself"
            )
        self.max_logprobs = int(getattr(handle.args, "max_logprobs", 20))
        self.chat_template = options.load_chat_template()
        self.generation_defaults = _generation_defaults(handle.generation_config)
        self.metrics = Metrics(self.model_names[0], handle)
        self.created = int(time.time())
        self.draining = False
        self.jobs: set[Job] = set()
        self.requests_running = 0  # of the routes that drain waits for
        self._pool = ThreadPoolExecutor(
            max(1, options.tokenizer_threads), thread_name_prefix="taco-tokenizer"
        )

    @functools.cached_property
    def vocabulary(self) -> Any:
        """The bytes of every token: built at first use, by the requests that ask for logprobs."""
        return self.tokenizer.core_vocabulary() if self.tokenizer is not None else None

    @functools.cached_property
    def longest_piece(self) -> int:
        """Bytes of the longest token: a prompt of more than max_model_len times this cannot fit."""
        pieces = self.vocabulary
        count = len(pieces) if pieces is not None else 0
        return max(1, max((len(pieces.piece(i)) for i in range(count)), default=1))

    async def in_thread(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(function, *args, **kwargs))

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; long texts in a thread, so that the streams of others go on meanwhile."""
        self.need_tokenizer()
        if len(text) <= self.options.tokenizer_inline_chars:
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        return list(await self.in_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens))

    def need_tokenizer(self) -> None:
        if self.tokenizer is None:
            message = (
                "This server runs without a tokenizer (--skip-tokenizer-init): send prompts as token ids."
            )
            raise ApiError(message, param="prompt")

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included; empty without a tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=False)

    def check_text_size(self, text: str) -> None:
        """400 for a text that cannot fit the context, before the tokenizer spends seconds on it."""
        if len(text) > 1 << 16 and len(text) > (self.max_model_len + 1) * self.longest_piece:
            raise ApiError(
                f"The prompt has {len(text)} characters: that cannot fit the context of "
                f"{self.max_model_len} tokens. Shorten it.",
                param="prompt",
            )

    def admit(self) -> None:
        """ApiError 503 while draining or dead, 429 while the queue is full."""
        if self.draining:
            raise ApiError(
                "The server is shutting down.", status=503, headers={"Retry-After": "5"}, close=True
            )
        stats = self.core.stats()
        if stats.dead:
            raise self.dead_error()
        if self.limits.max_waiting and stats.waiting >= self.limits.max_waiting:
            raise self.queue_full_error()

    def dead_error(self) -> ApiError:
        return ApiError(
            "The engine has failed and takes no requests: the server must be restarted.", status=503
        )

    def death_reason(self) -> str | None:
        """Why the engine has failed for good; None: it has not."""
        stats = self.core.stats()
        return (stats.death_reason or "unknown") if stats.dead else None

    def queue_full_error(self) -> ApiError:
        stats = self.core.stats()
        wait = stats.waiting * self.metrics.recent_latency / max(1, stats.running)
        seconds = str(max(1, min(60, math.ceil(wait))))
        message = f"{stats.waiting} requests are waiting already: try again in {seconds} s."
        return ApiError(message, status=429, headers={"Retry-After": seconds})

    def unready_reason(self) -> str | None:
        """Why the server should get no new requests; None: it should. Looks at the engine's heartbeat."""
        if self.draining:
            return "shutting down"
        if (death := self.death_reason()) is not None:
            return f"the engine has failed ({death}); the server must be restarted"
        stats = self.core.stats()
        if stats.current_step_start > 0:
            seconds = time.monotonic() - stats.current_step_start
            if seconds > self.options.hang_seconds:
                return f"the engine's step has been running for {seconds:.0f} s"
        return None

    async def watch(self, interval: float = 0.25) -> None:
        """Ends the requests of a dead engine, which would wait for ever otherwise; settles the metrics."""
        told = False
        while True:
            await asyncio.sleep(interval)
            self.metrics.settle()
            death = self.death_reason()
            if death is not None and not told:
                told = True
                logger.error("the engine has failed: %s", death)
            if death is not None and self.jobs:
                self.fail_jobs(self.dead_error())

    def fail_jobs(self, error: ApiError) -> None:
        for job in list(self.jobs):
            job.fail(error)

    def close(self) -> None:
        self.hub.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _warms_up(handle: Any) -> bool:
    config = getattr(handle, "speculation", None)
    return config is not None and config.method == "lookahead" and bool(config.lookahead.warmup_file)


def _model_names(handle: Any, options: ServerOptions) -> list[str]:
    return list(options.served_model_name or getattr(handle, "served_names", None) or [handle.model_name])


def _generation_defaults(config: dict[str, Any] | None) -> dict[str, Any]:
    """The sampling defaults that the model's own generation_config.json states."""
    defaults: dict[str, Any] = {}
    for name in _SAMPLING_DEFAULTS:
        value = (config or {}).get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            defaults[name] = value
    if defaults.get("top_k") == 0:  # Hugging Face's "off"
        defaults["top_k"] = -1
    return defaults
