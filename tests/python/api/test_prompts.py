"""The forms of prompts and messages, and what is wrong with bad ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from taco_llm import SamplingParams
from taco_llm.engine_args import NotBuiltError
from taco_llm.null_model import VOCAB_SIZE, NullTokenizer
from taco_llm.prompts import as_list, flatten_messages, prepare, refuse_adapters


@pytest.fixture()
def handle() -> SimpleNamespace:
    args = SimpleNamespace(max_logprobs=5)
    return SimpleNamespace(
        args=args, tokenizer=NullTokenizer(), max_model_len=32, vocab_size=VOCAB_SIZE, eos_token_ids=[]
    )


def test_as_list() -> None:
    assert as_list("ab") == ["ab"]
    assert as_list(["ab", "c"]) == ["ab", "c"]
    assert as_list([1, 2]) == [[1, 2]]
    assert as_list([[1, 2], [3]]) == [[1, 2], [3]]
    assert as_list({"prompt": "x"}) == [{"prompt": "x"}]
    assert as_list([]) == []
    for wrong in (5, None, b"x"):
        with pytest.raises(ValueError, match="prompts should be"):
            as_list(wrong)


@pytest.mark.parametrize("prompt, text, ids", [
    ("ab", "ab", [97, 98]), ([97, 98], None, [97, 98]), ({"prompt": "ab"}, "ab", [97, 98]),
    ({"prompt_token_ids": [1]}, None, [1]), ({"prompt": "ab", "prompt_token_ids": [1]}, "ab", [1]),
])  # fmt: skip
def test_forms(handle, prompt, text, ids) -> None:
    request = prepare(handle, prompt, SamplingParams())
    assert (request.prompt, request.prompt_token_ids) == (text, ids)


@pytest.mark.parametrize("prompt, words", [
    ("", "no tokens"), ([], "no tokens"), ({}, "'prompt' or"), (5, "should be text"),
    ([1, "a"], "'a' is a str"), ([True, 1], "True"), ([-1], "-1 is not in the vocabulary"),
    ([VOCAB_SIZE], "is not in the vocabulary"),
    ("x" * 32, "32 tokens"), ({"prompt": 3}, "should be text"),
    ({"prompt_token_ids": "ab"}, "list of integers"),
])  # fmt: skip
def test_bad_prompts(handle, prompt, words) -> None:
    with pytest.raises(ValueError, match=words):
        prepare(handle, prompt, SamplingParams())


def test_truncation_and_open_length(handle) -> None:
    assert prepare(handle, "x" * 99 + "ab", SamplingParams(truncate_prompt_tokens=2)).prompt_token_ids == [
        97,
        98,
    ]
    params = SamplingParams(max_tokens=None)
    assert prepare(handle, "ab", params).params.max_tokens == 30
    assert params.max_tokens is None


def test_limits(handle) -> None:
    with pytest.raises(ValueError, match="logprobs=6 is more than the 5"):
        prepare(handle, "a", SamplingParams(logprobs=6))
    with pytest.raises(ValueError, match="prompt_logprobs=6"):
        prepare(handle, "a", SamplingParams(prompt_logprobs=6))
    handle.tokenizer = None
    with pytest.raises(ValueError, match="skip_tokenizer_init"):
        prepare(handle, "a", SamplingParams())


def test_media_is_refused(handle) -> None:
    with pytest.raises(NotBuiltError):
        prepare(handle, {"prompt": "a", "multi_modal_data": {"image": 1}}, SamplingParams())
    with pytest.raises(NotBuiltError, match="image_url"):
        flatten_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert flatten_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]
    for wrong in ([], ["x"], [{"content": "x"}], [{"role": "user", "content": 5}]):
        with pytest.raises(ValueError):
            flatten_messages(wrong)


def test_adapters() -> None:
    refuse_adapters(lora_request=None, guided_options_request=[])
    with pytest.raises(NotBuiltError, match="lora_request needs LoRA"):
        refuse_adapters(lora_request=object())
