"""What a request asks of the sampler: names, defaults and limits of vLLM 0.6.1's ``SamplingParams``."""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from taco_llm import _core
    from taco_llm.tokenizer import Tokenizer

# (output ids, logits) or (prompt ids, output ids, logits); logits is a float32 array [vocab_size].
LogitsProcessor = Callable[..., "np.ndarray | None"]

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy decoding."""

_INT32_MAX = 2**31 - 1
_MAX_LOGIT_BIAS = 100.0


@dataclass
class SamplingParams:
    """Sampling parameters for text generation.

    The parameters follow OpenAI's completions API and vLLM 0.6.1.

    Args:
        n: number of output sequences to return for the prompt.
        best_of: number of sequences that are generated; the ``n`` with the highest cumulative log probability
            are returned. At least ``n``; by default ``n``.
        presence_penalty: subtracted from the logits of tokens that occur in the output so far. In [-2, 2];
            above 0 encourages new tokens.
        frequency_penalty: subtracted from the logits once for each occurrence in the output so far.
            In [-2, 2]; above 0 encourages new tokens.
        repetition_penalty: divides the positive (multiplies the negative) logits of tokens that occur in the
            prompt or in the output so far. In (0, 2]; above 1 encourages new tokens.
        temperature: divides the logits; lower is more deterministic. At least 0; 0 is greedy decoding, where
            the lowest id wins a tie.
        top_p: cumulative probability of the most likely tokens to consider, in (0, 1]; 1 considers all.
        top_k: number of the most likely tokens to consider; -1 considers all.
        min_p: least probability of a token to be considered, relative to that of the most likely one.
            In [0, 1]; 0 turns it off.
        seed: seed of the request's random numbers. The same seed gives the same text, whatever else is in the
            batch. None: drawn from the engine's seed.
        use_beam_search: not built yet.
        length_penalty: of beam search; 1.0 without it.
        early_stopping: of beam search; False without it.
        stop: string or strings that end the generation when they appear. The text ends before them.
        stop_token_ids: tokens that end the generation. They are part of the returned token ids; their text is
            returned unless they are special tokens.
        ignore_eos: go on after the end-of-sequence token.
        max_tokens: most tokens to generate per sequence. None: until the context is full.
        min_tokens: tokens to generate before end-of-sequence, ``stop_token_ids`` or ``stop`` may end the
            sequence.
        logprobs: number of most likely tokens whose log probabilities are returned with each output token;
            the chosen token's is always among them, so there may be ``logprobs + 1`` entries. None: none.
            Log probabilities are those of the model before penalties, temperature and filters.
        prompt_logprobs: likewise for each prompt token but the first.
        detokenize: turn the output into text.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: accepted for compatibility; special tokens are joined as they are.
        logits_processors: callables that change the logits: ``f(output_ids, logits)`` or
            ``f(prompt_ids, output_ids, logits)``, with ``logits`` a writable float32 array [vocab_size].
            It is changed in place, or a new array is returned. Slow: each call takes Python's lock.
        include_stop_str_in_output: keep the stop string at the end of the text.
        truncate_prompt_tokens: use only the last so many tokens of the prompt. None: all.
        no_repeat_ngram_size: if above 0, every sequence of so many tokens occurs once at most, in prompt and
            output together.
        logit_bias: token id -> number added to its logit.
        bad_words: words (or lists of token ids) that must not appear in the output.
        allowed_token_ids: the only tokens that may be generated. None: all.
        guided_decoding: not built yet.

    Raises:
        ValueError: a value is out of its range; the message says which and what to use.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logits_processors: list[LogitsProcessor] | None = None
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str | Sequence[int]] | None = None
    allowed_token_ids: list[int] | None = None
    guided_decoding: Any = None

    @classmethod
    def from_optional(cls, **values: Any) -> SamplingParams:
        """As the constructor, but None stands for the default, and biases are cut to [-100, 100]."""
        defaults = {f.name: f.default for f in fields(cls)}
        kept = {
            name: value
            for name, value in values.items()
            if value is not None or defaults.get(name, 0) is None
        }
        if "max_tokens" in values:  # its None means something
            kept["max_tokens"] = values["max_tokens"]
        bias = kept.get("logit_bias")
        if bias is not None:
            kept["logit_bias"] = {
                id: min(_MAX_LOGIT_BIAS, max(-_MAX_LOGIT_BIAS, value))
                for id, value in _logit_bias(bias).items()
            }
        return cls(**kept)

    def __post_init__(self) -> None:
        for name in ("n", "top_k", "min_tokens", "no_repeat_ngram_size"):
            setattr(self, name, _integer(name, getattr(self, name)))
        for name in (
            "best_of",
            "seed",
            "max_tokens",
            "logprobs",
            "prompt_logprobs",
            "truncate_prompt_tokens",
        ):
            if getattr(self, name) is not None:
                setattr(self, name, _integer(name, getattr(self, name)))
        for name in (
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "temperature",
            "top_p",
            "min_p",
            "length_penalty",
        ):
            setattr(self, name, _number(name, getattr(self, name)))
        self.best_of = self.best_of or self.n
        if self.seed == -1:
            self.seed = None
        if self.stop is None:
            self.stop = []
        elif isinstance(self.stop, str):
            self.stop = [self.stop]
        else:
            self.stop = list(self.stop)
        self.stop_token_ids = _token_ids("stop_token_ids", self.stop_token_ids or [])
        if self.logit_bias is not None:
            self.logit_bias = _logit_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
        self._verify()
        if self.is_greedy:
            self.top_p, self.top_k, self.min_p = 1.0, -1, 0.0
            if self.best_of > 1:
                raise ValueError(f"best_of must be 1 when using greedy sampling. Got {self.best_of}.")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken (temperature 0)."""
        return self.temperature < GREEDY_BELOW

    def _verify(self) -> None:
        if self.use_beam_search:
            raise ValueError(
                "beam search is not built yet: leave use_beam_search=False (n and best_of draw samples)."
            )
        if self.guided_decoding is not None:
            raise ValueError("guided decoding is not built yet: leave guided_decoding unset.")
        if self.early_stopping is not False:
            raise ValueError("early_stopping is not effective and must be False when not using beam search.")
        if abs(self.length_penalty - 1.0) > 1e-5:
            raise ValueError(
                "length_penalty is not effective and must be the default value of 1.0 when not using "
                "beam search."
            )
        _at_least("n", self.n, 1)
        assert self.best_of is not None
        if self.best_of < self.n:
            raise ValueError(
                f"best_of must be greater than or equal to n, got n={self.n} and best_of={self.best_of}."
            )
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not 0.0 < self.repetition_penalty <= 2.0:
            raise ValueError(f"repetition_penalty must be in (0, 2], got {self.repetition_penalty}.")
        if not (self.temperature >= 0.0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a finite, non-negative number, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.top_k < -1 or self.top_k == 0:
            raise ValueError(f"top_k must be -1 (disable), or at least 1, got {self.top_k}.")
        _within("min_p", self.min_p, 0.0, 1.0)
        if self.max_tokens is not None:
            _at_least("max_tokens", self.max_tokens, 1)
        _at_least("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, "
                f"got {self.min_tokens}."
            )
        if self.logprobs is not None:
            _at_least("logprobs", self.logprobs, 0)
        if self.prompt_logprobs is not None:
            _at_least("prompt_logprobs", self.prompt_logprobs, 0)
        if self.truncate_prompt_tokens is not None:
            _at_least("truncate_prompt_tokens", self.truncate_prompt_tokens, 1)
        _at_least("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        assert isinstance(self.stop, list)
        if not all(isinstance(stop, str) for stop in self.stop):
            raise ValueError("stop must be a string or a list of strings.")
        if any(not stop for stop in self.stop):
            raise ValueError("stop cannot contain an empty string.")
        if self.stop and not self.detokenize:
            raise ValueError(
                "stop strings are only supported when detokenize is True. Set detokenize=True to use stop."
            )
        if isinstance(self.bad_words, str):
            raise ValueError("bad_words must be a list of words, not one string.")
        for word in self.bad_words or ():
            if len(word) == 0 or (isinstance(word, str) and not word.strip()):
                raise ValueError("bad_words cannot contain an empty word.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids must not be empty: leave it None to allow all tokens.")
        for processor in self.logits_processors or ():
            if not callable(processor):
                raise ValueError("logits_processors must be a list of callables.")

    def clone(self) -> SamplingParams:
        """A deep copy, but for the logits processors, which are shared."""
        shared = {id(processor): processor for processor in self.logits_processors or ()}
        return copy.deepcopy(self, memo=shared)

    def to_core(self, *, eos_token_ids: Sequence[int], tokenizer: Tokenizer | None) -> _core.SamplingParams:
        """The form that the engine takes.

        Args:
            eos_token_ids: the model's end-of-sequence tokens.
            tokenizer: needed for bad words given as strings.

        Raises:
            ValueError: bad words without a tokenizer.
        """
        from taco_llm import _core

        stop = self.stop if isinstance(self.stop, list) else []
        values: dict[str, Any] = {
            "n": self.n,
            "best_of": self.best_of or self.n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": min(self.top_k, _INT32_MAX),
            "min_p": self.min_p,
            "stop": stop,
            "stop_token_ids": list(self.stop_token_ids or ()),
            "eos_token_ids": list(eos_token_ids),
            "ignore_eos": bool(self.ignore_eos),
            "max_tokens": _INT32_MAX if self.max_tokens is None else min(self.max_tokens, _INT32_MAX),
            "min_tokens": min(self.min_tokens, _INT32_MAX),
            "logprobs": -1 if self.logprobs is None else min(self.logprobs, _INT32_MAX),
            "prompt_logprobs": -1 if self.prompt_logprobs is None else min(self.prompt_logprobs, _INT32_MAX),
            "detokenize": bool(self.detokenize),
            "skip_special_tokens": bool(self.skip_special_tokens),
            "spaces_between_special_tokens": bool(self.spaces_between_special_tokens),
            "include_stop_str_in_output": bool(self.include_stop_str_in_output),
            "no_repeat_ngram_size": min(self.no_repeat_ngram_size, _INT32_MAX),
        }
        if self.seed is not None:
            values["seed"] = self.seed % 2**64
        if self.logit_bias:
            values["logit_bias"] = list(self.logit_bias.items())
        if self.bad_words:
            values["bad_words"] = _bad_word_ids(self.bad_words, tokenizer)
        if self.allowed_token_ids:
            values["allowed_token_ids"] = self.allowed_token_ids
        if self.logits_processors:
            values["logits_processor"] = _one_processor(self.logits_processors)
        return _core.SamplingParams(**values)


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from None


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, OverflowError):
        raise ValueError(f"{name} must be a number, got {value!r}.") from None


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}.")


def _token_ids(name: str, ids: Sequence[int]) -> list[int]:
    if isinstance(ids, (str, bytes)):
        raise ValueError(f"{name} must be a list of token ids, got {ids!r}.")
    kept = [_integer(f"each of {name}", id) for id in ids]
    for id in kept:
        if not 0 <= id <= _INT32_MAX:
            raise ValueError(f"{name} has token id {id}, which is not in the vocabulary.")
    return kept


def _logit_bias(bias: Mapping[Any, Any]) -> dict[int, float]:
    """Ids may come as strings, as the keys of a JSON object do."""
    kept = {}
    for key, value in bias.items():
        try:
            id = int(key)
        except (TypeError, ValueError):
            raise ValueError(f"logit_bias: {key!r} is not a token id.") from None
        number = _number(f"logit_bias of token {id}", value)
        if not 0 <= id <= _INT32_MAX:
            raise ValueError(f"logit_bias has token id {id}, which is not in the vocabulary.")
        if not math.isfinite(number):
            raise ValueError(f"logit_bias of token {id} must be a finite number, got {value}.")
        kept[id] = number
    return kept


def _bad_word_ids(words: Sequence[str | Sequence[int]], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Each word as it is tokenised at the start of a text, and after a space where that is another token."""
    found: list[list[int]] = []
    for word in words:
        if not isinstance(word, str):
            found.append(_token_ids("bad_words", word))
            continue
        if tokenizer is None:
            raise ValueError("bad_words given as strings need a tokenizer: give lists of token ids instead.")
        plain = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        if not plain:
            continue
        found.append(plain)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
            found.append(spaced)
    return found


def _one_processor(
    processors: Sequence[LogitsProcessor],
) -> Callable[[list[int], list[int], np.ndarray], np.ndarray]:
    import numpy as np

    calls = [(processor, _takes_prompt(processor)) for processor in processors]

    def run(prompt: list[int], output: list[int], logits: np.ndarray) -> np.ndarray:
        row = logits
        for processor, takes_prompt in calls:
            result = processor(prompt, output, row) if takes_prompt else processor(output, row)
            if result is None:
                continue
            row = np.asarray(result, dtype=np.float32)
            if row.shape != logits.shape:
                raise ValueError(
                    f"a logits processor must return an array of shape {logits.shape}, got {row.shape}."
                )
        return row

    return run


def _takes_prompt(processor: LogitsProcessor) -> bool:
    try:
        return len(inspect.signature(processor).parameters) == 3
    except (TypeError, ValueError):
        return False
