"""One error shape for every failure: OpenAI's nested object, with vLLM 0.6's flat keys beside it."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    431: "RequestHeadersTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """Ends a request with `status` and a message for the client that says what to change."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.headers = headers or {}
        self.close = close  # the connection too: its state is unknown (unread body)


def error_body(error: ApiError) -> dict[str, Any]:
    kind = TYPES.get(error.status, "BadRequestError" if error.status < 500 else "InternalServerError")
    flat = {"message": error.message, "type": kind, "param": error.param, "code": error.status}
    # vLLM's 401 is {"error": "Unauthorized"}; clients of both generations find what they look for.
    return {"error": "Unauthorized" if error.status == 401 else dict(flat), "object": "error", **flat}


def error_response(error: ApiError) -> web.Response:
    response = web.Response(
        status=error.status,
        body=json.dumps(error_body(error)).encode(),
        content_type="application/json",
        headers=error.headers,
    )
    if error.close:
        response.force_close()
    return response


def not_built(param: str, what: str) -> ApiError:
    return ApiError(f"{what} is not built yet: leave out '{param}'.", param=param)
