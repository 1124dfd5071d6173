"""The bytes that each token stands for."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

_NOT_A_BYTE = "\uffff"


@functools.lru_cache(maxsize=1)
def byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable characters stand for their own byte, those from U+0100 on for the rest."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    table.update((chr(0x100 + i), byte) for i, byte in enumerate(rest))
    return table


def byte_level(tokens: Sequence[str]) -> list[bytes]:
    """A token with a character outside of the alphabet stands for itself."""
    table = byte_of_char()
    joined = "".join(tokens)
    translation = {ord(char): chr(byte) for char, byte in table.items()}
    translation.update((code, _NOT_A_BYTE) for code in range(256) if chr(code) not in table)
    try:
        blob = joined.translate(translation).encode("latin-1")
    except UnicodeEncodeError:
        return [_byte_level_one(token, table) for token in tokens]
    ends = list(accumulate(map(len, tokens)))
    return [blob[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _byte_level_one(token: str, table: Mapping[str, int]) -> bytes:
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def sentencepiece(tokens: Iterable[str], byte_fallback: bool = True) -> list[bytes]:
    """A low line block (U+2581) is a space; <0xNN> is a byte."""
    pieces = []
    for token in tokens:
        if byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                pieces.append(bytes([int(token[3:5], 16)]))
                continue
            except ValueError:
                pass
        pieces.append(token.replace("\u2581", " ").encode("utf-8", "replace"))
    return pieces


def of_decoder(decoder: Mapping[str, Any] | None, tokens: Sequence[str]) -> tuple[list[bytes], bool]:
    """The pieces under a tokenizer.json's decoder, and whether a text's first space is dropped.

    Raises:
        ValueError: a decoder that does not turn each token into bytes by itself.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return byte_level(tokens), False
    if kinds == ["WordPiece"]:
        prefix = str(steps[0].get("prefix", "##"))
        words = (t[len(prefix) :] if t.startswith(prefix) else " " + t for t in tokens)
        return [word.encode("utf-8", "replace") for word in words], True
    if kinds == ["BPEDecoder"]:
        suffix = str(steps[0].get("suffix", "</w>"))
        return [t.replace(suffix, " ").encode("utf-8", "replace") for t in tokens], False
    strip = False
    replaced: list[tuple[str, str]] = []
    byte_fallback = False
    for step in steps:
        kind = step.get("type")
        if kind == "Replace" and isinstance(step.get("pattern"), dict) and "String" in step["pattern"]:
            replaced.append((step["pattern"]["String"], step.get("content", "")))
        elif kind == "Metaspace":
            replaced.append((step.get("replacement", "\u2581"), " "))
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            strip = strip or scheme != "never"
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "Strip":
            strip = strip or (step.get("content") == " " and step.get("start", 0) >= 1)
        elif kind != "Fuse":
            raise ValueError(f"the tokenizer's decoder {kind!r} is not supported")
    if [pair for pair in replaced if pair != ("\u2581", " ")]:
        raise ValueError(f"the tokenizer's decoder replaces {replaced}, which is not supported")
    if replaced:
        return sentencepiece(tokens, byte_fallback), strip
    return [token.encode("utf-8", "replace") for token in tokens], strip


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", ()) for step in _steps(inner)]
    return [decoder]
