"""How byte-level BPE models cut text before merging, by the names that GGUF files give it
(``tokenizer.ggml.pre``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(contractions: str, digits: str) -> str:
    """Words cut where a lower case letter meets an upper case one."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{_UPPER}*{_LOWER}+{contractions}|{start}{_UPPER}+{_LOWER}*{contractions}"
    return words + r"|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL


_GPT4O = _cased(_CONTRACTIONS + "?", "{1,3}")
_TEKKEN = _cased("", "")
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _TAIL
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

# The original lists the letters that have a case; these are the ones of the categories that it leaves out.
_DEEPSEEK_WORD = r"\s?(?:(?![ა-ჿⴀ-ⴭ𝐀-𝟋])[\p{Lu}\p{Ll}\p{Lt}])+"

# Name -> expressions applied one after the other: each match, and what lies between matches, is a piece.
_EXPRESSIONS: dict[str, tuple[str, ...]] = {}
for _names, _expressions in (
    (("default", "gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jina-es", "jina-de", "jais", "gptneox"), (_GPT2,)),
    (("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", _GPT2)),
    (
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe", "pixtral"),
        (_LLAMA3,),
    ),
    (("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"), (_QWEN2,)),
    (("gpt-4o", "llama4"), (_GPT4O,)),
    (("tekken",), (_TEKKEN,)),
    (
        ("deepseek-llm",),
        (r"[\r\n]", _DEEPSEEK_WORD, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}+"),
    ),
    (("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    (("deepseek-v3",), (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    (("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    (("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    (("viking",), (_BLOOM, r"\p{N}")),
):
    for _name in _names:
        _EXPRESSIONS[_name] = _expressions

IGNORE_MERGES = frozenset(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken", "gpt-4o", "llama4")
)
"""Models in which a word that is itself a token is not merged from its parts."""

ADD_BOS = frozenset(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken", "deepseek-llm", "deepseek-v3")
)
"""Begin-of-sequence is added when the file does not say."""

NFC = frozenset(("qwen2", "deepseek-r1-qwen"))
"""Text is normalised to composed characters first."""


def names() -> list[str]:
    """The names that are known."""
    return sorted(_EXPRESSIONS)


def byte_level(name: str, add_prefix_space: bool = False) -> PreTokenizer:
    """Raises KeyError for a name that is not known."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    expressions = _EXPRESSIONS[name]
    if expressions == (_GPT2,):  # built in, and faster
        return ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    if expressions == (r"\p{N}", _GPT2):
        return Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)]
        )
    splits = [Split(Regex(expression), "isolated") for expression in expressions]
    return Sequence([*splits, ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)])
