"""Reading a request body: size, time, encoding and JSON, strictly."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from typing import Any

from aiohttp import web

from taco_llm.server.errors import ApiError
from taco_llm.server.options import Limits

# Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the result, and
# the request of a client that is gone already would run to its end.
if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout  # of aiohttp's requirements there

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_NUMBER_CHARS = 64


async def read_json(request: web.Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object. ApiError 400, 408, 413 or 415 otherwise."""
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise ApiError(
            "Content-Encoding is not supported: send the body uncompressed.", status=415, close=True
        )
    if request.content_type != "application/json":
        # A page of another origin can send the simple content types without asking first; JSON it cannot.
        raise ApiError(
            "Send the body as JSON, with the header 'Content-Type: application/json'.", status=415, close=True
        )
    length = request.content_length
    if length is not None and length > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with timeout(limits.body_timeout):
            raw = await request.read()
    except asyncio.TimeoutError:
        message = f"The body did not arrive within {limits.body_timeout:g} s."
        raise ApiError(message, status=408, close=True) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limits) from None
    return parse_json_object(raw, limits)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(f"The body is over {limits.max_body_bytes} bytes: send less.", status=413, close=True)


def parse_json_object(raw: bytes, limits: Limits) -> dict[str, Any]:
    """ApiError 400 for anything but one well-formed JSON object without NaN, infinities, duplicate keys, lone
    surrogates, absurd numbers or deep nesting."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ApiError(f"The body is not valid UTF-8 (byte {e.start}).") from None
    _check_nesting(raw, limits)
    try:
        body = json.loads(
            text,
            parse_constant=_no_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
            object_pairs_hook=_no_duplicates,
        )
    except json.JSONDecodeError as e:
        raise ApiError(f"The body is not valid JSON: {e.msg} (line {e.lineno}, column {e.colno}).") from None
    except RecursionError:
        raise ApiError(f"The JSON is nested deeper than {limits.max_json_depth} levels.") from None
    if not isinstance(body, dict):
        raise ApiError('The body must be a JSON object, like {"prompt": "Hello"}.')
    if _SURROGATE_ESCAPE.search(raw):
        _check_surrogates(body)
    return body


def _check_nesting(raw: bytes, limits: Limits) -> None:
    if raw.count(b"[") + raw.count(b"{") <= limits.max_json_depth:
        return
    depth = containers = 0
    for match in _BRACKET.finditer(_STRING.sub(b"", raw)):
        if match[0] in b"]}":
            depth -= 1
            continue
        depth += 1
        containers += 1
        if depth > limits.max_json_depth:
            raise ApiError(f"The JSON is nested deeper than {limits.max_json_depth} levels.")
        if containers > limits.max_json_containers:
            raise ApiError(f"The JSON has more than {limits.max_json_containers} arrays and objects.")


def _no_constant(name: str) -> Any:
    raise ApiError(f"{name} is no JSON number.")


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_NUMBER_CHARS:
        raise ApiError(f"A number in the body has more than {_MAX_NUMBER_CHARS} digits.")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ApiError("A number in the body is too large for a double.")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ApiError(f"The key {key[:64]!r} is given twice in one JSON object.")
            seen.add(key)
    return result


def _check_surrogates(value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                message = (
                    "A string has a lone surrogate (half of a \\ud83d\\ude00 pair): send whole characters."
                )
                raise ApiError(message) from None
    elif isinstance(value, list):
        for item in value:
            _check_surrogates(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key)
            _check_surrogates(item)
