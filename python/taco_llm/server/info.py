"""The routes that generate nothing: models, tokens, health, metrics."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from aiohttp import web

from taco_llm.server import cache_figures, sampling, speculation
from taco_llm.server.body import read_json
from taco_llm.server.chat import render_messages
from taco_llm.server.errors import ApiError
from taco_llm.server.fields import Fields, check_token_ids
from taco_llm.server.metrics import CONTENT_TYPE
from taco_llm.server.state import STATE, State

_MOST_PREFIXES = 100  # shown by /v1/cache


async def health(request: web.Request) -> web.Response:
    """Live: this process answers, and its engine has not failed for good. Generates nothing."""
    death = request.app[STATE].death_reason()
    if death is not None:
        raise ApiError(f"The engine has failed ({death}): the server must be restarted.", status=503)
    return web.Response()


async def ready(request: web.Request) -> web.Response:
    """Whether a load balancer should send requests here: by the engine's heartbeat, not a probe."""
    reason = request.app[STATE].unready_reason()
    if reason is not None:
        raise ApiError(f"Not ready: {reason}.", status=503)
    return web.json_response({"status": "ready"})


async def ping(request: web.Request) -> web.Response:
    """SageMaker's name for /health."""
    return await health(request)


async def version(request: web.Request) -> web.Response:
    try:
        number = metadata.version("taco_llm")
    except metadata.PackageNotFoundError:
        number = "unknown"
    return web.json_response({"version": number})


async def load(request: web.Request) -> web.Response:
    return web.json_response({"server_load": request.app[STATE].requests_running})


async def metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[STATE].metrics.page(), headers={"Content-Type": CONTENT_TYPE})


async def speculation_view(request: web.Request) -> web.Response:
    """What speculation has done so far; {"method": "none"} without it."""
    return web.json_response(speculation.view(request.app[STATE].handle))


async def cache_view(request: web.Request) -> web.Response:
    """What the prefix cache holds and hits; ?top=N: with so many of the prefixes that are used most."""
    state = request.app[STATE]
    text = request.query.get("top", "10")
    if not (text.isascii() and text.isdigit() and len(text) < 4 and int(text) <= _MOST_PREFIXES):
        raise ApiError(f"'top' must be from 0 to {_MOST_PREFIXES}.", param="top")
    if not cache_figures.enabled(state.handle):
        return web.json_response({"enabled": False})
    report = await state.in_thread(state.core.cache_report, int(text))
    return web.json_response(cache_figures.view(state.handle, report.stats, report.hottest))


async def reset_prefix_cache(request: web.Request) -> web.Response:
    """Forgets what is cached, in all tiers. Requests that run keep their blocks, and finish."""
    state = request.app[STATE]
    if cache_figures.enabled(state.handle) and not await state.in_thread(state.core.reset_prefix_cache):
        raise ApiError("The engine does not answer: the prefix cache was not reset.", status=503)
    return web.Response()


def _card(state: State, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "taco_llm",
        "root": state.model_names[0],
        "parent": None,
        "max_model_len": state.max_model_len,
        "permission": [],
    }


async def models(request: web.Request) -> web.Response:
    state = request.app[STATE]
    return web.json_response({"object": "list", "data": [_card(state, name) for name in state.model_names]})


async def model(request: web.Request) -> web.Response:
    state, name = request.app[STATE], request.match_info["model"]
    if name not in state.model_names:
        raise ApiError(f"The model `{name[:200]}` does not exist.", status=404, param="model")
    return web.json_response(_card(state, name))


async def tokenize(request: web.Request) -> web.Response:
    """{prompt} or {messages} -> {count, max_model_len, tokens}."""
    state = request.app[STATE]
    fields = Fields(await read_json(request, state.limits))
    sampling.read_model(fields, state)
    as_texts = fields.flag("return_token_strs")
    if fields.raw("messages") is not None:
        _, text = await render_messages(fields, state)
        ids = await state.encode(text, add_special_tokens=fields.flag("add_special_tokens"))
    else:
        prompt = fields.raw("prompt")
        if not isinstance(prompt, str):
            raise ApiError("Send 'prompt' (a string) or 'messages'.", param="prompt")
        ids = await state.encode(prompt, add_special_tokens=fields.flag("add_special_tokens", True))
    fields.warn_unknown("/tokenize")
    body: dict[str, Any] = {"count": len(ids), "max_model_len": state.max_model_len, "tokens": ids}
    if as_texts:
        body["token_strs"] = state.tokenizer.convert_ids_to_tokens(ids)
    return web.json_response(body)


async def detokenize(request: web.Request) -> web.Response:
    """{tokens} -> {prompt}."""
    state = request.app[STATE]
    fields = Fields(await read_json(request, state.limits))
    sampling.read_model(fields, state)
    tokens = fields.raw("tokens")
    if not isinstance(tokens, list):
        raise fields.wrong("tokens", "an array of token ids")
    state.need_tokenizer()
    limit = max(65536, state.max_model_len)
    if len(tokens) > limit:
        raise ApiError(f"'tokens' has {len(tokens)} entries; at most {limit} are allowed.", param="tokens")
    check_token_ids(tokens, min(state.vocab_size, state.tokenizer.vocab_size), "tokens")
    fields.warn_unknown("/detokenize")
    if len(tokens) > state.options.tokenizer_inline_chars:
        text = await state.in_thread(state.decode, tokens)
    else:
        text = state.decode(tokens)
    return web.json_response({"prompt": text})


class Page:
    """The chat page at /: one file, no outside assets, and a policy under which nothing else could run."""

    def __init__(self) -> None:
        self._html = (Path(__file__).parent / "page.html").read_bytes()
        script = " ".join(self._hashes(rb"<script>(.*?)</script>"))
        style = " ".join(self._hashes(rb"<style>(.*?)</style>"))
        self._headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": (
                f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; "
                "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cache-Control": "no-cache",
        }

    def _hashes(self, pattern: bytes) -> list[str]:
        found = re.findall(pattern, self._html, re.DOTALL)
        return [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found]

    async def get(self, request: web.Request) -> web.Response:
        return web.Response(body=self._html, headers=self._headers)
