"""POST /v1/chat/completions, and the reading of messages that /tokenize shares."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from taco_llm.server import sampling
from taco_llm.server.body import read_json
from taco_llm.server.completions import StreamOptions, read_stream_options
from taco_llm.server.errors import ApiError, not_built
from taco_llm.server.fields import Fields
from taco_llm.server.generation import Choice, Collector, Request
from taco_llm.server.logprobs import TokenTexts, chat_logprobs, prompt_logprobs
from taco_llm.server.middleware import new_id, note
from taco_llm.server.sse import StreamJob, event, stream_when_done
from taco_llm.server.state import STATE, State

logger = logging.getLogger("taco_llm.server")

DEFAULT_TEMPERATURE = 0.7  # vLLM 0.6's, for models whose generation_config.json states none
_MESSAGE_KEYS = ("role", "content", "name", "tool_call_id")


@dataclass
class Chat:
    """A validated request of this route."""

    id: str
    created: int
    model: str
    role: str
    request: Request
    echo: str  # text put before each answer; empty: none
    logprobs: bool
    top_logprobs: int
    prompt_logprobs: int | None
    return_token_ids: bool
    stream: bool
    stream_options: StreamOptions

    def head(self, kind: str = "chat.completion") -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


async def chat_completions(http: web.Request) -> web.StreamResponse:
    state = http.app[STATE]
    state.admit()
    fields = Fields(await read_json(http, state.limits))
    chat = await _read(fields, state)
    sampling.read_tenant(fields, http, state, chat.request)
    fields.warn_unknown("/v1/chat/completions")
    request = chat.request
    note(http, len(request.prompts[0]))
    if chat.stream and request.best_of <= request.n:
        return await ChatStream(state, chat).run(http)
    job = Collector(
        state, request, details=chat.logprobs or chat.prompt_logprobs is not None or chat.return_token_ids
    )
    if chat.stream:
        return await stream_when_done(http, job, lambda: _as_frames(state, chat, job))
    results = await job.run()
    return web.json_response(_whole(state, chat, job, results[0]))


async def _read(fields: Fields, state: State) -> Chat:
    model = sampling.read_model(fields, state)
    sampling.refuse_unbuilt(fields)
    for name in ("tools", "functions"):
        if fields.raw(name):
            raise not_built(name, "Tool calling")
    for name in ("tool_choice", "function_call"):
        if fields.raw(name) not in (None, "none"):
            raise not_built(name, "Tool calling")
    modalities = fields.raw("modalities")
    if modalities is not None and modalities != ["text"]:
        raise not_built("modalities", "Output other than text")
    stream = fields.flag("stream")
    stream_options = read_stream_options(fields, stream)
    arguments = sampling.read_sampling(fields, state, default_temperature=DEFAULT_TEMPERATURE)
    max_tokens = fields.integer("max_tokens", None, 1, 2**31 - 1)
    max_tokens = fields.integer("max_completion_tokens", max_tokens, 1, 2**31 - 1)
    logprobs = fields.flag("logprobs")
    top_logprobs = sampling.read_logprob_count(fields, "top_logprobs", state)
    if top_logprobs and not logprobs:
        raise ApiError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    wanted_prompt_logprobs = sampling.read_logprob_count(fields, "prompt_logprobs", state)
    if stream and wanted_prompt_logprobs is not None:
        raise ApiError("'prompt_logprobs' cannot be streamed: leave out 'stream'.", param="prompt_logprobs")
    arguments["logprobs"] = (top_logprobs or 0) if logprobs else None
    arguments["prompt_logprobs"] = wanted_prompt_logprobs
    priority = sampling.read_priority(fields, state)
    return_token_ids = fields.flag("return_token_ids")
    echo = fields.flag("echo")
    keep = sampling.read_truncation(fields, state)
    messages, prompt = await render_messages(fields, state)
    ids = await state.encode(prompt, add_special_tokens=fields.flag("add_special_tokens"))
    if keep is not None:
        ids = ids[-keep:]
    arguments["max_tokens"] = sampling.room(ids, max_tokens, state)
    people, core = sampling.core_params(arguments, state)
    last = messages[-1]
    role = state.options.response_role
    if last["role"] == "assistant" and fields.body.get("continue_final_message"):
        role = "assistant"
    echo_text = (
        last["content"] if echo and last["role"] == role and isinstance(last.get("content"), str) else ""
    )
    request = Request([ids], [core], people.n, people.best_of or people.n, priority)
    return Chat(
        new_id("chatcmpl-"), int(time.time()), model, role, request, echo_text, logprobs, top_logprobs or 0,
        wanted_prompt_logprobs, return_token_ids, stream, stream_options,
    )  # fmt: skip


async def render_messages(fields: Fields, state: State) -> tuple[list[dict[str, Any]], str]:
    """The checked messages, and the prompt that the chat template makes of them."""
    messages = _read_messages(fields, state)
    continue_final = fields.flag("continue_final_message")
    add_prompt = fields.flag("add_generation_prompt", not continue_final)
    if continue_final and add_prompt:
        raise ApiError(
            "'continue_final_message' and 'add_generation_prompt' exclude each other: set one to false.",
            param="continue_final_message",
        )
    if continue_final and messages[-1]["role"] != "assistant":
        raise ApiError("'continue_final_message' needs an assistant message at the end.", param="messages")
    template = fields.text("chat_template", max_chars=1 << 16)
    if template is not None and not state.options.allow_request_chat_template:
        raise ApiError(
            "'chat_template' in a request is off on this server (the operator's "
            "--allow-request-chat-template turns it on).",
            param="chat_template",
        )
    template = template if template is not None else state.chat_template
    state.need_tokenizer()
    arguments = _template_kwargs(fields, state)
    documents = _read_documents(fields)

    def render() -> str:
        return state.tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=add_prompt,
            continue_final_message=continue_final,
            documents=documents,
            **arguments,
        )

    size = sum(len(m["content"]) for m in messages if isinstance(m.get("content"), str))
    state.check_text_size("".join(m["content"] for m in messages if isinstance(m.get("content"), str)))
    try:
        inline = size <= state.options.tokenizer_inline_chars and not fields.body.get("chat_template")
        prompt = render() if inline else await state.in_thread(render)
    except (
        Exception
    ) as e:  # a template may raise anything, most often raise_exception("roles must alternate")
        logger.info("a chat template refused a request: %s", type(e).__name__)
        raise ApiError(
            f"The chat template cannot render these messages: {str(e)[:500]}", param="messages"
        ) from None
    if len(prompt) > state.limits.max_template_bytes:
        raise ApiError("The rendered chat prompt is too long.", param="messages")
    return messages, prompt


def _read_messages(fields: Fields, state: State) -> list[dict[str, Any]]:
    raw = fields.raw("messages")
    if raw is None:
        raise ApiError("'messages' is missing.", param="messages")
    if not isinstance(raw, list):
        raise fields.wrong("messages", "an array of messages")
    if not raw:
        raise ApiError("'messages' is empty.", param="messages")
    if len(raw) > state.limits.max_messages:
        raise ApiError(
            f"'messages' has {len(raw)} entries; at most {state.limits.max_messages} are allowed.",
            param="messages",
        )
    return [_read_message(item, i) for i, item in enumerate(raw)]


def _read_message(raw: Any, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(raw, dict):
        raise ApiError(f"'{where}' must be an object with 'role' and 'content'.", param="messages")
    role = raw.get("role")
    if not isinstance(role, str) or not 0 < len(role) <= 64:
        raise ApiError(
            f"'{where}.role' must be a string such as user, assistant or system.", param="messages"
        )
    if raw.get("tool_calls") or raw.get("function_call"):
        raise not_built("tool_calls", "Tool calling")
    message: dict[str, Any] = {
        "role": role,
        "content": _read_content(raw.get("content"), f"{where}.content", role),
    }
    for key in ("name", "tool_call_id"):
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, str) or len(value) > 256:
            raise ApiError(f"'{where}.{key}' must be a string of at most 256 characters.", param="messages")
        message[key] = value
    return message


def _read_content(raw: Any, where: str, role: str) -> str:
    if isinstance(raw, str):
        return raw
    if raw is None:
        if role == "assistant":
            return ""
        raise ApiError(f"'{where}' is missing.", param="messages")
    if not isinstance(raw, list):
        raise ApiError(f"'{where}' must be a string or an array of parts.", param="messages")
    texts = []
    for part in raw:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in ("text", "input_text", "refusal"):
            raise ApiError(
                f"'{where}' has a part of type {kind[:40]!r}: only text is built yet.", param="messages"
            )
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind is None or not isinstance(text, str):
            raise ApiError(
                f'\'{where}\' must hold parts like {{"type": "text", "text": ...}}.', param="messages"
            )
        texts.append(text)
    return "\n".join(texts)


def _read_documents(fields: Fields) -> list[dict[str, str]] | None:
    raw = fields.raw("documents")
    if raw is None:
        return None
    if not isinstance(raw, list) or not all(
        isinstance(d, dict) and all(isinstance(v, str) for v in d.values()) for d in raw
    ):
        raise fields.wrong("documents", "an array of objects of strings")
    return raw


def _template_kwargs(fields: Fields, state: State) -> dict[str, Any]:
    raw = fields.raw("chat_template_kwargs")
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise fields.wrong("chat_template_kwargs", "an object")
    allowed = state.options.allowed_chat_template_kwargs
    for key, value in raw.items():
        if key not in allowed:
            raise ApiError(
                f"'chat_template_kwargs' has the key {key[:64]!r}; this server allows "
                f"{', '.join(allowed) or 'none'}.",
                param="chat_template_kwargs",
            )
        if not isinstance(value, (str, bool, int, float)) or (isinstance(value, str) and len(value) > 1024):
            raise ApiError(
                "'chat_template_kwargs' values must be booleans, numbers or short strings.",
                param="chat_template_kwargs",
            )
    return raw


def _whole(state: State, chat: Chat, job: Collector, choices: list[Choice]) -> dict[str, Any]:
    body: dict[str, Any] = {
        **chat.head(),
        "choices": [_choice(state, chat, i, choice) for i, choice in enumerate(choices)],
        "usage": job.usage().json(),
    }
    if chat.prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(TokenTexts(state), job.prompt_logprobs[0])
    if chat.return_token_ids:
        body["prompt_token_ids"] = chat.request.prompts[0]
    return body


def _choice(state: State, chat: Chat, index: int, choice: Choice) -> dict[str, Any]:
    result: dict[str, Any] = {
        "index": index,
        "message": {"role": chat.role, "content": chat.echo + choice.text},
        "logprobs": chat_logprobs(TokenTexts(state), choice.logprobs, chat.top_logprobs)
        if chat.logprobs
        else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if chat.return_token_ids:
        result["token_ids"] = choice.token_ids
    return result


def _as_frames(state: State, chat: Chat, job: Collector) -> bytes:
    """A finished request as a stream: a role chunk and one with everything per choice."""
    head, extra = (
        chat.head("chat.completion.chunk"),
        {"usage": None} if chat.stream_options.include_usage else {},
    )
    frames = []
    for i, choice in enumerate(job.results()[0]):
        whole = _choice(state, chat, i, choice)
        role = {
            "index": i,
            "delta": {"role": chat.role, "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        frames.append(event({**head, "choices": [role], **extra}))
        whole["delta"] = {"content": whole.pop("message")["content"]}
        frames.append(event({**head, "choices": [whole], **extra}))
    if chat.stream_options.include_usage:
        frames.append(event({**head, "choices": [], "usage": job.usage().json()}))
    return b"".join(frames)


class ChatStream(StreamJob):
    def __init__(self, state: State, chat: Chat) -> None:
        options = chat.stream_options
        plain = not chat.logprobs and not chat.return_token_ids and not options.continuous_usage
        super().__init__(state, chat.request, plain=plain)
        self._chat = chat
        self._head = json.dumps(chat.head("chat.completion.chunk"), separators=(",", ":"))[:-1].encode()
        self._usage_null = b',"usage":null' if options.include_usage else b""
        self.set_frames(
            [
                b'data: %b,"choices":[{"index":%d,"delta":{"content":"' % (self._head, c)
                for c in range(chat.request.choices)
            ],
            b'"},"logprobs":null,"finish_reason":null}]%b}\n\n' % self._usage_null,
        )

    def first_frames(self, choice: int) -> bytes:
        frames = self._make(choice, {"delta": {"role": self._chat.role, "content": ""}})
        if self._chat.echo:
            frames += self._make(choice, {"delta": {"content": self._chat.echo}})
        return frames

    def frame(self, choice: int, prompt: int, output: Any) -> bytes:
        chat = self._chat
        self.tokens_seen[choice] = output.num_output_tokens
        body: dict[str, Any] = {"delta": {"content": output.text} if output.text else {}}
        if chat.logprobs and output.logprobs:
            body["logprobs"] = chat_logprobs(TokenTexts(self.state), output.logprobs, chat.top_logprobs)
        if chat.return_token_ids:
            body["token_ids"] = output.token_ids
        if output.finish_reason is not None:
            body["finish_reason"] = output.finish_reason
            body["stop_reason"] = output.stop_reason
        return self._make(choice, body)

    def _make(self, choice: int, body: dict[str, Any]) -> bytes:
        data = {"index": choice, "logprobs": None, "finish_reason": None, **body}
        usage = self._usage_null
        if self._chat.stream_options.continuous_usage:
            prompt, seen = len(self._chat.request.prompts[0]), self.tokens_seen[choice]
            counts = {"prompt_tokens": prompt, "total_tokens": prompt + seen, "completion_tokens": seen}
            usage = b',"usage":' + json.dumps(counts, separators=(",", ":")).encode()
        choices = json.dumps(data, separators=(",", ":")).encode()
        return b'data: %b,"choices":[%b]%b}\n\n' % (self._head, choices, usage)

    def usage_frame(self) -> bytes:
        if not self._chat.stream_options.include_usage:
            return b""
        usage = json.dumps(self.usage().json(), separators=(",", ":")).encode()
        return b'data: %b,"choices":[],"usage":%b}\n\n' % (self._head, usage)
