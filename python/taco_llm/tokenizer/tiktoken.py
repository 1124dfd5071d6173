"""Tokenizers of tiktoken's format, a file of ranks, without the code that checkpoints bring along for it.

A line is a token's bytes in base64 and its rank, which is its id: the pair of neighbours whose bytes together
have the lowest rank is merged first. What the code of those checkpoints adds, the special tokens and how text
is cut into words, stands here by the name of the tokenizer class.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import pieces

if TYPE_CHECKING:
    from .fast import FastBackend


@dataclass(frozen=True)
class Style:
    """file: the name of the ranks' file. words: how text is cut (pretokenizers.py). special: token -> its id
    counted from the number of ranks. prefix: special tokens before a text."""

    file: str
    words: str
    special: Mapping[str, int] = field(default_factory=dict)
    nfc: bool = False
    prefix: Sequence[str] = ()
    eos: str | None = None


def _numbered(names: Sequence[str], start: int = 0) -> dict[str, int]:
    return {name: start + i for i, name in enumerate(names)}


# Of a padded vocabulary of 100352 with 100256 ranks: the tokens of chats among those that stand for nothing.
_PHI3_SMALL = {
    "<|dummy_id_2|>": 0,
    **_numbered(["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"], 1),
    **_numbered(
        ["<|system|>", "<|user|>", "<|assistant|>", "<|dummy_id_0|>", "<|dummy_id_1|>", "<|end|>"], 5
    ),
    **_numbered([f"<|dummy_id_{i}|>" for i in range(3, 12)], 11),
    "<|endofprompt|>": 20,
    **_numbered([f"<|dummy_id_{i}|>" for i in range(12, 87)], 21),
}

STYLES = {
    "QWenTokenizer": Style(
        file="qwen.tiktoken",
        words="qwen2",
        special=_numbered(
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
        ),
        nfc=True,
        eos="<|endoftext|>",
    ),
    "Phi3SmallTokenizer": Style(
        file="cl100k_base.tiktoken", words="llama3", special=_PHI3_SMALL, eos="<|endoftext|>"
    ),
    # Its special tokens are in tokenizer_config.json.
    "ChatGLM4Tokenizer": Style(
        file="tokenizer.model", words="llama3", prefix=("[gMASK]", "<sop>"), eos="<|endoftext|>"
    ),
}


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Token -> rank. Raises ValueError for what is no such file, or leaves a byte or a rank out."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        try:
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
        except (binascii.Error, IndexError, ValueError):
            raise ValueError(f"line {number} is not a token in base64 and its rank") from None
        if not token or len(parts) != 2 or token in ranks:
            raise ValueError(f"line {number}: an empty token, one that was there already, or too much")
        ranks[token] = rank
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("the ranks are not 0, 1, 2, ... without gaps")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError("not every byte is a token")
    return ranks


def build(ranks: Mapping[bytes, int], style: Style, special: Mapping[str, int]) -> FastBackend:
    """special: token -> id. Raises ValueError where ids collide."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers

    from .fast import FastBackend
    from .pretokenizers import byte_level

    spelling = {byte: char for char, byte in pieces.byte_of_char().items()}
    spelt = {token: "".join(map(spelling.__getitem__, token)) for token in ranks}
    vocab = {spelt[token]: rank for token, rank in ranks.items()}
    for text, id in special.items():
        if vocab.setdefault(text, id) != id or id < len(ranks):
            raise ValueError(f"special token {text!r} cannot have the id {id}")
    if len(set(vocab.values())) != len(vocab):
        raise ValueError("two special tokens have one id")
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, _merges(ranks, spelt)))
    if style.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = byte_level(style.words)
    tokenizer.decoder = decoders.ByteLevel()
    in_order = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in in_order])
    prefix = [special[text] for text in style.prefix if text in special]
    return FastBackend(tokenizer, prefix)


def _merges(ranks: Mapping[bytes, int], spelt: Mapping[bytes, str]) -> list[tuple[str, str]]:
    """Every pair of tokens whose bytes together are a token, by the rank of that one."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(a, b) for a, b in pairs if a in ranks and b in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelt[a], spelt[b]) for a, b in known]
    return merges
