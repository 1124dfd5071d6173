"""Encoding with Hugging Face ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import pieces

if TYPE_CHECKING:
    import tokenizers


class FastBackend:
    """prefix, suffix: ids put around a text, besides what the tokenizer's own post-processor adds.
    tokens: the spelling of each id, where the caller has it at hand."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        tokens: list[str] | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._prefix, self._suffix = list(prefix), list(suffix)
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self._added = {id: token.content for id, token in added.items()}
        tokens = self._spellings() if tokens is None else tokens
        self.size = len(tokens)
        self._tokens: list[str] | None = tokens  # until the pieces are asked for

    def _spellings(self) -> list[str]:
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        tokens = [""] * (max(vocab.values(), default=-1) + 1)
        for token, id in vocab.items():
            tokens[id] = token
        return tokens

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, id: int) -> str | None:
        return self._tokenizer.id_to_token(id)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def pieces(self) -> tuple[list[bytes], bool]:
        from tokenizers.decoders import ByteLevel

        tokens = self._spellings() if self._tokens is None else self._tokens
        self._tokens = None
        decoder = self._tokenizer.decoder
        state: Mapping | None = json.loads(decoder.__getstate__()) if decoder is not None else None
        found, strip = pieces.of_decoder(state, tokens)
        if isinstance(decoder, ByteLevel):  # an added token is not spelt in the byte alphabet
            for id, content in self._added.items():
                found[id] = content.encode("utf-8", "replace")
        return found, strip
