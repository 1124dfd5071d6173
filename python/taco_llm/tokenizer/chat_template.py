"""Chat templates: Jinja in a sandbox, with the helpers that templates of Hugging Face models expect."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 16 << 20
_CONTINUE = "[taco continue final message] "  # the space shows whether the template trims the content


class ChatTemplateError(ValueError):
    """The template is not valid, or refused the messages."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant wrote, for training: here it is just its content."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Also refuses products that would fill the memory."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            small = all(isinstance(x, (int, float)) and abs(x) <= 64 for x in (left, right))
            if not small:
                raise jinja2.exceptions.SecurityError("powers of large numbers are refused")
        for text, count in ((left, right), (right, left)):
            if isinstance(text, (str, bytes, list, tuple)) and isinstance(count, int):
                if len(text) * count > MAX_RENDERED_CHARS:
                    raise jinja2.exceptions.SecurityError("a repeated string is too long")
        return super().call_binop(context, operator, left, right)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's, does not escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> Any:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@functools.lru_cache(maxsize=32)
def compile_template(template: str) -> jinja2.Template:
    """Raises ChatTemplateError with the line of the mistake."""
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ChatTemplateError(f"the chat template is longer than {MAX_TEMPLATE_CHARS} characters")
    try:
        return _environment().from_string(template)
    except jinja2.exceptions.TemplateSyntaxError as e:
        raise ChatTemplateError(f"the chat template is not valid, line {e.lineno}: {e.message}") from None
    except RecursionError:
        raise ChatTemplateError("the chat template is nested too deeply") from None


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt of a conversation.

    Raises:
        ChatTemplateError: a template that is not valid, that refuses the messages, or whose result is longer
            than MAX_RENDERED_CHARS.
    """
    compiled = compile_template(template)
    if continue_final_message:
        if add_generation_prompt:
            raise ChatTemplateError(
                "continue_final_message and add_generation_prompt exclude each other: set one to false"
            )
        messages = _mark_end(messages)
    parts: list[str] = []
    length = 0
    try:
        values = {
            **(variables or {}),
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        for part in compiled.generate(values):
            parts.append(part)
            length += len(part)
            if length > MAX_RENDERED_CHARS:
                raise ChatTemplateError(f"the rendered chat is longer than {MAX_RENDERED_CHARS} characters")
    except ChatTemplateError:
        raise
    except jinja2.exceptions.TemplateError as e:
        raise ChatTemplateError(
            f"the chat template does not accept these messages: {e.message or e}"
        ) from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        raise ChatTemplateError(
            f"the chat template failed on these messages: {type(e).__name__}: {e}"
        ) from None
    text = "".join(parts)
    return _cut_at_mark(text) if continue_final_message else text


def _mark_end(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if not messages:
        raise ChatTemplateError("continue_final_message needs at least one message")
    last = dict(messages[-1])
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _CONTINUE
    else:
        blocks = [dict(block) if isinstance(block, Mapping) else block for block in content or ()]
        texts = [block for block in blocks if isinstance(block, dict) and isinstance(block.get("text"), str)]
        if not texts:
            raise ChatTemplateError("continue_final_message needs text in the final message")
        texts[-1]["text"] += _CONTINUE
        last["content"] = blocks
    return [*messages[:-1], last]


def _cut_at_mark(text: str) -> str:
    at = text.rfind(_CONTINUE.strip())
    if at < 0:
        raise ChatTemplateError(
            "continue_final_message is set, but the chat template leaves out the final message's content"
        )
    trimmed = not text.startswith(_CONTINUE, at)
    return text[:at].rstrip() if trimmed else text[:at]
