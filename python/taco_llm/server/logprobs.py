"""Logprobs in OpenAI's two formats. A position's entries: the chosen token, then the k most likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taco_llm.server.state import State

_FLOOR = -9999.0  # JSON has no -inf


class TokenTexts:
    """Token ids as text; as "token_id:N" under --return-tokens-as-token-ids, and without a tokenizer."""

    def __init__(self, state: State) -> None:
        self._vocabulary = state.vocabulary
        self._as_ids = state.options.return_tokens_as_token_ids or self._vocabulary is None

    def bytes(self, token: int) -> bytes:
        return bytes(self._vocabulary.piece(token)) if self._vocabulary is not None else b""

    def text(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self.bytes(token).decode("utf-8", "replace")


def _value(logprob: float) -> float:
    return max(logprob, _FLOOR)


def completion_logprobs(
    texts: TokenTexts, positions: Sequence[Sequence[Any]], top: int, offset: int = 0
) -> tuple[dict[str, Any], int]:
    """The legacy format, and the text offset after the last token. `positions` have no empty entry."""
    result: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for entries in positions:
        chosen = entries[0]
        token = texts.text(chosen.token)
        result["tokens"].append(token)
        result["token_logprobs"].append(_value(chosen.logprob))
        ranked = list(entries[1 : top + 1])
        if all(e.token != chosen.token for e in ranked):
            ranked.append(chosen)
        result["top_logprobs"].append({texts.text(e.token): _value(e.logprob) for e in ranked})
        result["text_offset"].append(offset)
        offset += len(token)
    return result, offset


def prepend_prompt(
    texts: TokenTexts, logprobs: dict[str, Any], prompt_ids: Sequence[int], prompt: dict[str, Any]
) -> None:
    """Puts an echoed prompt's logprobs before the output's; `prompt` covers prompt_ids[1:]."""
    first = texts.text(prompt_ids[0])
    shift = len(first) + sum(len(token) for token in prompt["tokens"])
    logprobs["text_offset"] = (
        [0] + [len(first) + o for o in prompt["text_offset"]] + [shift + o for o in logprobs["text_offset"]]
    )
    logprobs["token_logprobs"] = [None] + prompt["token_logprobs"] + logprobs["token_logprobs"]
    logprobs["tokens"] = [first] + prompt["tokens"] + logprobs["tokens"]
    logprobs["top_logprobs"] = [None] + prompt["top_logprobs"] + logprobs["top_logprobs"]


def chat_logprobs(texts: TokenTexts, positions: Sequence[Sequence[Any]], top: int) -> dict[str, Any]:
    return {
        "content": [
            {**_entry(texts, entries[0]), "top_logprobs": [_entry(texts, e) for e in entries[1 : top + 1]]}
            for entries in positions
        ]
    }


def _entry(texts: TokenTexts, entry: Any) -> dict[str, Any]:
    return {
        "token": texts.text(entry.token),
        "logprob": _value(entry.logprob),
        "bytes": list(texts.bytes(entry.token)),
    }


def prompt_logprobs(texts: TokenTexts, positions: Sequence[Sequence[Any]]) -> list[dict[str, Any] | None]:
    """vLLM's extra field: per prompt token {id: {logprob, rank, decoded_token}}, null for the first."""
    result: list[dict[str, Any] | None] = [None]
    for entries in positions:
        result.append(
            {
                str(e.token): {
                    "logprob": _value(e.logprob),
                    "rank": e.rank,
                    "decoded_token": texts.text(e.token),
                }
                for e in [*entries[1:], entries[0]]
            }
        )
    return result
