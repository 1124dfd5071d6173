"""POST /generate: the request and stream format of vLLM's first server.

{"prompt": ..., "stream": bool, <SamplingParams>} -> {"text": [prompt + output, ...]}. A stream is such
objects, each with all of the text so far, separated by NUL bytes.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from taco_llm.server import sampling
from taco_llm.server.body import read_json
from taco_llm.server.errors import ApiError, error_body
from taco_llm.server.fields import Fields
from taco_llm.server.generation import Collector, Request
from taco_llm.server.middleware import note
from taco_llm.server.sse import StreamJob
from taco_llm.server.state import STATE, State


async def generate(http: web.Request) -> web.StreamResponse:
    state = http.app[STATE]
    state.admit()
    fields = Fields(await read_json(http, state.limits))
    sampling.read_model(fields, state)
    sampling.refuse_unbuilt(fields)
    stream = fields.flag("stream")
    arguments = sampling.read_sampling(fields, state, default_temperature=1.0)
    max_tokens = fields.integer("max_tokens", 16, 1, 2**31 - 1)
    priority = sampling.read_priority(fields, state)
    keep = sampling.read_truncation(fields, state)
    text, ids = await _read_prompt(fields, state, keep)
    if keep is not None:
        ids = ids[-keep:]
    arguments["max_tokens"] = sampling.room(ids, max_tokens, state)
    people, core = sampling.core_params(arguments, state)
    request = Request([ids], [core], people.n, people.best_of or people.n, priority)
    sampling.read_tenant(fields, http, state, request)
    fields.warn_unknown("/generate")
    note(http, len(ids))
    if stream and request.best_of == request.n:
        return await LegacyStream(state, request, text).run(http)
    results = await Collector(state, request).run()
    body = json.dumps({"text": [text + choice.text for choice in results[0]]}).encode()
    return web.Response(body=body + b"\0" if stream else body, content_type="application/json")


async def _read_prompt(fields: Fields, state: State, keep: int | None) -> tuple[str, list[int]]:
    prompt = fields.raw("prompt")
    ids = fields.raw("prompt_token_ids")
    if prompt is None and ids is not None:
        if not isinstance(ids, list):
            raise fields.wrong("prompt_token_ids", "an array of token ids")
        ids = sampling.check_prompt_ids(ids, keep, state, "prompt_token_ids")
        return state.decode(ids), ids
    if not isinstance(prompt, str):
        raise ApiError("'prompt' must be a string.", param="prompt")
    state.check_text_size(prompt)
    return prompt, await state.encode(prompt, add_special_tokens=True)


class LegacyStream(StreamJob):
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }
    pings = False

    def __init__(self, state: State, request: Request, prompt: str) -> None:
        super().__init__(state, request, plain=False)
        self._texts = [prompt] * request.n

    def on_output(self, prompt: int, output: Any) -> None:
        if output.text:
            self._texts[output.index] += output.text
            if self._writer.unsent() <= self._soft:  # a slow client gets fewer, longer steps
                self._send(self._frame())

    def on_done(self) -> None:
        self._send(self._frame())

    def _frame(self) -> bytes:
        return json.dumps({"text": self._texts}).encode() + b"\0"

    def error_frames(self, error: ApiError) -> bytes:
        return json.dumps(error_body(error)).encode() + b"\0"
