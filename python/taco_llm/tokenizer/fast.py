"""Encoding with Hugging Face ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import pieces

if TYPE_CHECKING:
    import tokenizers


class FastBackend:
    """prefix, suffix: ids put around a text, besides what the tokenizer's own post-processor adds."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, prefix: Sequence[int] = (), suffix: Sequence[int] = ()
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._prefix, self._suffix = list(prefix), list(suffix)
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self._added = {id: token.content for id, token in added.items()}
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

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
        tokens = [""] * self.size
        for token, id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            tokens[id] = token
        decoder = self._tokenizer.decoder
        state: Mapping | None = json.loads(decoder.__getstate__()) if decoder is not None else None
        found, strip = pieces.of_decoder(state, tokens)
        for id, content in self._added.items():
            found[id] = content.encode("utf-8", "replace")
        return found, strip
