"""Tokenizers whose code is in their checkpoints (tiktoken's ranks, ChatGLM's SentencePiece), loaded without
it: against the libraries, over tiny files made here."""

from __future__ import annotations

import base64
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from taco_llm.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from taco_llm.tokenizer.tiktoken import STYLES, read_ranks
from test_tokenizer import CORPUS, TEXTS, Files, random_texts, spm_folder, spm_model, spm_reference

__all__ = ["spm_model"]  # a fixture

# As the published code cuts text.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CL100K_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def train_ranks(lines: list[str], size: int) -> dict[bytes, int]:
    words = [[bytes([byte]) for byte in word.encode()] for line in lines for word in line.split(" ")]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < size:
        pairs = Counter(a + b for word in words for a, b in zip(word, word[1:], strict=False))
        left = [pair for pair in pairs if pair not in ranks]
        if not left:
            break
        best = max(left, key=lambda pair: (pairs[pair], pair))
        ranks[best] = len(ranks)
        for i, word in enumerate(words):
            merged: list[bytes] = []
            for part in word:
                if merged and merged[-1] + part == best:
                    merged[-1] = best
                else:
                    merged.append(part)
            words[i] = merged
    return ranks


def write_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    path.write_bytes(
        b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items())
    )


def ranks_folder(folder: Path, file: str, ranks: dict[bytes, int], **config: Any) -> Files:
    write_ranks(folder / file, ranks)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Files(tokenizer_files=folder)


def library(ranks: dict[bytes, int], words: str, special: dict[str, int]) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    return tiktoken.Encoding("test", pat_str=words, mergeable_ranks=ranks, special_tokens=special)


def check_texts(tokenizer: Tokenizer, reference: Any, texts: list[str], nfc: bool) -> None:
    pieces, strip = tokenizer.pieces()
    assert not strip
    for text in texts:
        composed = unicodedata.normalize("NFC", text) if nfc else text
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(composed, allowed_special="all"), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == composed
        assert b"".join(pieces[id] for id in ids).decode() == composed


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return train_ranks(CORPUS, 420)


CHAT = [
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|user|>\nwhat?<|end|>\n<|assistant|>",
    "a<|endoftext|>b<|extra_0|>",
]


def test_qwen_ranks(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    files = ranks_folder(tmp_path, "qwen.tiktoken", ranks, tokenizer_class="QWenTokenizer")
    tokenizer = load_tokenizer(files)
    special = STYLES["QWenTokenizer"].special
    reference = library(ranks, QWEN_WORDS, {text: len(ranks) + i for text, i in special.items()})
    assert tokenizer.vocab_size == reference.n_vocab == len(ranks) + 208
    assert tokenizer.eos_token_id == len(ranks) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids("<|extra_204|>") == len(ranks) + 207
    check_texts(tokenizer, reference, TEXTS + CHAT + random_texts(300, 3), nfc=True)
    assert tokenizer.decode(tokenizer.encode(CHAT[0])) == "user\nhi\n"


def test_phi3_small_ranks(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    auto_map = {"AutoTokenizer": ["tokenization_phi3_small.Phi3SmallTokenizer", None]}
    tokenizer = load_tokenizer(ranks_folder(tmp_path, "cl100k_base.tiktoken", ranks, auto_map=auto_map))
    special = STYLES["Phi3SmallTokenizer"].special
    # The published ids, of a file with 100256 ranks.
    published = {text: 100256 + i for text, i in special.items()}
    assert published["<|endoftext|>"] == 100257 and published["<|end|>"] == 100266
    assert published["<|dummy_id_2|>"] == 100256 and published["<|endofprompt|>"] == 100276
    assert published["<|dummy_id_12|>"] == 100277 and published["<|dummy_id_86|>"] == 100351
    assert sorted(published.values()) == list(range(100256, 100352))
    reference = library(ranks, CL100K_WORDS, {text: len(ranks) + i for text, i in special.items()})
    check_texts(tokenizer, reference, TEXTS + CHAT + random_texts(300, 4), nfc=False)
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.eos_token_id == len(ranks) + 1


def test_glm4_ranks(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    names = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|user|>", "<|assistant|>"]
    added = {str(len(ranks) + i): {"content": text, "special": True} for i, text in enumerate(names)}
    config = dict(tokenizer_class="ChatGLM4Tokenizer", added_tokens_decoder=added, eos_token="<|endoftext|>")
    tokenizer = load_tokenizer(ranks_folder(tmp_path, "tokenizer.model", ranks, **config))
    reference = library(ranks, CL100K_WORDS, {text: len(ranks) + i for i, text in enumerate(names)})
    check_texts(tokenizer, reference, TEXTS + CHAT + random_texts(300, 5), nfc=False)
    assert tokenizer.encode("hi")[:2] == [len(ranks) + 2, len(ranks) + 4]
    assert tokenizer.encode("hi")[2:] == reference.encode("hi")


@pytest.mark.parametrize("alphabet", ["ab", "ab =", "abcd  \n\t你é"])
def test_ranks_merge_as_the_library_whatever_they_are(tmp_path: Path, alphabet: str) -> None:
    # Few letters, long repetitions: what can be merged in many ways.
    rng = random.Random(len(alphabet))

    def text(longest: int) -> str:
        return "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, longest)))

    ranks = train_ranks([text(80) for _ in range(60)], 380)
    tokenizer = load_tokenizer(ranks_folder(tmp_path, "cl100k_base.tiktoken", ranks))
    reference = library(ranks, CL100K_WORDS, {})
    for _ in range(400):
        sample = text(100)
        assert tokenizer.encode(sample, add_special_tokens=False) == reference.encode(sample), sample


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"YQ== 0\nYg==\n", "line 2 is not a token"),
        (b"YQ== 0\n!! 1\n", "line 2 is not a token"),
        (b"YQ== 0\nYQ== 1\n", "line 2: an empty token, one that was there already"),
        (b"YQ== 0\nYg== 2\n", "without gaps"),
        (b"YQ== 0\nYg== 1\n", "not every byte"),
        (b"\x80\x04\x95cos\nsystem\n", "line 1 is not a token"),
    ],
)
def test_damaged_ranks_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ranks(data)
    (tmp_path / "qwen.tiktoken").write_bytes(data)
    with pytest.raises(TokenizerError, match=f"qwen.tiktoken: .*{message}"):
        load_tokenizer(Files(tokenizer_files=tmp_path))


