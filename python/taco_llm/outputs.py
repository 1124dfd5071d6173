"""What a request gives back: the fields of vLLM 0.6's outputs, and ``num_cached_tokens``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Logprob:
    """The log probability of one token at one position.

    Args:
        logprob: natural logarithm of the token's probability under the model, before penalties, temperature
            and filters.
        rank: 1 for the most likely token of the vocabulary.
        decoded_token: the token's text.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


# token id -> log probability. Of a prompt: None for the first token, which nothing predicts.
SampleLogprobs = list[dict[int, Logprob]]
PromptLogprobs = list[dict[int, Logprob] | None]


@dataclass
class RequestMetrics:
    """When things happened, in seconds of ``time.time()``; None: not yet.

    Args:
        arrival_time: the request was submitted.
        last_token_time: the latest token came.
        first_scheduled_time: the request was first part of a step.
        first_token_time: its first token came.
        time_in_queue: seconds between arrival and the first step.
        finished_time: the request ended.
        spec_token_acceptance_counts: with speculation, when the request has ended: [k] of its decoding steps
            accepted at least k drafted tokens, [0] is the number of the steps. Summed over its sequences.
        num_drafted_tokens: tokens that were drafted and verified; likewise.
        num_accepted_tokens: those of them that became output.
        num_rejected_tokens: those that did not.
        num_hit_iterations: decoding steps that accepted at least one.
    """

    arrival_time: float
    last_token_time: float | None = None
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    time_in_queue: float | None = None
    finished_time: float | None = None
    scheduler_time: float | None = None
    model_forward_time: float | None = None
    model_execute_time: float | None = None
    spec_token_acceptance_counts: list[int] | None = None
    num_drafted_tokens: int | None = None
    num_accepted_tokens: int | None = None
    num_rejected_tokens: int | None = None
    num_hit_iterations: int | None = None


@dataclass
class CompletionOutput:
    """One output sequence of a request.

    Args:
        index: number of the sequence in the request, from 0.
        text: the generated text.
        token_ids: the generated tokens.
        cumulative_logprob: sum of the tokens' log probabilities.
        logprobs: one dictionary for each token, when the request asked for log probabilities.
        finish_reason: None while it runs; "stop" (end of sequence, a stop string or token), "length"
            (max_tokens or the context), "abort" or "error".
        stop_reason: the stop string or stop token id that ended it; None for end of sequence and the rest.
        lora_request: the adapter used.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    logprobs: SampleLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None

    def finished(self) -> bool:
        """Whether the sequence has ended."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """What a request has generated so far.

    Args:
        request_id: the caller's name of the request.
        prompt: text of the prompt; None when token ids were given.
        prompt_token_ids: tokens of the prompt.
        prompt_logprobs: one dictionary for each prompt token (None for the first), when asked for.
        outputs: the ``n`` output sequences.
        finished: whether all of them have ended.
        metrics: times of the request.
        lora_request: the adapter used.
        encoder_prompt: of encoder-decoder models.
        encoder_prompt_token_ids: of encoder-decoder models.
        num_cached_tokens: prompt tokens that were found in the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics | None = None
    lora_request: Any = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cached_tokens: int = 0
