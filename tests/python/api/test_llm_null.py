"""LLM on the null model: order, pairing, n, errors, shutting down."""

from __future__ import annotations

import threading
import time

import pytest
from taco_llm import LLM, SamplingParams
from taco_llm.engine_args import NotBuiltError


@pytest.fixture(scope="module")
def llm():
    with LLM("null", max_model_len=256, max_num_seqs=16) as llm:
        yield llm


def ids(outputs) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_order_is_that_of_the_prompts(llm: LLM) -> None:
    prompts = [f"prompt {number}" * (number % 5 + 1) for number in range(50)]
    params = [SamplingParams(max_tokens=1 + 7 * number % 23) for number in range(50)]
    together = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in together] == prompts
    assert [len(one) for one in ids(together)] == [one.max_tokens for one in params]
    alone = [
        llm.generate(prompt, one, use_tqdm=False)[0] for prompt, one in zip(prompts, params, strict=True)
    ]
    assert ids(together) == ids(alone)
    assert len({tuple(one[:1]) for one in ids(together)}) > 20  # different prompts, different answers


def test_one_params_for_all(llm: LLM) -> None:
    outputs = llm.generate(["a", "b", "c"], SamplingParams(max_tokens=4), use_tqdm=False)
    assert [len(one) for one in ids(outputs)] == [4, 4, 4]
    assert [len(one) for one in ids(llm.generate(["a", "b"], use_tqdm=False))] == [16, 16]


def test_fields(llm: LLM) -> None:
    (output,) = llm.generate("hello", SamplingParams(max_tokens=4), use_tqdm=False)
    assert output.finished and output.prompt == "hello" and output.prompt_token_ids == list(b"hello")
    (completion,) = output.outputs
    assert completion.index == 0 and completion.finish_reason == "length" and completion.finished()
    assert completion.text == llm.get_tokenizer().decode(completion.token_ids) and completion.logprobs is None
    times = output.metrics
    assert times.arrival_time <= times.first_scheduled_time <= times.first_token_time <= times.finished_time
    assert abs(times.finished_time - time.time()) < 60 and times.time_in_queue >= 0


def test_forms_of_prompts_agree(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6)
    tokens = list(b"same")
    forms = [
        llm.generate("same", params, use_tqdm=False),
        llm.generate(["same"], params, use_tqdm=False),
        llm.generate({"prompt": "same"}, params, use_tqdm=False),
        llm.generate({"prompt_token_ids": tokens}, params, use_tqdm=False),
        llm.generate(tokens, params, use_tqdm=False),
        llm.generate([tokens], params, use_tqdm=False),
        llm.generate(prompt_token_ids=tokens, sampling_params=params, use_tqdm=False),
        llm.generate(prompt_token_ids=[tokens], sampling_params=params, use_tqdm=False),
        llm.generate(["same"], params, [tokens], use_tqdm=False),
    ]
    assert len({tuple(ids(outputs)[0]) for outputs in forms}) == 1
    mixed = llm.generate(["same", tokens, {"prompt": "same"}], params, use_tqdm=False)
    assert len({tuple(one) for one in ids(mixed)}) == 1


def test_several_answers(llm: LLM) -> None:
    (output,) = llm.generate("x", SamplingParams(n=3, max_tokens=5), use_tqdm=False)
    assert [one.index for one in output.outputs] == [0, 1, 2]
    assert all(len(one.token_ids) == 5 and one.finish_reason == "length" for one in output.outputs)


def test_stop_string(llm: LLM) -> None:
    (free,) = llm.generate("stop me", SamplingParams(max_tokens=20), use_tqdm=False)
    text = free.outputs[0].text
    word = text.split()[3]
    (stopped,) = llm.generate("stop me", SamplingParams(max_tokens=20, stop=word), use_tqdm=False)
    assert stopped.outputs[0].finish_reason == "stop" and stopped.outputs[0].stop_reason == word
    assert stopped.outputs[0].text == text[: text.index(word)]


def test_nothing_is_queued_when_one_prompt_is_bad(llm: LLM) -> None:
    before = llm.handle.core.stats().prompt_tokens
    with pytest.raises(ValueError, match="prompt 1: .*256"):
        llm.generate(["fine", "x" * 256], SamplingParams(max_tokens=4), use_tqdm=False)
    with pytest.raises(ValueError, match="prompt 2: the prompt is empty"):
        llm.generate(["fine", "fine", ""], use_tqdm=False)
    with pytest.raises(ValueError, match="2 prompts and 3 sampling_params"):
        llm.generate(["a", "b"], [SamplingParams()] * 3, use_tqdm=False)
    with pytest.raises(ValueError, match=r"sampling_params\[1\]"):
        llm.generate(["a", "b"], [SamplingParams(), 5], use_tqdm=False)
    with pytest.raises(ValueError, match="prompts or prompt_token_ids"):
        llm.generate()
    with pytest.raises(ValueError, match="1 prompts and 2 prompt_token_ids"):
        llm.generate(["a"], prompt_token_ids=[[1], [2]], use_tqdm=False)
    stats = llm.handle.core.stats()
    assert stats.prompt_tokens == before and stats.running == stats.waiting == 0


