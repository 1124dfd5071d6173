"""Puts the core's deltas together into RequestOutputs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taco_llm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput

if TYPE_CHECKING:
    from taco_llm import _core
    from taco_llm.prompts import Request

Decode = Callable[[int], str | None]


class _Sequence:
    """One of a request's n answers so far."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None


class Collector:
    """Adds up what the engine says about one request.

    error is the sentence of a request that failed; result() can be taken at any time and is cumulative.
    """

    def __init__(
        self, request_id: str, request: Request, decode: Decode, arrival: float | None = None
    ) -> None:
        self.request_id = request_id
        self.request = request
        self.finished = False
        self.error: str | None = None
        self.num_tokens = 0
        self._decode = decode
        self._sequences = [_Sequence() for _ in range(request.params.n)]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._cached_tokens = 0
        self._times: tuple[float, ...] = (0.0,) * 5
        self._speculation: list[_core.SequenceSpeculation] = []
        self._arrival = time.time() if arrival is None else arrival

    def add(self, output: _core.Output) -> None:
        sequence = self._sequences[output.index]
        params = self.request.params
        if output.text:
            sequence.text.append(output.text)
        sequence.token_ids += output.token_ids
        self.num_tokens += len(output.token_ids)
        if params.logprobs is not None:
            sequence.logprobs += self._logprobs(output.logprobs)
        if params.prompt_logprobs is not None and output.prompt_logprobs:
            if self._prompt_logprobs is None:
                self._prompt_logprobs = [None]  # the first token has no probability
            self._prompt_logprobs += self._logprobs(output.prompt_logprobs)
        sequence.cumulative_logprob = output.cumulative_logprob
        if output.finish_reason is not None:
            sequence.finish_reason = output.finish_reason
            sequence.stop_reason = output.stop_reason
            if output.speculation.iterations > 0:
                self._speculation.append(output.speculation)
            if output.finish_reason == "error":
                self.error = output.error or "the request failed inside the engine"
        self._cached_tokens = output.num_cached_tokens
        self._times = output.times
        self.finished = output.request_finished

    def _logprobs(self, positions: Sequence[Sequence[_core.TokenLogprob]]) -> list[dict[int, Logprob]]:
        found = []
        for position in positions:
            entries: dict[int, Logprob] = {}
            for entry in position:
                if entry.token not in entries:
                    decoded = self._decode(entry.token)
                    entries[entry.token] = Logprob(entry.logprob, rank=entry.rank, decoded_token=decoded)
            found.append(entries)
        return found

    def result(self) -> RequestOutput:
        params = self.request.params
        wanted = params.logprobs is not None
        outputs = [
            CompletionOutput(
                index=index,
                text="".join(sequence.text),
                token_ids=tuple(sequence.token_ids),
                cumulative_logprob=sequence.cumulative_logprob if wanted else None,
                logprobs=list(sequence.logprobs) if wanted else None,
                finish_reason=sequence.finish_reason,
                stop_reason=sequence.stop_reason,
            )
            for index, sequence in enumerate(self._sequences)
        ]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.request.prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=outputs,
            finished=self.finished,
            metrics=self._metrics(),
            num_cached_tokens=self._cached_tokens,
        )

    def _metrics(self) -> RequestMetrics:
        """The core's monotonic times as seconds since the epoch."""
        shift = time.time() - time.monotonic()
        arrival, scheduled, first, last, finished = (t + shift if t else None for t in self._times)
        arrived = arrival if arrival is not None else self._arrival
        return RequestMetrics(
            arrival_time=arrived,
            last_token_time=last if last is not None else arrived,
            first_scheduled_time=scheduled,
            first_token_time=first,
            time_in_queue=scheduled - arrived if scheduled is not None else None,
            finished_time=finished,
            **(self._speculation_metrics() if self.finished and self._speculation else {}),
        )

    def _speculation_metrics(self) -> dict[str, Any]:
        parts = self._speculation
        drafted, accepted = sum(p.drafted for p in parts), sum(p.accepted for p in parts)
        counts = itertools.zip_longest(*(p.accepted_at_least for p in parts), fillvalue=0)
        return {
            "spec_token_acceptance_counts": [sum(column) for column in counts],
            "num_drafted_tokens": drafted,
            "num_accepted_tokens": accepted,
            "num_rejected_tokens": drafted - accepted,
            "num_hit_iterations": sum(p.hit_iterations for p in parts),
        }


def token_decoder(tokenizer: Any) -> Decode:
    """id -> text of that one token, remembered; None without a tokenizer.

    token_text keeps a token's leading space, which decoding it alone would drop in SentencePiece models; a
    tokenizer given by the user may not have it.
    """
    known: dict[int, str] = {}
    to_text = getattr(tokenizer, "token_text", None) or (
        lambda id: tokenizer.decode([id], skip_special_tokens=False)
    )

    def decode(id: int) -> str | None:
        if tokenizer is None:
            return None
        text = known.get(id)
        if text is None:
            text = known[id] = to_text(id)
        return text

    return decode
