"""The sampling fields that all generating routes share -> taco_llm.SamplingParams."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aiohttp import web

from taco_llm.cache_root import LONGEST_SALT, cache_root
from taco_llm.sampling_params import SamplingParams
from taco_llm.server.auth import name_space, tenant
from taco_llm.server.errors import ApiError, not_built
from taco_llm.server.fields import Fields, check_token_ids, is_int
from taco_llm.server.state import State

if TYPE_CHECKING:
    from taco_llm.server.generation import Request

_INT32 = 2**31 - 1
_INFINITE = math.inf

# Accepted, without effect here.
_HARMLESS = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key", "request_id", "early_stopping", "length_penalty",
)  # fmt: skip

_GUIDED = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend",
    "guided_whitespace_pattern", "structured_outputs",
)  # fmt: skip


def refuse_unbuilt(fields: Fields) -> None:
    """400 for what other servers have and this one does not have yet: never silently ignored."""
    for name in _HARMLESS:
        fields.raw(name)
    for name in _GUIDED:
        if fields.raw(name) is not None:
            raise not_built(name, "Guided decoding")
    kind = fields.raw("response_format")
    if kind is not None and not (isinstance(kind, dict) and kind.get("type") == "text"):
        raise not_built("response_format", "A response_format other than text")
    if fields.flag("use_beam_search"):
        raise not_built("use_beam_search", "Beam search")
    if fields.raw("logits_processors"):
        raise not_built("logits_processors", "Logits processors over HTTP")
    if fields.raw("prompt_embeds") is not None:
        raise not_built("prompt_embeds", "A prompt of embeddings")


def read_sampling(fields: Fields, state: State, *, default_temperature: float) -> dict[str, Any]:
    """Keyword arguments of SamplingParams, but max_tokens, logprobs and prompt_logprobs.

    A field that is not given takes the value of the model's generation_config.json; where that has none,
    `default_temperature` and vLLM's neutral values."""
    limits, defaults = state.limits, state.generation_defaults
    top_k = fields.integer("top_k", defaults.get("top_k", -1), -1, _INT32)
    seed = fields.integer("seed", None, -(2**63), 2**64 - 1)
    return {
        "n": fields.integer("n", 1, 1, limits.max_n),
        "best_of": fields.integer("best_of", None, 1, limits.max_n),
        "presence_penalty": fields.number("presence_penalty", 0.0, -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, -2, 2),
        "repetition_penalty": fields.number(
            "repetition_penalty", defaults.get("repetition_penalty", 1.0), 0, 2
        ),
        "temperature": fields.number("temperature", defaults.get("temperature", default_temperature), 0, 100),
        "top_p": fields.number("top_p", defaults.get("top_p", 1.0), 0, 1),
        "top_k": -1 if top_k == 0 else top_k,
        "min_p": fields.number("min_p", defaults.get("min_p", 0.0), 0, 1),
        "seed": None if seed is None else seed & (2**64 - 1),
        "stop": fields.texts("stop", limits.max_stop, limits.max_stop_bytes, single=True) or [],
        "stop_token_ids": fields.token_ids("stop_token_ids", limits.max_stop_token_ids, state.vocab_size)
        or [],
        "ignore_eos": fields.flag("ignore_eos"),
        "min_tokens": fields.integer("min_tokens", 0, 0, state.max_model_len),
        "skip_special_tokens": fields.flag("skip_special_tokens", True),
        "spaces_between_special_tokens": fields.flag("spaces_between_special_tokens", True),
        "include_stop_str_in_output": fields.flag("include_stop_str_in_output"),
        "no_repeat_ngram_size": fields.integer("no_repeat_ngram_size", 0, 0, state.max_model_len),
        "logit_bias": _logit_bias(fields, state),
        "bad_words": fields.texts("bad_words", limits.max_bad_words, limits.max_stop_bytes),
        "allowed_token_ids": fields.token_ids("allowed_token_ids", state.vocab_size, state.vocab_size),
    }


