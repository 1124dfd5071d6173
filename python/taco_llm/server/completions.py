"""POST /v1/completions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from taco_llm.server import sampling
from taco_llm.server.body import read_json
from taco_llm.server.errors import ApiError, not_built
from taco_llm.server.fields import Fields
from taco_llm.server.generation import Choice, Collector, Request
from taco_llm.server.logprobs import TokenTexts, completion_logprobs, prepend_prompt, prompt_logprobs
from taco_llm.server.middleware import new_id, note
from taco_llm.server.sse import StreamJob, event, stream_when_done
from taco_llm.server.state import STATE, State

DEFAULT_MAX_TOKENS = 16


@dataclass
class StreamOptions:
    include_usage: bool = False
    continuous_usage: bool = False


def read_stream_options(fields: Fields, stream: bool) -> StreamOptions:
    raw = fields.raw("stream_options")
    if raw is None:
        return StreamOptions()
    if not isinstance(raw, dict):
        raise fields.wrong("stream_options", "an object")
    if not stream:
        raise ApiError("'stream_options' is only for 'stream': true.", param="stream_options")
    inner = Fields(raw)
    include = inner.flag("include_usage")
    return StreamOptions(include, inner.flag("continuous_usage_stats") and include)


@dataclass
class Completion:
    """A validated request of this route."""

    id: str
    created: int
    model: str
    request: Request
    prompt_texts: list[str]  # for echo; empty strings without it
    logprobs: int | None
    prompt_logprobs: int | None
    echo: bool
    echo_only: bool  # max_tokens 0 with echo: the one sampled token is dropped
    return_token_ids: bool
    stream: bool
    stream_options: StreamOptions

    def head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}


async def completions(http: web.Request) -> web.StreamResponse:
    state = http.app[STATE]
    state.admit()
    fields = Fields(await read_json(http, state.limits))
    completion = await _read(fields, state)
    sampling.read_tenant(fields, http, state, completion.request)
    fields.warn_unknown("/v1/completions")
    request = completion.request
    note(http, sum(len(p) for p in request.prompts))
    if completion.stream and request.best_of <= request.n and not completion.echo_only:
        return await CompletionStream(state, completion).run(http)
    details = (
        completion.logprobs is not None
        or completion.prompt_logprobs is not None
        or completion.return_token_ids
    )
    job = Collector(state, request, details=details)
    if completion.stream:
        return await stream_when_done(http, job, lambda: _as_frames(state, completion, job))
    results = await job.run()
    return web.json_response(_whole(state, completion, job, results))


async def _read(fields: Fields, state: State) -> Completion:
    model = sampling.read_model(fields, state)
    sampling.refuse_unbuilt(fields)
    if fields.raw("suffix"):
        raise not_built("suffix", "A suffix (infilling)")
    stream = fields.flag("stream")
    stream_options = read_stream_options(fields, stream)
    arguments = sampling.read_sampling(fields, state, default_temperature=1.0)
    echo = fields.flag("echo")
    max_tokens = fields.integer("max_tokens", DEFAULT_MAX_TOKENS, 0, 2**31 - 1)
    logprobs = sampling.read_logprob_count(fields, "logprobs", state)
    wanted_prompt_logprobs = sampling.read_logprob_count(fields, "prompt_logprobs", state)
    if stream and wanted_prompt_logprobs is not None:
        raise ApiError("'prompt_logprobs' cannot be streamed: leave out 'stream'.", param="prompt_logprobs")
    echo_only = max_tokens == 0
    if echo_only and not echo:
        raise ApiError("'max_tokens' must be at least 1 (0 only together with 'echo').", param="max_tokens")
    arguments["logprobs"] = logprobs
    arguments["prompt_logprobs"] = (
        max(wanted_prompt_logprobs or 0, logprobs)
        if echo and logprobs is not None
        else wanted_prompt_logprobs
    )
    priority = sampling.read_priority(fields, state)
    return_token_ids = fields.flag("return_token_ids")
    keep = sampling.read_truncation(fields, state)
    prompts, sent = await _read_prompts(fields, state, fields.flag("add_special_tokens", True), keep)
    params = []
    for prompt in prompts:
        arguments["max_tokens"] = sampling.room(prompt, max_tokens or 1, state)
    if arguments["min_tokens"] > arguments["max_tokens"]:
        raise ApiError("'min_tokens' must not be above 'max_tokens'.", param="min_tokens")
    people, core = sampling.core_params(arguments, state)
    params = [core] * len(prompts)
    n = people.n
    request = Request(prompts, params, n, people.best_of or n, priority)
    texts = [""] * len(prompts)
    if echo:
        texts = [state.decode(p) if text is None else text for p, text in zip(prompts, sent, strict=True)]
    return Completion(
        new_id("cmpl-"), int(time.time()), model, request, texts, logprobs, wanted_prompt_logprobs, echo,
        echo_only, return_token_ids, stream, stream_options,
    )  # fmt: skip


async def _read_prompts(
    fields: Fields, state: State, add_special_tokens: bool, keep: int | None
) -> tuple[list[list[int]], list[str | None]]:
    """A string, token ids, or a list of either. With the ids the text that was sent, where it is all used."""
    raw = fields.raw("prompt")
    if raw is None:
        raise ApiError("'prompt' is missing.", param="prompt")
    if isinstance(raw, str):
        raw = [raw]
    elif not isinstance(raw, list):
        raise fields.wrong(
            "prompt", "a string, an array of strings, token ids, or an array of arrays of token ids"
        )
    elif raw and not isinstance(raw[0], (str, list)):
        raw = [raw]
    if not raw:
        raise ApiError("'prompt' is empty.", param="prompt")
    if len(raw) > state.limits.max_prompts:
        raise ApiError(
            f"'prompt' has {len(raw)} prompts; at most {state.limits.max_prompts} go into one request.",
            param="prompt",
        )
    prompts: list[list[int]] = []
    texts: list[str | None] = []
    for item in raw:
        if isinstance(item, str):
            state.check_text_size(item)
            ids = await state.encode(item, add_special_tokens=add_special_tokens)
            texts.append(item if keep is None or len(ids) <= keep else None)
            prompts.append(ids if keep is None else ids[-keep:])
        elif isinstance(item, list):
            prompts.append(sampling.check_prompt_ids(item, keep, state, "prompt"))
            texts.append(None)
        else:
            raise ApiError("'prompt' must hold strings, or arrays of token ids, throughout.", param="prompt")
    return prompts, texts


def _whole(
    state: State, completion: Completion, job: Collector, results: list[list[Choice]]
) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for prompt, of_prompt in enumerate(results):
        for choice in of_prompt:
            choices.append(_choice(state, completion, job, prompt, len(choices), choice))
    usage = job.usage()
    if completion.echo_only:
        usage.completion = 0
    return {**completion.head(), "choices": choices, "usage": usage.json()}


def _choice(
    state: State, completion: Completion, job: Collector, prompt: int, index: int, choice: Choice
) -> dict[str, Any]:
    ids = completion.request.prompts[prompt]
    if completion.echo_only:
        choice.text, choice.token_ids, choice.logprobs, choice.finish_reason = "", [], [], "length"
    logprobs = None
    if completion.logprobs is not None:
        logprobs = _logprobs(state, completion, ids, choice.logprobs, job.prompt_logprobs[prompt])
    result: dict[str, Any] = {
        "index": index,
        "text": completion.prompt_texts[prompt] + choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if completion.prompt_logprobs is not None:
        result["prompt_logprobs"] = prompt_logprobs(TokenTexts(state), job.prompt_logprobs[prompt])
    if completion.return_token_ids:
        result["token_ids"] = choice.token_ids
        result["prompt_token_ids"] = ids
    return result


def _logprobs(
    state: State, completion: Completion, ids: list[int], output: Sequence[Any], of_prompt: Sequence[Any]
) -> dict[str, Any]:
    texts, top = TokenTexts(state), completion.logprobs or 0
    result, _ = completion_logprobs(texts, output, top)
    if completion.echo:
        prepend_prompt(texts, result, ids, completion_logprobs(texts, of_prompt, top)[0])
    return result


def _as_frames(state: State, completion: Completion, job: Collector) -> bytes:
    """A finished request as a stream of one event per choice."""
    whole = _whole(state, completion, job, job.results())
    extra = {"usage": None} if completion.stream_options.include_usage else {}
    frames = [event({**completion.head(), "choices": [choice], **extra}) for choice in whole["choices"]]
    if completion.stream_options.include_usage:
        frames.append(event({**completion.head(), "choices": [], "usage": whole["usage"]}))
    return b"".join(frames)


class CompletionStream(StreamJob):
    def __init__(self, state: State, completion: Completion) -> None:
        options = completion.stream_options
        plain = (
            completion.logprobs is None and not completion.return_token_ids and not options.continuous_usage
        )
        super().__init__(state, completion.request, plain=plain)
        self._completion = completion
        self._offsets = [0] * completion.request.choices
        self._head = json.dumps(completion.head(), separators=(",", ":"))[:-1].encode()
        self._usage_null = b',"usage":null' if options.include_usage else b""
        self.set_frames(
            [
                b'data: %b,"choices":[{"index":%d,"text":"' % (self._head, c)
                for c in range(completion.request.choices)
            ],
            b'","logprobs":null,"finish_reason":null,"stop_reason":null}]%b}\n\n' % self._usage_null,
        )

    def first_frames(self, choice: int) -> bytes:
        completion = self._completion
        if (
            not completion.echo or completion.logprobs is not None
        ):  # with logprobs it goes into the first frame
            return b""
        return self._make(
            choice, {"text": completion.prompt_texts[choice // completion.request.n], "logprobs": None}
        )

    def frame(self, choice: int, prompt: int, output: Any) -> bytes:
        completion = self._completion
        text, logprobs = output.text, None
        self.tokens_seen[choice] = output.num_output_tokens
        if completion.logprobs is not None:
            texts, top = TokenTexts(self.state), completion.logprobs
            logprobs, end = completion_logprobs(texts, output.logprobs, top, self._offsets[choice])
            if completion.echo and self._offsets[choice] == 0:
                ids = completion.request.prompts[prompt]
                of_prompt = [p for p in output.prompt_logprobs if p] or self._prompt_logprobs.get(prompt, [])
                self._prompt_logprobs[prompt] = of_prompt
                prepend_prompt(texts, logprobs, ids, completion_logprobs(texts, of_prompt, top)[0])
                text = completion.prompt_texts[prompt] + text
                end = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
            self._offsets[choice] = end
        body: dict[str, Any] = {
            "text": text,
            "logprobs": logprobs,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if completion.return_token_ids:
            body["token_ids"] = output.token_ids
            if output.num_output_tokens == len(output.token_ids):  # the choice's first
                body["prompt_token_ids"] = completion.request.prompts[prompt]
        return self._make(choice, body)

    @property
    def _prompt_logprobs(self) -> dict[int, Any]:
        return self.__dict__.setdefault("prompt_logprobs_by_prompt", {})

    def _make(self, choice: int, body: dict[str, Any]) -> bytes:
        data = {"index": choice, "finish_reason": None, "stop_reason": None, **body}
        usage = self._usage_null
        if self._completion.stream_options.continuous_usage:
            prompt = len(self._completion.request.prompts[choice // self._completion.request.n])
            seen = self.tokens_seen[choice]
            counts = {"prompt_tokens": prompt, "total_tokens": prompt + seen, "completion_tokens": seen}
            usage = b',"usage":' + json.dumps(counts, separators=(",", ":")).encode()
        choices = json.dumps(data, separators=(",", ":")).encode()
        return b'data: %b,"choices":[%b]%b}\n\n' % (self._head, choices, usage)

    def usage_frame(self) -> bytes:
        if not self._completion.stream_options.include_usage:
            return b""
        usage = json.dumps(self.usage().json(), separators=(",", ":")).encode()
        return b'data: %b,"choices":[],"usage":%b}\n\n' % (self._head, usage)