def test_ranks_of_an_unknown_class_say_what_they_would_need(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    files = ranks_folder(tmp_path, "other.tiktoken", ranks, tokenizer_class="OtherTokenizer")
    with pytest.raises(TokenizerError, match="OtherTokenizer.*--trust-remote-code.*Known: .*QWenTokenizer"):
        load_tokenizer(files)
    code = tmp_path / "code"
    code.mkdir()
    (code / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.Y", None]}}))
    with pytest.raises(TokenizerError, match="Python code inside the checkpoint.*--trust-remote-code"):
        load_tokenizer(Files(tokenizer_files=code))


def test_special_ids_must_not_collide(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    added = {"5": {"content": "<sop>", "special": True}}
    config = dict(tokenizer_class="ChatGLM4Tokenizer", added_tokens_decoder=added)
    with pytest.raises(TokenizerError, match="'<sop>' cannot have the id 5"):
        load_tokenizer(ranks_folder(tmp_path, "tokenizer.model", ranks, **config))


@pytest.mark.parametrize("roles", [False, True])
def test_chatglm_special_tokens(tmp_path: Path, spm_model: bytes, roles: bool) -> None:  # noqa: F811
    reference = spm_reference(spm_model)
    n = reference.get_piece_size()
    config: dict[str, Any] = dict(tokenizer_class="ChatGLMTokenizer", bos_token=None, eos_token=None)
    if roles:
        config["name_or_path"] = "somewhere/chatglm3-6b"
    tokenizer = load_tokenizer(spm_folder(tmp_path, spm_model, **config))
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
    names += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"] if roles else []
    assert tokenizer.convert_tokens_to_ids(names) == list(range(n, n + len(names)))
    assert tokenizer.vocab_size == n + len(names)
    assert tokenizer.eos_token_id == reference.eos_id() and tokenizer.bos_token_id is None
    for text in [t for t in TEXTS if "<" not in t] + random_texts(200, 6):
        if any(name in text for name in names):
            continue
        ids = reference.encode(text)
        assert tokenizer.encode(text) == [n + 1, n + 3, *ids]  # [gMASK] sop
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode([n + 1, n + 3, *ids, n + 4]) == text
    if roles:
        ids = tokenizer.encode("<|user|>\n the weather<|assistant|>", add_special_tokens=False)
        assert ids == [n + 6, *reference.encode("\n the weather"), n + 7]
