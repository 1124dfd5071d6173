"""A model to talk to: in this process, or behind a URL. Both give text piece by piece."""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import time
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

from taco_llm.cli.parser import Parser, UsageError
from taco_llm.engine_args import EngineArgs

Messages = list[dict[str, Any]]


class Talker(Protocol):
    """name: the model's. prompt_tokens, output_tokens and seconds: of the last answer (0: not known)."""

    name: str
    prompt_tokens: int
    output_tokens: int
    seconds: float

    def chat(self, messages: Messages) -> Iterator[str]: ...

    def complete(self, prompt: str) -> Iterator[str]: ...

    def close(self) -> None: ...


def add_flags(parser: Parser) -> None:
    """The flags of chat and complete: where the model is, and how it should answer."""
    parser.add_argument(
        "model_tag",
        nargs="?",
        metavar="MODEL",
        help="Folder, .gguf file or hub id. Default: the embedded model, or what the server at --url offers.",
    )
    where = parser.add_argument_group("server")
    where.add_argument(
        "--url",
        metavar="URL",
        help="Talk to this server, such as http://localhost:8000/v1, instead of loading.",
    )
    where.add_argument("--model-name", metavar="NAME", help="Model to ask for. Default: the server's first.")
    where.add_argument("--api-key", metavar="KEY", help="Key of the server. Also OPENAI_API_KEY.")
    how = parser.add_argument_group("answers")
    how.add_argument("--max-tokens", type=int, metavar="N", help="Most tokens of an answer. Default: 512.")
    how.add_argument("--temperature", type=float, metavar="X", help="0 always takes the likeliest token.")
    how.add_argument("--top-p", type=float, metavar="X", help="Share of the probability to choose from.")
    how.add_argument("--sampling-seed", type=int, metavar="N", help="Seed of the answers.")
    how.add_argument("--stop", action="append", metavar="TEXT", help="End an answer here; may be repeated.")
    EngineArgs.add_cli_args(parser)


def open_talker(settings: argparse.Namespace) -> Talker:
    options = {
        "max_tokens": settings.max_tokens if settings.max_tokens is not None else 512,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.sampling_seed,
        "stop": settings.stop,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if settings.url:
        if settings.model_tag and settings.model_name:
            raise UsageError("with --url, name the model once: MODEL or --model-name")
        return RemoteModel(settings.url, settings.model_tag or settings.model_name, settings.api_key, options)
    from taco_llm.cli.serve import engine_args

    return LocalModel(engine_args(settings), options)


class LocalModel:
    """A model loaded into this process."""

    def __init__(self, args: EngineArgs, options: dict[str, Any]) -> None:
        from taco_llm.engine import build
        from taco_llm.sampling_params import SamplingParams

        self.params = SamplingParams(**options)  # what is wrong with them is known before the model is loaded
        self.handle = build(args)
        self.name = self.handle.model_name
        self.prompt_tokens = self.output_tokens = 0
        self.seconds = 0.0

    def chat(self, messages: Messages) -> Iterator[str]:
        tokenizer = self.handle.tokenizer
        if tokenizer is None:
            raise UsageError("chat needs a tokenizer; leave --skip-tokenizer-init out")
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return self._stream(text, special_tokens=False)

    def complete(self, prompt: str) -> Iterator[str]:
        return self._stream(prompt, special_tokens=True)

    def _stream(self, prompt: str, *, special_tokens: bool) -> Iterator[str]:
        from taco_llm.prompts import prepare

        core = self.handle.core
        request = prepare(self.handle, prompt, self.params, special_tokens=special_tokens)
        self.prompt_tokens, self.output_tokens = len(request.prompt_token_ids), 0
        started = time.perf_counter()
        number = core.submit(request.prompt_token_ids, request.core_params)
        finished = False
        try:
            while not finished:
                for output in core.poll(0.2):
                    if output.request != number:
                        continue
                    self.output_tokens = output.num_output_tokens
                    self.seconds = time.perf_counter() - started
                    finished = output.request_finished
                    if output.finish_reason == "error":
                        raise RuntimeError(output.error)
                    if output.text:
                        yield output.text
                if not finished and (stats := core.stats()).dead:
                    raise RuntimeError(f"the engine has stopped: {stats.death_reason}")
        finally:
            if not finished:
                core.abort(number)

    def close(self) -> None:
        self.handle.shutdown()


class RemoteModel:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, url: str, model: str | None, key: str | None, options: dict[str, Any]) -> None:
        import os

        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url!r} is not of the form http://host:port/v1")
        self.parts = parts
        self.path = parts.path.rstrip("/") or "/v1"
        self.options = options
        key = key or os.environ.get("OPENAI_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.prompt_tokens = self.output_tokens = 0
        self.seconds = 0.0
        self.name = model or self._first_model()

    def _connect(self) -> http.client.HTTPConnection:
        assert self.parts.hostname is not None
        if self.parts.scheme == "https":
            return http.client.HTTPSConnection(
                self.parts.hostname, self.parts.port, timeout=600, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=600)

    def _request(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = self._connect()
        headers = dict(self.headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(
                method, self.path + path, json.dumps(body) if body is not None else None, headers
            )
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(
                f"no answer from {self.parts.netloc}: {error}; is the server running?"
            ) from error
        if response.status >= 400:
            raise RuntimeError(f"the server says {response.status}: {_message(response.read())}")
        return response

    def _first_model(self) -> str:
        models = json.loads(self._request("GET", "/models").read())
        try:
            return str(models["data"][0]["id"])
        except (LookupError, TypeError):
            raise RuntimeError("the server offers no model; name one by --model-name") from None

    def chat(self, messages: Messages) -> Iterator[str]:
        for choice in self._events("/chat/completions", {"messages": messages}):
            yield (choice.get("delta") or {}).get("content") or ""

    def complete(self, prompt: str) -> Iterator[str]:
        for choice in self._events("/completions", {"prompt": prompt}):
            yield choice.get("text") or ""

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        started = time.perf_counter()
        self.prompt_tokens = self.output_tokens = 0
        stream = {"model": self.name, "stream": True, "stream_options": {"include_usage": True}}
        response = self._request("POST", path, {**stream, **self.options, **body})
        try:
            for event in read_events(response):
                if error := event.get("error"):
                    raise RuntimeError(f"the server says: {_text_of(error)}")
                if usage := event.get("usage"):
                    self.prompt_tokens = usage.get("prompt_tokens", 0)
                    self.output_tokens = usage.get("completion_tokens", 0)
                yield from event.get("choices") or []
                self.seconds = time.perf_counter() - started
        finally:
            response.close()

    def close(self) -> None:
        pass


def read_events(lines: Any) -> Iterator[dict[str, Any]]:
    """The JSON of a server-sent event stream, until [DONE]."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)


def _message(body: bytes) -> str:
    try:
        data = json.loads(body)
    except ValueError:
        return body[:200].decode("utf-8", "replace")
    return _text_of(data.get("error", data) if isinstance(data, dict) else data)


def _text_of(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def report(talker: Talker) -> str:
    """One line on the speed of the last answer."""
    if not talker.output_tokens or not talker.seconds:
        return ""
    rate = talker.output_tokens / talker.seconds
    return f"[{talker.output_tokens} tokens, {talker.seconds:.2f} s, {rate:.1f} tokens/s]"
