"""OutputHub over the fake engine: dispatch, abort, callbacks that fail."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine
from taco_llm.output_hub import OutputHub
from waiting import PATIENCE, wait_until

PARAMS = SimpleNamespace(max_tokens=5, best_of=1, logprobs=-1, prompt_logprobs=-1)


@pytest.fixture
def engine() -> Any:
    engine = FakeEngine()
    yield engine
    engine.shutdown()


def poll_until_empty(hub: OutputHub) -> None:
    wait_until(lambda: (hub.poll(), not len(hub))[1])


def test_each_request_gets_its_own_outputs_in_order(engine: FakeEngine) -> None:
    hub = OutputHub(engine)  # type: ignore[arg-type]
    seen: dict[int, list[Any]] = {}
    ids = [
        hub.submit([i], PARAMS, callback=lambda o: seen.setdefault(o.request, []).append(o)) for i in range(8)
    ]
    poll_until_empty(hub)
    assert sorted(seen) == sorted(ids)
    for outputs in seen.values():
        assert "".join(o.text for o in outputs) == " w0 w1 w2 w3 w4" and outputs[-1].request_finished


def test_a_failing_callback_loses_its_own_request_alone(engine: FakeEngine, caplog: Any) -> None:
    hub = OutputHub(engine)  # type: ignore[arg-type]

    def fail(output: Any) -> None:
        raise KeyError("mine")

    good: list[Any] = []
    bad = hub.submit([1], SimpleNamespace(**{**vars(PARAMS), "max_tokens": 10**6}), callback=fail)
    hub.submit([2], PARAMS, callback=good.append)
    poll_until_empty(hub)
    assert len(good) == 5 and engine.aborted == [bad] and f"request {bad} failed" in caplog.text


def test_abort_silences_at_once_and_is_idempotent(engine: FakeEngine) -> None:
    hub = OutputHub(engine)  # type: ignore[arg-type]
    seen: list[Any] = []
    request = hub.submit([1], SimpleNamespace(**{**vars(PARAMS), "max_tokens": 10**6}), callback=seen.append)
    while not seen:
        hub.poll()
    hub.abort(request)
    count = len(seen)
    hub.abort(request)
    hub.abort(12345)
    time.sleep(0.02)
    hub.poll()
    assert len(seen) == count and engine.aborted == [request] and len(hub) == 0


def test_refused_request_leaves_no_trace(engine: FakeEngine) -> None:
    hub = OutputHub(engine)  # type: ignore[arg-type]
    engine.refuse = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        hub.submit([1], PARAMS, callback=print)
    assert len(hub) == 0


def test_on_a_loop(engine: FakeEngine) -> None:
    async def main() -> list[str]:
        hub = OutputHub(engine)  # type: ignore[arg-type]
        hub.attach()
        with pytest.raises(RuntimeError, match="already"):
            hub.attach()
        done = asyncio.get_running_loop().create_future()
        texts: list[str] = []

        def take(output: Any) -> None:
            texts.append(output.text)
            if output.request_finished:
                done.set_result(None)

        hub.submit([1], PARAMS, callback=take)
        left = hub.submit(
            [1], SimpleNamespace(**{**vars(PARAMS), "max_tokens": 10**6}), callback=lambda o: None
        )
        await asyncio.wait_for(done, PATIENCE)
        hub.close()
        hub.close()
        assert engine.aborted == [left]
        return texts

    assert "".join(asyncio.run(main())) == " w0 w1 w2 w3 w4"