def test_no_prompts(llm: LLM) -> None:
    assert llm.generate([], use_tqdm=False) == []


def test_chat(llm: LLM) -> None:
    talk = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    params = SamplingParams(max_tokens=3)
    (one,) = llm.chat(talk, params, use_tqdm=False)
    assert one.prompt == "system: be\nuser: hi\nassistant: "
    (bare,) = llm.chat(talk, params, use_tqdm=False, add_generation_prompt=False)
    assert bare.prompt == "system: be\nuser: hi\n"
    both = llm.chat([talk, talk[1:]], params, use_tqdm=False)
    assert [output.prompt for output in both] == [one.prompt, "user: hi\nassistant: "]
    with pytest.raises(ValueError, match="list of messages"):
        llm.chat([], use_tqdm=False)


def test_what_is_not_built(llm: LLM) -> None:
    with pytest.raises(NotBuiltError, match="lora_request"):
        llm.generate("a", lora_request=object())
    with pytest.raises(NotBuiltError, match="guided"):
        llm.generate("a", guided_options_request=object())
    with pytest.raises(NotBuiltError, match="prompt_adapter"):
        llm.generate("a", prompt_adapter_request=object())
    with pytest.raises(NotImplementedError, match="encode"):
        llm.encode("a")
    for settings in (
        {"tensor_parallel_size": 2},
        {"quantization": "awq"},
        {"speculative_model": "x", "num_speculative_tokens": 2, "cpu_draft_worker": True},
    ):
        with pytest.raises(NotBuiltError, match=f"--{next(iter(settings)).replace('_', '-')}"):
            LLM("null", **settings)
    with pytest.raises(TypeError, match="did you mean 'max_model_len'"):
        LLM("null", max_modle_len=5)


def test_progress_bar_shows_tokens_per_second(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], SamplingParams(max_tokens=4))
    shown = capsys.readouterr().err
    assert "2/2" in shown and "tok/s" in shown


def test_interrupt_leaves_a_clean_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACO_NULL_STEP_SECONDS", "0.001")  # long enough to be interrupted
    llm = LLM("null", max_model_len=4096)
    try:
        core = llm.handle.core

        class Interrupting:
            """The core, with a Ctrl-C in the third poll."""

            polls = 0

            def __getattr__(self, name):
                return getattr(core, name)

            def poll(self, timeout):
                self.polls += 1
                if self.polls == 3:
                    raise KeyboardInterrupt
                return core.poll(timeout)

        llm.handle.core = Interrupting()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a", "b"], SamplingParams(max_tokens=4000), use_tqdm=False)
        llm.handle.core = core
        stats = core.stats()
        assert stats.running == stats.waiting == 0 and stats.free_blocks == stats.num_blocks
        (output,) = llm.generate("c", SamplingParams(max_tokens=5), use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 5
    finally:
        llm.shutdown()


def test_threads_take_turns(llm: LLM) -> None:
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        prompts = [f"{number}-{index}" for index in range(10)]
        found[number] = ids(llm.generate(prompts, SamplingParams(max_tokens=9), use_tqdm=False))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        prompts = [f"{number}-{index}" for index in range(10)]
        assert found[number] == ids(llm.generate(prompts, SamplingParams(max_tokens=9), use_tqdm=False))


def test_shutdown() -> None:
    llm = LLM("null")
    llm.shutdown()
    llm.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        llm.generate("a", use_tqdm=False)


def test_without_tokenizer() -> None:
    with LLM("null", skip_tokenizer_init=True) as llm:
        (output,) = llm.generate([1, 2, 3], SamplingParams(max_tokens=4, detokenize=False), use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 4 and output.outputs[0].text == ""
        with pytest.raises(ValueError, match="skip_tokenizer_init"):
            llm.generate("text", use_tqdm=False)
        with pytest.raises(ValueError, match="skip_tokenizer_init"):
            llm.chat([{"role": "user", "content": "x"}], use_tqdm=False)


def test_prefix_caching_and_its_tiers() -> None:
    settings = {"enable_prefix_caching": True, "enable_prefix_cache_offload": True}
    with LLM("null", max_model_len=512, num_gpu_blocks_override=40, **settings) as llm:
        prompts = [[i + 1] * 200 for i in range(6)]
        greedy = SamplingParams(temperature=0, max_tokens=8)
        first = [llm.generate({"prompt_token_ids": p}, greedy, use_tqdm=False)[0] for p in prompts]
        again = [llm.generate({"prompt_token_ids": p}, greedy, use_tqdm=False)[0] for p in prompts]
        stats = llm.handle.core.cache_report(0).stats
    assert [a.outputs[0].token_ids for a in first] == [a.outputs[0].token_ids for a in again]
    assert not any(answer.num_cached_tokens for answer in first)
    assert stats.lookups == 12 and stats.tokens_queried == 12 * 200
    assert sum(stats.tokens_hit.values()) == sum(answer.num_cached_tokens for answer in again)
    with pytest.raises(ValueError, match="null model has no blocks to write"):
        LLM("null", prefix_cache_dir="kv", **settings)
