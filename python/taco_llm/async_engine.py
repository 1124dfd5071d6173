"""AsyncLLMEngine: many requests on an asyncio loop, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taco_llm import logging as taco_logging
from taco_llm.collect import Collector, token_decoder
from taco_llm.engine import EngineHandle, build
from taco_llm.engine_args import AsyncEngineArgs, EngineArgs
from taco_llm.flag_table import NotBuiltError
from taco_llm.output_hub import OutputHub
from taco_llm.prompts import prepare, refuse_adapters

if TYPE_CHECKING:
    from taco_llm.outputs import RequestOutput
    from taco_llm.sampling_params import SamplingParams
    from taco_llm.tokenizer import Tokenizer

logger = taco_logging.get_logger(__name__)

_HEARTBEAT_SECONDS = 2.0
_LOG_SECONDS = 10.0
_INLINE_CHARACTERS = 2000  # longer prompts are tokenised in a thread, so that the loop keeps going


class RequestError(RuntimeError):
    """A request that failed inside the engine; others are not affected."""


class EngineDeadError(RuntimeError):
    """The engine's thread has stopped for good."""


@dataclass(frozen=True)
class ModelConfig:
    """What an engine serves."""

    model: str
    tokenizer: str
    max_model_len: int
    dtype: str
    seed: int
    max_logprobs: int
    vocab_size: int
    hf_config: dict[str, Any]

    def get_vocab_size(self) -> int:
        return self.vocab_size


