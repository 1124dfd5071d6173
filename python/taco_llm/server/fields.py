"""Typed, ranged access to the fields of a request body. null means: not given."""

from __future__ import annotations

import logging
from typing import Any

from taco_llm.server.errors import ApiError

logger = logging.getLogger("taco_llm.server")

_warned: set[tuple[str, str]] = set()  # each field is warned about once
_MAX_WARNINGS = 1000


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    names: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "null")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Fields:
    """Each getter notes its field; `warn_unknown` logs what nobody asked for, each name once."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.known: set[str] = set()

    def raw(self, name: str) -> Any:
        self.known.add(name)
        return self.body.get(name)

    def wrong(self, name: str, expected: str) -> ApiError:
        return ApiError(f"'{name}' must be {expected}, not {_name(self.body.get(name))}.", param=name)

    def text(self, name: str, default: str | None = None, *, max_chars: int = 256) -> str | None:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        if len(value) > max_chars:
            raise ApiError(f"'{name}' has over {max_chars} characters.", param=name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not is_int(value):
            raise self.wrong(name, "an integer")
        if not low <= value <= high:
            raise ApiError(f"'{name}' must be between {low} and {high}, got {str(value)[:24]}.", param=name)
        return value

    def number(self, name: str, default: float | None, low: float, high: float) -> float | None:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number")
        if not low <= value <= high:
            raise ApiError(
                f"'{name}' must be between {low:g} and {high:g}, got {str(value)[:24]}.", param=name
            )
        return float(value)

    def texts(self, name: str, max_items: int, max_chars: int, *, single: bool = False) -> list[str] | None:
        """A list of non-empty strings; with `single` a bare string counts as a list of one."""
        value = self.raw(name)
        if value is None:
            return None
        if single and isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a string or an array of strings" if single else "an array of strings")
        self._count(name, value, max_items)
        for item in value:
            if not item:
                raise ApiError(f"'{name}' must not hold an empty string.", param=name)
            if len(item.encode()) > max_chars:
                raise ApiError(f"'{name}' holds a string of over {max_chars} bytes.", param=name)
        return value

    def token_ids(self, name: str, max_items: int, vocab_size: int) -> list[int] | None:
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(name, "an array of token ids")
        self._count(name, value, max_items)
        check_token_ids(value, vocab_size, name)
        return value

    def _count(self, name: str, value: list[Any], max_items: int) -> None:
        if len(value) > max_items:
            raise ApiError(f"'{name}' has {len(value)} entries; at most {max_items} are allowed.", param=name)

    def warn_unknown(self, route: str) -> None:
        unknown = [repr(key[:40]) for key in self.body if key not in self.known]
        fresh = [name for name in unknown if (route, name) not in _warned]
        if not fresh or len(_warned) >= _MAX_WARNINGS:
            return
        _warned.update((route, name) for name in fresh)
        logger.warning("%s: unknown fields are ignored: %s", route, ", ".join(fresh[:8]))


def check_token_ids(ids: list[Any], vocab_size: int, name: str) -> None:
    for i in ids:
        if not isinstance(i, int) or isinstance(i, bool):
            raise ApiError(f"'{name}' must hold token ids (integers), not {_name(i)}.", param=name)
        if not 0 <= i < vocab_size:
            raise ApiError(
                f"'{name}' holds the token id {str(i)[:24]}; ids of this model are 0 to {vocab_size - 1}.",
                param=name,
            )
