"""AsyncLLMEngine on the null model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from taco_llm import LLM, AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from taco_llm.async_engine import EngineDeadError
from taco_llm.engine_args import NotBuiltError
from waiting import PATIENCE


@pytest.fixture()
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 2 ms, so that there is time to interrupt a request."""
    monkeypatch.setenv("TACO_NULL_STEP_SECONDS", "0.002")


def with_engine(test: Callable[[AsyncLLMEngine], Coroutine[Any, Any, None]]) -> None:
    """Runs the coroutine with an engine of its own."""

    async def run() -> None:
        args = AsyncEngineArgs(model="null", max_model_len=4096)
        engine = AsyncLLMEngine.from_engine_args(args)
        try:
            await asyncio.wait_for(test(engine), PATIENCE)
        finally:
            engine.shutdown()

    asyncio.run(run())


async def last(engine: AsyncLLMEngine, prompt: Any, name: str, **params: Any) -> Any:
    final = None
    async for output in engine.generate(prompt, SamplingParams(**params), name):
        final = output
    return final


async def idle(engine: AsyncLLMEngine) -> None:
    """Waits until all blocks are free again."""
    while (
        stats := engine.handle.core.stats()
    ).running + stats.waiting or stats.free_blocks < stats.num_blocks:
        await asyncio.sleep(0.01)


def test_outputs_are_cumulative() -> None:
    async def check(engine: AsyncLLMEngine) -> None:
        seen = []
        async for output in engine.generate("hello", SamplingParams(max_tokens=50), "a"):
            assert output.request_id == "a" and output.prompt == "hello"
            seen.append(output.outputs[0])
        assert seen[-1].finish_reason == "length" and len(seen[-1].token_ids) == 50 and output.finished
        for one, next_one in zip(seen, seen[1:], strict=False):
            assert len(one.token_ids) < len(next_one.token_ids)
            assert next_one.text.startswith(one.text)
            assert tuple(next_one.token_ids[: len(one.token_ids)]) == tuple(one.token_ids)

    with_engine(check)


def test_many_requests_get_their_own_answers() -> None:
    with LLM("null", max_model_len=4096) as llm:
        prompts = [f"request {number}" for number in range(100)]
        wanted = [
            output.outputs[0].text for output in llm.generate(prompts, SamplingParams(), use_tqdm=False)
        ]

    async def check(engine: AsyncLLMEngine) -> None:
        found = await asyncio.gather(*(last(engine, prompt, prompt) for prompt in prompts))
        assert [output.outputs[0].text for output in found] == wanted
        await idle(engine)

    with_engine(check)


def test_leaving_the_generator_aborts(slow: None) -> None:
    async def check(engine: AsyncLLMEngine) -> None:
        stream = engine.generate("x", SamplingParams(max_tokens=4000), "a")
        await stream.__anext__()
        await stream.aclose()
        await idle(engine)

        task = asyncio.create_task(last(engine, "y", "b", max_tokens=4000))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(engine)
        assert engine.handle.core.stats().finished_abort == 2
        await last(engine, "z", "a", max_tokens=3)  # the name is free again

    with_engine(check)


def test_abort_ends_the_generator(slow: None) -> None:
    async def check(engine: AsyncLLMEngine) -> None:
        task = asyncio.create_task(last(engine, "y", "b", max_tokens=4000))
        await asyncio.sleep(0.05)
        await engine.abort("b")
        await engine.abort("unknown")
        output = await task
        assert output is None or not output.finished
        await idle(engine)

    with_engine(check)


def test_errors(slow: None) -> None:
    async def check(engine: AsyncLLMEngine) -> None:
        with pytest.raises(ValueError, match="4096"):
            await last(engine, "x" * 5000, "a")
        with pytest.raises(ValueError, match="empty"):
            await last(engine, "", "a")
        with pytest.raises(NotBuiltError, match="lora_request"):
            await engine.generate("x", SamplingParams(), "a", lora_request=object()).__anext__()
        stream = engine.generate("x", SamplingParams(max_tokens=4000), "a")
        await stream.__anext__()
        with pytest.raises(ValueError, match="still running"):
            await last(engine, "x", "a")
        await stream.aclose()

    with_engine(check)


def test_long_prompts_are_tokenised_beside_the_loop() -> None:
    async def check(engine: AsyncLLMEngine) -> None:
        output = await last(engine, "x" * 3000, "a", max_tokens=3)
        assert len(output.prompt_token_ids) == 3000

    with_engine(check)


def test_questions_about_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    async def check(engine: AsyncLLMEngine) -> None:
        await engine.check_health()
        assert engine.is_running and not engine.errored
        config = await engine.get_model_config()
        assert (config.model, config.max_model_len) == ("null", 4096)
        assert (await engine.get_tokenizer()).encode("a") == [97]
        await last(engine, "x", "a", max_tokens=5)
        await engine.do_log_stats()
        with pytest.raises(NotBuiltError):
            await engine.encode("x").__anext__()

    with caplog.at_level("INFO", logger="taco_llm"):
        import logging

        logging.getLogger("taco_llm").propagate = True
        with_engine(check)
    assert "generated tokens/s" in caplog.text and "KV cache" in caplog.text


def test_shutdown_wakes_those_who_wait(slow: None) -> None:
    async def check(engine: AsyncLLMEngine) -> None:
        task = asyncio.create_task(last(engine, "y", "b", max_tokens=4000))
        await asyncio.sleep(0.05)
        engine.shutdown()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(EngineDeadError):
            await engine.check_health()
        with pytest.raises(EngineDeadError):
            await last(engine, "x", "c")

    with_engine(check)


def test_an_engine_belongs_to_one_loop() -> None:
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="null"))
    try:
        asyncio.run(last(engine, "x", "a", max_tokens=2))
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(last(engine, "x", "a", max_tokens=2))
    finally:
        engine.shutdown()
