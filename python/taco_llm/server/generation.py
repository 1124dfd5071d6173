"""One HTTP request's work in the engine: submitted together, finished together, aborted together."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from taco_llm.cache_root import NO_ROOT
from taco_llm.server.errors import ApiError
from taco_llm.server.state import State

logger = logging.getLogger("taco_llm.server")


@dataclass
class Request:
    """A validated request: for each prompt `best_of` sequences, of which `n` are returned."""

    prompts: list[list[int]]
    core_params: list[Any]  # one per prompt
    n: int = 1
    best_of: int = 1
    priority: int = 0
    name_space: int = 0  # of the tenant: drafts are made of texts of the same one only
    cache_root: bytes = NO_ROOT  # and the KV cache is shared with requests of the same root only

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n


@dataclass
class Usage:
    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Job:
    """Subclasses implement `on_output`, which sees every engine output and calls `account` with it.

    `future` ends when all prompts have: with None, or with the ApiError that failed the request.
    The owner calls `close` whatever happens; what still runs is aborted then.
    """

    def __init__(self, state: State, request: Request) -> None:
        self.state = state
        self.request = request
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ids: list[int] = []
        self._early: list[tuple[int, Any]] | None = None  # a list: outputs wait in it for `release_early`
        self._unfinished = len(request.prompts)
        self._width = max(request.n, request.best_of)
        self._last = [0.0] * (len(request.prompts) * self._width)  # time of each sequence's latest output
        self._first_seen = [False] * len(request.prompts)
        self._completion_tokens = [0] * (len(request.prompts) * self._width)
        self._cached = [0] * len(request.prompts)

    def submit(self) -> None:
        """ApiError when the engine refuses a prompt; those submitted before it are aborted by `close`."""
        state, metrics = self.state, self.state.metrics
        state.jobs.add(self)
        for index, (ids, params) in enumerate(
            zip(self.request.prompts, self.request.core_params, strict=True)
        ):
            callback = functools.partial(self._receive, prompt=index) if index else self._receive
            try:
                request_id = state.hub.submit(
                    ids,
                    params,
                    priority=self.request.priority,
                    name_space=self.request.name_space,
                    cache_root=self.request.cache_root,
                    callback=callback,
                )
            except (ValueError, TypeError, OverflowError, NotImplementedError) as e:
                raise ApiError(str(e)) from None
            except MemoryError:
                raise ApiError(
                    "The engine has no memory left for this request: try again later.", status=503
                ) from None
            except RuntimeError as e:
                raise self._refusal(e) from None
            self._ids.append(request_id)
            metrics.prompt_tokens.observe(len(ids))
            metrics.n.observe(self.request.n)
            metrics.best_of.observe(self._width)

    def _refusal(self, error: RuntimeError) -> ApiError:
        if self.state.core.stats().dead:
            return self.state.dead_error()
        message = str(error).lower()
        if self.state.draining or "drain" in message or "shut" in message:
            return ApiError("The server is shutting down.", status=503, headers={"Retry-After": "5"})
        return self.state.queue_full_error()

    def on_output(self, prompt: int, output: Any) -> None:
        raise NotImplementedError

    def on_done(self) -> None:
        """All prompts have finished."""

    def release_early(self) -> None:
        early, self._early = self._early or [], None
        for prompt, output in early:
            self._receive(output, prompt)

    def _receive(self, output: Any, prompt: int = 0) -> None:
        if self._early is not None:
            self._early.append((prompt, output))
            return
        reason = output.finish_reason
        sequence = prompt * self._width + output.index
        now = self.state.hub.now
        last = self._last[sequence]
        self._last[sequence] = now
        if last:
            self.state.metrics.inter_token.observe(now - last)
        elif not self._first_seen[prompt] and output.num_output_tokens:
            self._first_seen[prompt] = True
            arrival, _, first, _, _ = output.times
            if first > 0:
                self.state.metrics.time_to_first_token.observe(max(0.0, first - arrival))
        if reason is None:
            self.on_output(prompt, output)
            return
        self._finish(prompt, sequence, output, reason)

    def _finish(self, prompt: int, sequence: int, output: Any, reason: str) -> None:
        self._completion_tokens[sequence] = output.num_output_tokens
        self._cached[prompt] = max(self._cached[prompt], output.num_cached_tokens)
        self.state.metrics.sequence_done(output)
        if reason == "error":
            logger.error("a request failed in the engine: %s", output.error)
            self.fail(ApiError(f"The engine failed on this request: {output.error}", status=500))
            return
        if reason == "abort":  # our own aborts come with no output: this one is a shutdown's
            self.fail(ApiError("The request was aborted: the server is shutting down.", status=503))
            return
        self.on_output(prompt, output)
        if output.request_finished:
            self.state.metrics.request_done(output.times)
            self._unfinished -= 1
            if self._unfinished == 0 and not self.future.done():
                self.on_done()
                if not self.future.done():
                    self.future.set_result(None)

    def fail(self, error: ApiError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def close(self) -> None:
        """Aborts what has not finished. Idempotent."""
        for request_id in self._ids:
            self.state.hub.abort(request_id)
        self.state.jobs.discard(self)
        if self.future.done() and not self.future.cancelled():
            self.future.exception()  # seen: asyncio need not warn about it
        else:
            self.future.cancel()

    def usage(self) -> Usage:
        """Every sampled token is counted, those of choices that best_of drops too."""
        return Usage(
            sum(len(ids) for ids in self.request.prompts), sum(self._completion_tokens), sum(self._cached)
        )


@dataclass
class Choice:
    """One finished sequence."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Sequence[Any]] = field(default_factory=list)
    finish_reason: str = ""
    stop_reason: int | str | None = None
    cumulative_logprob: float = 0.0


class Collector(Job):
    """Gathers whole texts."""

    def __init__(self, state: State, request: Request, *, details: bool = False) -> None:
        super().__init__(state, request)
        self._details = details  # token ids and logprobs are wanted too
        self._parts: list[list[str]] = [[] for _ in range(len(request.prompts) * self._width)]
        self._choices = [Choice() for _ in self._parts]
        self.prompt_logprobs: list[Sequence[Any]] = [[] for _ in request.prompts]

    def on_output(self, prompt: int, output: Any) -> None:
        sequence = prompt * self._width + output.index
        self._parts[sequence].append(output.text)
        choice = self._choices[sequence]
        if self._details:
            choice.token_ids += output.token_ids
            choice.logprobs += output.logprobs
            if output.prompt_logprobs:
                self.prompt_logprobs[prompt] = [p for p in output.prompt_logprobs if p]
        if output.finish_reason is not None:
            choice.finish_reason = output.finish_reason
            choice.stop_reason = output.stop_reason
            choice.cumulative_logprob = output.cumulative_logprob

    def results(self) -> list[list[Choice]]:
        """Per prompt the n choices; with best_of the likeliest ones, likeliest first."""
        result = []
        for prompt in range(len(self.request.prompts)):
            low = prompt * self._width
            choices = self._choices[low : low + self._width]
            for choice, parts in zip(choices, self._parts[low : low + self._width], strict=True):
                choice.text = "".join(parts)
            choices = [c for c in choices if c.finish_reason]
            if len(choices) > self.request.n:
                choices.sort(key=lambda c: -c.cumulative_logprob)
            result.append(choices[: self.request.n])
        return result

    async def run(self) -> list[list[Choice]]:
        try:
            self.submit()
            await self.future
            return self.results()
        finally:
            self.close()
