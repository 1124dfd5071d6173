"""Tokenizer of the null model: bytes, and readable pieces for what it answers.

The null model (`--model null`) tests servers and schedulers without weights: its answer is a function of the
prompt and the position. Ids 0 to 255 are bytes, 256 is the end of text, the rest are short words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taco_llm import _core

VOCAB_SIZE = 4096
EOS = 256


class NullTokenizer:
    """Byte-level; the same methods as taco_llm.tokenizer's tokenizers."""

    eos_token_id = EOS
    bos_token_id = None
    pad_token_id = EOS
    vocab_size = VOCAB_SIZE
    special_ids = [EOS]
    all_special_tokens = ["<|end|>"]
    chat_template = None

    @cached_property
    def pieces(self) -> list[bytes]:
        words = [f" w{number}".encode() for number in range(VOCAB_SIZE - 257)]
        return [bytes([byte]) for byte in range(256)] + [b"<|end|>"] + words

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        kept = (id for id in ids if 0 <= id < VOCAB_SIZE and not (skip_special_tokens and id == EOS))
        return b"".join(self.pieces[id] for id in kept).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.pieces[id].decode("utf-8", "replace") for id in ids]

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]:
        known = {piece: id for id, piece in enumerate(self.pieces)}
        return [known.get(token.encode()) for token in tokens]

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **_: Any,
    ) -> str:
        lines = [f"{message['role']}: {message.get('content') or ''}\n" for message in messages]
        if continue_final_message and lines:
            lines[-1] = lines[-1][:-1]
        return "".join(lines) + ("assistant: " if add_generation_prompt else "")

    def core_vocabulary(self) -> _core.Vocabulary:
        from taco_llm import _core

        return _core.Vocabulary(self.pieces, [EOS])
