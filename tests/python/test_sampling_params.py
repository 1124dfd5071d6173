"""SamplingParams: defaults, limits, and the form that the engine takes (seen through a stand-in for it)."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import taco_llm
from taco_llm.outputs import CompletionOutput, RequestOutput
from taco_llm.sampling_params import SamplingParams


def core_fields(params: SamplingParams, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> dict[str, Any]:
    fake = SimpleNamespace(SamplingParams=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "taco_llm._core", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(taco_llm, "_core", fake, raising=False)
    return params.to_core(**{"eos_token_ids": [2], "tokenizer": None, **kwargs})  # type: ignore[return-value]


def test_defaults() -> None:
    p = SamplingParams()
    assert (p.n, p.best_of, p.temperature, p.top_p, p.top_k, p.min_p) == (1, 1, 1.0, 1.0, -1, 0.0)
    assert (p.max_tokens, p.min_tokens, p.stop, p.stop_token_ids, p.seed) == (16, 0, [], [], None)
    assert (p.detokenize, p.skip_special_tokens, p.ignore_eos, p.no_repeat_ngram_size) == (
        True,
        True,
        False,
        0,
    )
    assert not p.is_greedy and SamplingParams(temperature=0).is_greedy


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 2.5}, "n must be an integer"),
        ({"n": True}, "n must be an integer"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 2.1}, "repetition_penalty"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"stop": ["a", ""]}, "empty"),
        ({"stop": ""}, "empty"),
        ({"stop": [3]}, "stop"),
        ({"stop": "a", "detokenize": False}, "detokenize"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"temperature": 0, "best_of": 2}, "greedy"),
        ({"use_beam_search": True, "best_of": 2, "temperature": 0}, "beam search is not built yet"),
        ({"guided_decoding": {"regex": "a"}}, "guided decoding is not built yet"),
        ({"early_stopping": True}, "early_stopping"),
        ({"length_penalty": 0.5}, "length_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"logit_bias": {"x": 1}}, "token id"),
        ({"logit_bias": {-1: 1}}, "vocabulary"),
        ({"logit_bias": {1: math.inf}}, "finite"),
        ({"bad_words": "bad"}, "list"),
        ({"bad_words": ["ok", " "]}, "empty"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"logits_processors": [3]}, "callables"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**fields)


def test_limits_are_inside() -> None:
    SamplingParams(
        n=2,
        best_of=2,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=2,
        top_p=1,
        top_k=1,
        min_p=1,
    )
    SamplingParams(max_tokens=None, min_tokens=1000, logprobs=0, seed=np.int64(7))  # type: ignore[arg-type]


def test_greedy_turns_the_filters_off() -> None:
    p = SamplingParams(temperature=0, top_p=0.5, top_k=3, min_p=0.2)
    assert (p.top_p, p.top_k, p.min_p) == (1.0, -1, 0.0)


def test_from_optional() -> None:
    assert SamplingParams.from_optional(n=None, temperature=None, stop=None, seed=None) == SamplingParams()
    p = SamplingParams.from_optional(max_tokens=None, logit_bias={"5": 300, 6: -1}, top_p=0.5)
    assert p.max_tokens is None and p.logit_bias == {5: 100.0, 6: -1.0} and p.top_p == 0.5
    with pytest.raises(TypeError):
        SamplingParams.from_optional(temprature=1.0)


def test_clone_and_equality() -> None:
    def processor(output: list[int], logits: np.ndarray) -> None: ...

    p = SamplingParams(stop=["a"], logit_bias={3: 1.0}, logits_processors=[processor])
    q = p.clone()
    assert p == q and q.logits_processors == [processor]
    assert isinstance(q.stop, list)
    q.stop.append("b")
    assert p.stop == ["a"] and p != q
    assert "stop=['a']" in repr(p)


def test_core_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = core_fields(SamplingParams(), monkeypatch)
    assert fields["n"] == fields["best_of"] == 1 and fields["eos_token_ids"] == [2]
    assert fields["logprobs"] == fields["prompt_logprobs"] == fields["top_k"] == -1
    assert not {"seed", "logit_bias", "bad_words", "allowed_token_ids", "logits_processor"} & set(fields)
    fields = core_fields(
        SamplingParams(
            seed=-5, logit_bias={7: 2}, allowed_token_ids=[1], bad_words=[[4, 5]], max_tokens=None, logprobs=3
        ),
        monkeypatch,
    )
    assert fields["seed"] == 2**64 - 5 and fields["logit_bias"] == [(7, 2.0)] and fields["logprobs"] == 3
    assert fields["allowed_token_ids"] == [1] and fields["bad_words"] == [[4, 5]]
    assert fields["max_tokens"] == 2**31 - 1
    assert "seed" not in core_fields(SamplingParams(seed=-1), monkeypatch)


class Words:
    """A tokenizer of whole words, with an id of its own after a space; " xy" is two tokens."""

    ids = {
        "bad": [1],
        " bad": [2],
        "same": [3],
        " same": [3, 4],
        "xy": [5],
        " xy": [6, 7],
        "a b": [8, 9],
        " a b": [10, 9],
    }

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return self.ids[text]


def test_bad_words(monkeypatch: pytest.MonkeyPatch) -> None:
    p = SamplingParams(bad_words=["bad", " same", "xy", "a b"])
    fields = core_fields(p, monkeypatch, tokenizer=Words())
    assert fields["bad_words"] == [[1], [2], [3], [5], [8, 9], [10, 9]]
    with pytest.raises(ValueError, match="tokenizer"):
        core_fields(p, monkeypatch)


def test_logits_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def in_place(output: list[int], logits: np.ndarray) -> None:
        seen.append(list(output))
        logits[0] = 5

    def returns(prompt: Sequence[int], output: Sequence[int], logits: np.ndarray) -> np.ndarray:
        seen.append((list(prompt), list(output)))
        return (logits + 1).astype(np.float64)

    class Callable3:
        def __call__(self, prompt: list[int], output: list[int], logits: np.ndarray) -> np.ndarray:
            return logits * 2

    run = core_fields(SamplingParams(logits_processors=[in_place, returns, Callable3()]), monkeypatch)[
        "logits_processor"
    ]
    row = np.zeros(3, np.float32)
    result = run([1], [2], row)
    assert seen == [[2], ([1], [2])]
    assert result.dtype == np.float32 and result.tolist() == [12, 2, 2] and row[0] == 5

    wrong = core_fields(SamplingParams(logits_processors=[lambda o, x: x[:1]]), monkeypatch)[
        "logits_processor"
    ]
    with pytest.raises(ValueError, match="shape"):
        wrong([1], [2], row)


def test_outputs() -> None:
    completion = CompletionOutput(0, "hi", [1, 2])
    assert not completion.finished()
    completion.finish_reason = "stop"
    assert completion.finished()
    output = RequestOutput("r", "p", [1])
    assert output.outputs == [] and not output.finished and output.num_cached_tokens == 0


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys; import taco_llm.sampling_params, taco_llm.outputs; "
        "heavy = ('tokenizers', 'jinja2', 'torch', 'transformers', 'sentencepiece'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
