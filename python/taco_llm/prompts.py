"""What may be asked of an engine: the forms of a prompt, and one request made ready for the core."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from taco_llm.cache_root import LONGEST_SALT, NO_ROOT, cache_root
from taco_llm.flag_table import NotBuiltError

if TYPE_CHECKING:
    from taco_llm import _core
    from taco_llm.engine import EngineHandle
    from taco_llm.sampling_params import SamplingParams


class _Salted(TypedDict, total=False):
    cache_salt: str
    """The prompt shares the prefix cache with prompts of the same salt only."""


class TextPrompt(_Salted):
    """A prompt as text."""

    prompt: str


class TokensPrompt(_Salted):
    """A prompt as token ids."""

    prompt_token_ids: list[int]


PromptInputs = str | TextPrompt | TokensPrompt
"""One prompt: text, {"prompt": text} or {"prompt_token_ids": ids}; the dicts may hold a cache_salt."""


@dataclass
class Request:
    """One request, checked and ready to be submitted. prompt is None when only token ids were given."""

    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    core_params: _core.SamplingParams
    cache_root: bytes = NO_ROOT  # what it shares the prefix cache with


def is_token_ids(value: Any) -> bool:
    """Whether the value is one prompt of token ids (a sequence that begins with an integer)."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and hasattr(value[0], "__index__")
    )


def as_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list of prompts."""
    if isinstance(prompts, str | Mapping) or is_token_ids(prompts):
        return [prompts]
    if isinstance(prompts, Sequence) and not isinstance(prompts, bytes):
        return list(prompts)
    raise ValueError(f"prompts should be text, token ids, a dict or a list of those, not {_kind(prompts)}")


def prepare(
    handle: EngineHandle, prompt: Any, params: SamplingParams, *, special_tokens: bool = True
) -> Request:
    """Turns a prompt into token ids and checks them and the parameters against the engine.

    Raises ValueError, with a sentence that says what to change.
    """
    text, ids, bounds = _text_and_ids(prompt)
    if ids is None:
        assert text is not None
        if handle.tokenizer is None:
            raise ValueError(
                "there is no tokenizer (skip_tokenizer_init): give prompt_token_ids instead of text"
            )
        ids = handle.tokenizer.encode(text, add_special_tokens=special_tokens)
    keep = params.truncate_prompt_tokens
    if keep is not None and len(ids) > keep:
        ids, bounds = ids[-keep:], None
    if not ids:
        raise ValueError("the prompt is empty: it has no tokens")
    if len(ids) >= handle.max_model_len:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, and prompt and answer together may have "
            f"{handle.max_model_len}; "
            "shorten it, set truncate_prompt_tokens, or raise max_model_len"
        )
    low, high = bounds or (min(ids), max(ids))
    if low < 0 or high >= handle.vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong} is not in the vocabulary (0 to {handle.vocab_size - 1})")
    limit = handle.args.max_logprobs
    for name in ("logprobs", "prompt_logprobs"):
        asked = getattr(params, name)
        if asked is not None and asked > limit:
            raise ValueError(f"{name}={asked} is more than the {limit} that --max-logprobs allows")
    if params.max_tokens is None:
        params = copy.copy(params)
        params.max_tokens = handle.max_model_len - len(ids)
    core_params = params.to_core(eos_token_ids=handle.eos_token_ids, tokenizer=handle.tokenizer)
    return Request(text, ids, params, core_params, _cache_root(prompt))


def _cache_root(prompt: Any) -> bytes:
    salt = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
    if salt is None:
        return NO_ROOT
    if not isinstance(salt, str) or not 0 < len(salt) <= LONGEST_SALT:
        raise ValueError(
            f"cache_salt should be a string of 1 to {LONGEST_SALT} characters; leave it out to have none"
        )
    return cache_root(salt=salt)


Bounds = tuple[int, int]  # the least and the greatest of some token ids


def _text_and_ids(prompt: Any) -> tuple[str | None, list[int] | None, Bounds | None]:
    if isinstance(prompt, str):
        return prompt, None, None
    if isinstance(prompt, Mapping):
        if prompt.get("multi_modal_data"):
            raise NotBuiltError("multi_modal_data needs multimodal models, which are not built yet")
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if text is None and ids is None:
            raise ValueError(
                f"a prompt dict needs 'prompt' or 'prompt_token_ids', this one has {sorted(prompt)}"
            )
        if text is not None and not isinstance(text, str):
            raise ValueError(f"'prompt' should be text, not {_kind(text)}")
        return (text, None, None) if ids is None else (text, *_ids(ids))
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        return None, *_ids(prompt)
    raise ValueError(f"a prompt should be text, token ids or a dict, not {_kind(prompt)}")


def _ids(ids: Any) -> tuple[list[int], Bounds | None]:
    """Token ids as a list of their own, and their bounds where those were found on the way."""
    if isinstance(ids, str | bytes | Mapping) or not hasattr(ids, "__iter__"):
        raise ValueError(f"token ids should be a list of integers, not {_kind(ids)}")
    if not hasattr(ids, "__len__"):
        ids = list(ids)  # it is looked at twice
    try:
        packed = array("i", ids)  # one pass over the ids at the speed of C; a long batch has many
    except (TypeError, OverflowError, ValueError):
        packed = array("i")
    if packed:
        values = np.frombuffer(packed, np.int32)
        low, high = int(values.min()), int(values.max())
        if low > 1 or bool not in set(map(type, ids)):
            return packed.tolist(), (low, high)
    found = []
    for id in ids:
        if isinstance(id, bool) or not hasattr(id, "__index__"):
            raise ValueError(f"token ids should be integers, and {id!r} is {_kind(id)}")
        found.append(id.__index__())
    return found, None


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def flatten_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """OpenAI messages with their content parts joined into text. Images and other media are refused."""
    flat = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"a chat message should be a dict with 'role' and 'content', not {message!r}")
        message = dict(message)
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            texts = []
            for part in content:
                kind = part.get("type") if isinstance(part, Mapping) else None
                if isinstance(part, str):
                    texts.append(part)
                elif kind == "text" and isinstance(part.get("text"), str):
                    texts.append(part["text"])
                else:
                    raise NotBuiltError(
                        f"content part {kind!r} needs multimodal models, which are not built yet"
                    )
            message["content"] = "\n".join(texts)
        elif content is not None and not isinstance(content, str):
            raise ValueError(f"a message's content should be text or a list of parts, not {_kind(content)}")
        flat.append(message)
    if not flat:
        raise ValueError("the conversation has no messages")
    return flat


def refuse_adapters(**requests: Any) -> None:
    """NotBuiltError when an adapter or guide is asked for."""
    what = {
        "lora_request": "LoRA adapters",
        "prompt_adapter_request": "prompt adapters",
        "guided_options_request": "guided decoding",
        "trace_headers": "OpenTelemetry tracing",
    }
    for name, value in requests.items():
        if value is not None and value != []:
            raise NotBuiltError(f"{name} needs {what[name]}, which is not built yet; leave it out")