def _logit_bias(fields: Fields, state: State) -> dict[int, float] | None:
    bias = fields.raw("logit_bias")
    if bias is None:
        return None
    if not isinstance(bias, dict):
        raise fields.wrong("logit_bias", "an object from token ids to numbers")
    if len(bias) > state.limits.max_logit_bias:
        raise ApiError(
            f"'logit_bias' has {len(bias)} entries; at most {state.limits.max_logit_bias} are allowed.",
            param="logit_bias",
        )
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < state.vocab_size):
            raise ApiError(
                f"'logit_bias' has the key {key[:24]!r}; keys are token ids, 0 to {state.vocab_size - 1}.",
                param="logit_bias",
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            raise ApiError("'logit_bias' values must be numbers between -100 and 100.", param="logit_bias")
        result[int(key)] = float(value)
    return result


def read_logprob_count(fields: Fields, name: str, state: State) -> int | None:
    """An optional count of 0 to --max-logprobs."""
    value = fields.raw(name)
    if isinstance(value, bool):
        raise fields.wrong(name, "an integer")
    if is_int(value) and value > state.max_logprobs:
        raise ApiError(
            f"'{name}' is {str(value)[:24]}; at most {state.max_logprobs} are given here (--max-logprobs).",
            param=name,
        )
    return fields.integer(name, None, 0, state.max_logprobs)


def read_tenant(fields: Fields, http: web.Request, state: State, request: Request) -> None:
    """What the request may learn from and whose KV cache it may use: by its API key, where there are several,
    and its `cache_salt`."""
    salt = fields.text("cache_salt", max_chars=LONGEST_SALT)
    if salt == "":
        raise ApiError("'cache_salt' must not be empty: leave it out to have none.", param="cache_salt")
    who = tenant(state.keys, http)
    request.name_space = name_space(who, salt or "")
    request.cache_root = cache_root(b"" if state.options.prefix_cache_shared else who, salt or "")


def read_priority(fields: Fields, state: State) -> int:
    priority = fields.integer("priority", 0, -(2**31), 2**31 - 1) or 0
    if priority and getattr(state.handle.args, "scheduling_policy", "fcfs") != "priority":
        raise ApiError(
            "'priority' has no effect on this server: leave it out (the operator's --scheduling-policy "
            "priority gives it one).",
            param="priority",
        )
    return priority


def read_model(fields: Fields, state: State) -> str:
    """The model's served name: the first one when the request names none; 404 for a wrong one."""
    name = fields.text("model", max_chars=1024)
    if not name:
        return state.model_names[0]
    if name not in state.model_names:
        served = ", ".join(f"`{n}`" for n in state.model_names)
        raise ApiError(
            f"The model `{name[:200]}` does not exist; this server has {served}.", status=404, param="model"
        )
    return name


def read_truncation(fields: Fields, state: State) -> int | None:
    """truncate_prompt_tokens: how many tokens of the prompt's end are kept; -1: the most possible."""
    keep = fields.integer("truncate_prompt_tokens", None, -1, _INT32)
    if keep == 0:
        raise ApiError(
            "'truncate_prompt_tokens' must be at least 1, or -1 for the model's length.",
            param="truncate_prompt_tokens",
        )
    return state.max_model_len - 1 if keep == -1 else keep


def room(prompt_ids: list[int], max_tokens: int | None, state: State) -> int:
    """max_tokens for this prompt: checked against the context, or all that is left of it when None."""
    length, limit = len(prompt_ids), state.max_model_len
    if not prompt_ids:
        raise ApiError("The prompt has no tokens: send some text.", param="prompt")
    if length + (max_tokens or 1) > limit:
        asked = f" and {max_tokens} were asked for" if max_tokens else ""
        raise ApiError(
            f"This model's maximum context length is {limit} tokens; the prompt has {length}{asked}. "
            "Shorten the prompt or ask for fewer tokens.",
            param="prompt" if length >= limit else "max_tokens",
        )
    return max_tokens if max_tokens is not None else limit - length


def check_prompt_ids(ids: list[Any], keep: int | None, state: State, name: str) -> list[int]:
    """A prompt given as token ids, cut to its last `keep`. Its length is checked before its many entries."""
    ids = ids if keep is None else ids[-keep:]
    if len(ids) > state.max_model_len:
        room(ids, None, state)
    check_token_ids(ids, state.vocab_size, name)
    return ids


def core_params(arguments: dict[str, Any], state: State) -> tuple[SamplingParams, Any]:
    """The validated SamplingParams and what the core takes; 400 with the validator's sentence."""
    try:
        params = SamplingParams(**arguments)
        core = params.to_core(eos_token_ids=state.handle.eos_token_ids, tokenizer=state.tokenizer)
    except (ValueError, TypeError) as e:
        raise ApiError(str(e)) from None
    return params, core
