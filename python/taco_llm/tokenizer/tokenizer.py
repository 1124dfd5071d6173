"""The tokenizer that the rest of the package sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

if TYPE_CHECKING:
    from taco_llm import _core


class Backend(Protocol):
    """What turns text into ids."""

    size: int
    special_ids: frozenset[int]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...
    def id_to_token(self, id: int) -> str | None: ...
    def token_to_id(self, token: str) -> int | None: ...
    def pieces(self) -> tuple[list[bytes], bool]: ...


class Tokenizer:
    """Text to token ids and back, and conversations to prompts. Immutable; safe to use from several threads.

    Args:
        backend: does the encoding.
        special_tokens: role ("bos_token", "eos_token", "unk_token", "pad_token", ...) -> text.
        chat_templates: name -> Jinja source; "default" is used unless a request says otherwise, "tool_use"
            when there are tools.
        special_ids: ids left out of decoded text, besides the backend's own.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
        special_ids: Iterable[int] = (),
    ) -> None:
        self._backend = backend
        self._special_tokens = dict(special_tokens or {})
        self._templates = dict(chat_templates or {})
        self._special_ids = backend.special_ids | frozenset(special_ids)
        self._core_vocabulary: _core.Vocabulary | None = None

    @property
    def vocab_size(self) -> int:
        """Number of ids: the highest id and one."""
        return self._backend.size

    def __len__(self) -> int:
        return self._backend.size

    @property
    def bos_token_id(self) -> int | None:
        """Begin of sequence; None when the model has none."""
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """End of sequence; None when the model has none."""
        return self._id_of("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Padding; None when the model has none."""
        return self._id_of("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        """What stands for unknown text; None when the model has none."""
        return self._id_of("unk_token")

    @property
    def bos_token(self) -> str | None:
        return self._special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self._special_tokens.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self._special_tokens.get("pad_token")

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that skip_special_tokens leaves out."""
        return self._special_ids

    @property
    def all_special_ids(self) -> list[int]:
        return sorted(self._special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """Their texts, in the order of ids."""
        return [token for token in map(self._backend.id_to_token, self.all_special_ids) if token is not None]

    @property
    def chat_template(self) -> str | None:
        """Source of the default chat template; None when the model has none."""
        return self._templates.get("default")

    @property
    def chat_templates(self) -> dict[str, str]:
        """All chat templates by name."""
        return dict(self._templates)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written in it are recognised.

        Args:
            add_special_tokens: put in what the model expects around a text (begin of sequence).

        Raises:
            ValueError: text with unpaired surrogates, which no UTF-8 has.
        """
        if not isinstance(text, str):
            raise ValueError(f"expected text, got {type(text).__name__}")
        try:
            return self._backend.encode(text, add_special_tokens)
        except (UnicodeEncodeError, TypeError):
            text.encode("utf-8", "surrogatepass")
            raise ValueError("the text is not valid Unicode: it has unpaired surrogates") from None

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. What is not valid UTF-8 becomes U+FFFD; ids out of range have no text."""
        ids = [ids] if isinstance(ids, int) else [int(id) for id in ids]
        ids = [id for id in ids if 0 <= id < self._backend.size]
        if skip_special_tokens:
            ids = [id for id in ids if id not in self._special_ids]
        return self._backend.decode(ids, skip_special_tokens)

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]: ...

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | None | list[str | None]:
        """The vocabulary's own spelling of each id; None for an id out of range."""
        if isinstance(ids, int):
            return self._token(ids)
        return [self._token(id) for id in ids]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...  # type: ignore[overload-overlap]
    @overload
    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]: ...

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | None | list[int | None]:
        """The inverse of convert_ids_to_tokens; None for what is no token."""
        if isinstance(tokens, str):
            return self._backend.token_to_id(tokens)
        return [self._backend.token_to_id(token) for token in tokens]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt of a conversation, as text. Encode it with add_special_tokens=False: the template writes
        the special tokens itself.

        Args:
            messages: dictionaries with "role" and "content".
            chat_template: source of a template, or the name of one of the model's; by default its own.
            add_generation_prompt: end with what begins the assistant's answer.
            continue_final_message: end inside the last message, so that the model goes on with it.
            tools, documents, kwargs: handed to the template.

        Raises:
            ValueError: there is no template, or it does not accept the messages.
        """
        from . import chat_template as templates

        return templates.render(
            self._template(chat_template, bool(tools)),
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            documents=documents,
            variables={**self._special_tokens, **kwargs},
        )

    def pieces(self) -> tuple[list[bytes], bool]:
        """The bytes that each id stands for, and whether the first space of a text is dropped."""
        return self._backend.pieces()

    def core_vocabulary(self) -> _core.Vocabulary:
        """For the engine's detokenizer; made once."""
        if self._core_vocabulary is None:
            from taco_llm import _core

            pieces, strip = self._backend.pieces()
            self._core_vocabulary = _core.Vocabulary(pieces, self.all_special_ids, strip)
        return self._core_vocabulary

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for in a text, with its space; empty for an id out of range. A log
        probability's token is shown so: decode would drop the space of some models."""
        return self.core_vocabulary().piece(id)

    def token_text(self, id: int) -> str:
        """token_bytes as text; what is not valid UTF-8 by itself becomes U+FFFD."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def _id_of(self, role: str) -> int | None:
        token = self._special_tokens.get(role)
        return None if token is None else self._backend.token_to_id(token)

    def _token(self, id: int) -> str | None:
        return self._backend.id_to_token(id) if 0 <= id < self._backend.size else None

    def _template(self, asked: str | None, with_tools: bool) -> str:
        if asked is not None:
            return self._templates.get(asked, asked)
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" not in self._templates:
            named = f" (it has named ones: {', '.join(sorted(self._templates))})" if self._templates else ""
            raise ValueError(
                f"the model has no default chat template{named}: give one with --chat-template or "
                "chat_template, or use completions, which need none"
            )
        return self._templates["default"]
