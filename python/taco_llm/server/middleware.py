"""Around every handler: request ids, keys, CORS, error shape, access log."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from taco_llm.server.errors import ApiError, error_response
from taco_llm.server.state import State

logger = logging.getLogger("taco_llm.server")
access_logger = logging.getLogger("taco_llm.server.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
REQUEST_ID = web.RequestKey("id", str)
PROMPT_TOKENS = web.RequestKey("prompt_tokens", int)
CLIENT_GONE = 499  # in log and metrics only, as nginx has it


def new_id(prefix: str) -> str:
    """Ids are always made here: a client's own are echoed, never used."""
    return prefix + secrets.token_hex(16)


def note(request: web.Request, prompt_tokens: int) -> None:
    """For the access log."""
    request[PROMPT_TOKENS] = prompt_tokens


class Guard:
    """The outermost middleware. `open_handlers` are what needs no key; everything else does, unknown paths
    too: what counts is the handler that the router chose, not the text of the URL or the Host header."""

    def __init__(self, state: State, open_handlers: set[Any], work_handlers: set[Any]) -> None:
        self._state = state
        self._open = open_handlers
        self._work = work_handlers  # what a drain waits for
        self._log = not state.options.disable_log_requests

    def middleware(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._handle(request, handler)

        return guard

    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        request[REQUEST_ID] = given if _CLIENT_ID.fullmatch(given) else new_id("req-")
        work = request.match_info.handler in self._work
        self._state.requests_running += work
        status = CLIENT_GONE
        try:
            response = await self._answer(request, handler)
            status = response.status
            return response
        finally:
            self._state.requests_running -= work
            self._account(request, status, time.perf_counter() - started)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if sum(len(k) + len(v) + 4 for k, v in request.raw_headers) > self._state.limits.max_header_bytes:
                message = (
                    f"The request's headers are over {self._state.limits.max_header_bytes} bytes: send less."
                )
                raise ApiError(message, status=431, close=True)
            preflight = self._preflight(request)
            if preflight is not None:
                return preflight
            if request.match_info.handler not in self._open and not self._state.keys.allows(request):
                message = "Send a valid API key: 'Authorization: Bearer <key>'."
                raise ApiError(message, status=401, headers={"WWW-Authenticate": "Bearer"})
            return await handler(request)
        except ApiError as e:
            return error_response(e)
        except web.HTTPException as e:
            if e.status < 400:
                raise
            headers = {"Allow": e.headers["Allow"]} if "Allow" in e.headers else {}
            messages = {
                404: "There is nothing at this path.",
                405: "This path has another method: see 'Allow'.",
            }
            return error_response(
                ApiError(messages.get(e.status, e.reason), status=e.status, headers=headers)
            )
        except asyncio.CancelledError:
            raise
        except ConnectionError:  # while reading the body: there is nobody to answer
            return error_response(ApiError("The connection was lost.", status=400, close=True))
        except web.RequestPayloadError:
            return error_response(ApiError("The body is cut off or badly encoded.", status=400, close=True))
        except Exception:
            logger.exception("request %s failed inside the server", request[REQUEST_ID])
            message = f"Internal error; the server's log has it under request id {request[REQUEST_ID]}."
            return error_response(ApiError(message, status=500))

    def _account(self, request: web.Request, status: int, seconds: float) -> None:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "(unknown)"
        http = self._state.metrics.http
        http[route, status] = http.get((route, status), 0) + 1
        if self._log and access_logger.isEnabledFor(logging.INFO):
            # raw_path is percent-encoded: no line break of a client's gets into the log. No query, no body.
            path = request.rel_url.raw_path[:200].encode("ascii", "backslashreplace").decode()
            access_logger.info(
                "%s %s %s %d %.1fms prompt_tokens=%s id=%s", request.remote or "-", request.method, path,
                status, seconds * 1e3, request.get(PROMPT_TOKENS, "-"), request[REQUEST_ID],
            )  # fmt: skip

    # --- CORS: off unless --allowed-origins

    def _origin(self, request: web.Request) -> str | None:
        origin, allowed = request.headers.get("Origin"), self._state.options.allowed_origins
        if origin is None or not allowed:
            return None
        if "*" in allowed:
            return "*"
        return origin if origin in allowed else None

    def _preflight(self, request: web.Request) -> web.Response | None:
        asked = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or asked is None or self._origin(request) is None:
            return None
        options = self._state.options
        methods = ["GET", "POST"] if "*" in options.allowed_methods else options.allowed_methods
        headers = options.allowed_headers
        if "*" in headers:
            headers = ["Authorization", "Content-Type", "X-Request-Id"]
            named = request.headers.get("Access-Control-Request-Headers", "")
            headers += [h.strip() for h in named.split(",") if re.fullmatch(r"[A-Za-z0-9-]{1,64}", h.strip())]
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": ", ".join(methods),
                "Access-Control-Allow-Headers": ", ".join(dict.fromkeys(headers)),
                "Access-Control-Max-Age": "600",
            },
        )

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Headers of every response; a signal, as a stream sends its header before the handler returns."""
        response.headers["X-Request-Id"] = request.get(REQUEST_ID, "-")
        response.headers["X-Content-Type-Options"] = "nosniff"
        if "Server" not in response.headers:
            response.headers["Server"] = "taco_llm"
        if not self._state.options.allowed_origins:
            return
        response.headers["Vary"] = "Origin"
        origin = self._origin(request)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "X-Request-Id"
            if self._state.options.allow_credentials:
                response.headers["Access-Control-Allow-Credentials"] = "true"
