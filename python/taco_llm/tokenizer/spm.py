"""Encoding with SentencePiece, from a model file or from a GGUF file's tokens and scores."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import pieces

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before the model sees it; lstrip, rstrip: with the space there."""

    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


class SentencePieceBackend:
    """model: a serialised ModelProto. added: text -> token, for what the model does not cut out itself.

    prefix_space: whether a text begins with a space of its own (None: as the model says); after_special:
    whether the text after an added token does too.
    """

    def __init__(
        self,
        model: bytes,
        added: Mapping[str, AddedToken],
        *,
        prefix_space: bool | None = None,
        after_special: bool = True,
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
    ) -> None:
        import sentencepiece

        self._prefix_space = _has_dummy_prefix(model) if prefix_space is None else prefix_space
        self._after_special = after_special
        # Later fields win: the space is put in by encode, which knows about added tokens.
        no_dummy_prefix = b"\x1a\x02\x18\x00"
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model + no_dummy_prefix)
        except (RuntimeError, TypeError) as e:
            raise ValueError(f"not a SentencePiece model: {e}") from None
        self._added = dict(added)
        self._added_of_id = {token.id: text for text, token in self._added.items()}
        self._prefix, self._suffix = list(prefix), list(suffix)
        model_size = self._processor.get_piece_size()
        self._model_size = model_size
        self.size = max([model_size - 1, *self._added_of_id]) + 1
        controls = {
            i for i in range(model_size) if self._processor.is_control(i) or self._processor.is_unknown(i)
        }
        self.special_ids = frozenset(controls | {token.id for token in self._added.values() if token.special})
        texts = sorted(filter(None, self._added), key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        parts = self._cut.split(text) if self._cut else [text]
        ids = list(self._prefix) if add_special_tokens else []
        for i in range(0, len(parts), 2):  # text, token, text, token, ..., text
            part = parts[i]
            if i > 0 and self._added[parts[i - 1]].rstrip:
                part = part.lstrip()
            if i + 1 < len(parts) and self._added[parts[i + 1]].lstrip:
                part = part.rstrip()
            if part:
                space = self._prefix_space and (i == 0 or self._after_special)
                ids += self._processor.encode(" " + part if space else part)
            if i + 1 < len(parts):
                ids.append(self._added[parts[i + 1]].id)
        return ids + self._suffix if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        kept = [id for id in ids if not (skip_special_tokens and id in self.special_ids)]
        data = b"".join(self._pieces[id] for id in kept if 0 <= id < self.size)
        text = data.decode("utf-8", "replace")
        return text[1:] if self._prefix_space and text.startswith(" ") else text

    def id_to_token(self, id: int) -> str | None:
        if id in self._added_of_id:
            return self._added_of_id[id]
        return self._processor.id_to_piece(id) if 0 <= id < self._model_size else None

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token].id
        id = self._processor.piece_to_id(token)
        return id if self._processor.id_to_piece(id) == token else None

    def pieces(self) -> tuple[list[bytes], bool]:
        return self._pieces, self._prefix_space

    @property
    def _pieces(self) -> list[bytes]:
        found = self.__dict__.get("_found_pieces")
        if found is None:
            found = pieces.sentencepiece(self._processor.id_to_piece(list(range(self._model_size))))
            found += [b""] * (self.size - self._model_size)
            for id, text in self._added_of_id.items():
                found[id] = text.encode("utf-8", "replace")
            self.__dict__["_found_pieces"] = found
        return found


def build_bpe_model(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> bytes:
    """A SentencePiece model (ModelProto) of BPE type with byte fallback: the higher score is merged first."""
    out = bytearray()
    seen: set[str] = set()
    unknown = next((i for i, kind in enumerate(types) if kind == UNKNOWN), 0)
    for i, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        if i != unknown and kind == UNKNOWN:
            kind = UNUSED
        elif i == unknown:
            kind = UNKNOWN
        if not token or token in seen:  # SentencePiece wants them unique
            token, kind = f"<unused piece {i}>", UNUSED
        if kind not in range(NORMAL, BYTE + 1):
            kind = NORMAL
        seen.add(token)
        text = token.encode("utf-8", "replace")
        body = (
            b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        )
        out += b"\x0a" + _varint(len(body)) + body
    trainer = (
        b"\x18\x02" + _varint(35 << 3) + b"\x01" + _varint(40 << 3) + _varint(unknown)
    )  # BPE, byte fallback
    unk = tokens[unknown].encode("utf-8", "replace")
    trainer += _varint(45 << 3 | 2) + _varint(len(unk)) + unk
    normalizer = b"\x0a\x08identity" + b"\x18\x00\x20\x00\x28\x01"  # no dummy prefix, spaces kept and escaped
    return (
        bytes(out)
        + b"\x12"
        + _varint(len(trainer))
        + trainer
        + b"\x1a"
        + _varint(len(normalizer))
        + normalizer
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields; what cannot be read ends the list."""
    found: list[tuple[int, int | bytes]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    try:
        while at < len(data):
            key = varint()
            if key & 7 == 0:
                found.append((key >> 3, varint()))
            elif key & 7 == 2:
                length = varint()
                found.append((key >> 3, data[at : at + length]))
                at += length
            elif key & 7 in (1, 5):
                at += 8 if key & 7 == 1 else 4
            else:
                break
    except IndexError:
        pass
    return found


def _has_dummy_prefix(model: bytes) -> bool:
    value = True  # the format's default
    for number, body in _fields(model):
        if number == 3 and isinstance(body, bytes):
            for inner, flag in _fields(body):
                if inner == 3:
                    value = bool(flag)
    return value