class AsyncLLMEngine:
    """Generates for many requests at once on one asyncio loop.

    The engine itself works in a thread of its own, without the GIL. It belongs to the loop that first uses
    it.
    """

    def __init__(self, handle: EngineHandle) -> None:
        self.handle = handle
        self._hub: OutputHub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._decode = token_decoder(handle.tokenizer)
        self._live: dict[str, _Stream] = {}
        self._last_stats = (time.monotonic(), 0, 0)
        self._closed = False

    @classmethod
    def from_engine_args(
        cls, engine_args: EngineArgs | AsyncEngineArgs, start_engine_loop: bool = True, **_: Any
    ) -> AsyncLLMEngine:
        """Loads the model. start_engine_loop is vLLM's: the engine starts with its first request anyway."""
        taco_logging.setup()
        return cls(build(engine_args))

    def _attached(self) -> OutputHub:
        if self._closed:
            raise EngineDeadError("this engine was shut down")
        loop = asyncio.get_running_loop()
        if self._hub is None:
            self._hub = OutputHub(self.handle.core)
            self._hub.attach(loop)
            self._loop = loop
            loop.call_later(_HEARTBEAT_SECONDS, self._heartbeat)
        elif self._loop is not loop:
            raise RuntimeError("this engine belongs to another event loop; make one for each loop")
        return self._hub

    async def generate(
        self,
        inputs: Any,
        sampling_params: SamplingParams,
        request_id: str,
        lora_request: Any = None,
        trace_headers: Any = None,
        prompt_adapter_request: Any = None,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """Yields the request's output so far whenever there is more of it; the last has finished=True.

        inputs: text, token ids, {"prompt": ...} or {"prompt_token_ids": ...}. Cancelling or closing the
        generator aborts the request. A consumer that is slower than the engine gets fewer, longer steps;
        nothing piles up. Raises ValueError for what cannot be taken, RequestError for a request that failed,
        EngineDeadError when the engine has stopped.
        """
        refuse_adapters(
            lora_request=lora_request,
            trace_headers=trace_headers,
            prompt_adapter_request=prompt_adapter_request,
        )
        hub = self._attached()
        if request_id in self._live:
            raise ValueError(f"request {request_id!r} is still running; choose another request_id")
        stream = self._live[request_id] = _Stream()
        try:
            arrival = time.time()
            text = inputs.get("prompt") if isinstance(inputs, dict) else inputs
            if isinstance(text, str) and len(text) > _INLINE_CHARACTERS:
                request = await asyncio.to_thread(prepare, self.handle, inputs, sampling_params)
            else:
                request = prepare(self.handle, inputs, sampling_params)
            if stream.aborted:
                return
            collector = stream.collector = Collector(request_id, request, self._decode, arrival)
            stream.core_id = hub.submit(
                request.prompt_token_ids,
                request.core_params,
                priority=priority,
                cache_root=request.cache_root,
                callback=stream.receive,
            )
            while not collector.finished:
                await stream.news.wait()
                stream.news.clear()
                if stream.aborted:
                    return
                if not stream.fresh:
                    await self.check_health()
                    continue
                stream.fresh = False
                if collector.error is not None:
                    raise RequestError(collector.error)
                yield collector.result()
        finally:
            self._live.pop(request_id, None)
            if stream.core_id is not None:
                hub.abort(stream.core_id)  # ignored once it has finished

    def _heartbeat(self) -> None:
        """Every few seconds: wakes the generators of a dead engine, and logs the throughput of a busy one."""
        if self._closed or self._loop is None:
            return
        if self.handle.core.stats().dead:
            for stream in self._live.values():
                stream.news.set()
        elif self._live and not self.handle.args.disable_log_stats:
            if time.monotonic() - self._last_stats[0] >= _LOG_SECONDS:
                self.log_stats()
        self._loop.call_later(_HEARTBEAT_SECONDS, self._heartbeat)

    async def encode(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Embeddings: not built yet."""
        raise NotBuiltError("encode needs embedding models, which are not built yet; use generate")
        yield  # makes this a generator, as vLLM's is

    async def abort(self, request_id: str) -> None:
        """Stops a request: its generator ends without another output. Unknown ids are ignored."""
        stream = self._live.get(request_id)
        if stream is not None:
            stream.aborted = True
            if stream.core_id is not None and self._hub is not None:
                self._hub.abort(stream.core_id)
            stream.news.set()

    async def check_health(self) -> None:
        """Raises EngineDeadError when the engine has stopped."""
        stats = self.handle.core.stats()
        if stats.dead or self._closed:
            raise EngineDeadError(f"the engine has stopped: {stats.death_reason or 'it was shut down'}")

    @property
    def is_running(self) -> bool:
        return not self._closed and not self.handle.core.stats().dead

    @property
    def errored(self) -> bool:
        return self.handle.core.stats().dead

    async def get_tokenizer(self, lora_request: Any = None) -> Tokenizer | None:
        refuse_adapters(lora_request=lora_request)
        return self.handle.tokenizer

    async def get_model_config(self) -> ModelConfig:
        args = self.handle.args
        return ModelConfig(
            model=self.handle.model_name,
            tokenizer=args.tokenizer or self.handle.model_name,
            max_model_len=self.handle.max_model_len,
            dtype=self.handle.dtype,
            seed=args.seed,
            max_logprobs=args.max_logprobs,
            vocab_size=self.handle.vocab_size,
            hf_config=self.handle.hf_config,
        )

    async def do_log_stats(self, *_: Any) -> None:
        """The same as log_stats, as vLLM has it."""
        self.log_stats()

    def log_stats(self) -> None:
        """Logs throughput since the last call, requests and the use of the KV cache."""
        stats = self.handle.core.stats()
        now = time.monotonic()
        then, prompt, generation = self._last_stats
        spent = max(now - then, 1e-9)
        used = 1 - stats.free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        logger.info(
            "%.1f prompt tokens/s, %.1f generated tokens/s, %d running, %d waiting, KV cache %.1f%% full",
            (stats.prompt_tokens - prompt) / spent,
            (stats.generation_tokens - generation) / spent,
            stats.running,
            stats.waiting,
            100 * used,
        )
        self._last_stats = (now, stats.prompt_tokens, stats.generation_tokens)

    def shutdown(self) -> None:
        """Aborts what runs and frees the model; generators that still wait raise EngineDeadError. Idempotent.

        Call it on the loop that uses the engine."""
        if self._closed:
            return
        self._closed = True
        if self._hub is not None:
            self._hub.close()
        for stream in self._live.values():
            stream.aborted = True
            stream.news.set()
        self.handle.shutdown()

    shutdown_background_loop = shutdown


class _Stream:
    """What a generator waits for."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.core_id: int | None = None
        self.collector: Collector | None = None
        self.aborted = False
        self.fresh = False  # outputs have come since the generator last looked

    def receive(self, output: Any) -> None:
        assert self.collector is not None
        self.collector.add(output)
        self.fresh = True
        self.news.set()
