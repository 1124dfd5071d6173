"""Servers in threads, over a fake engine or over the real core's null model."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

try:
    from taco_llm import _core

    HAVE_CORE = hasattr(_core, "NullExecutor")
except ImportError:  # the fake engine's tests run without the extension; it only hands parameters through
    HAVE_CORE = False
    stub = ModuleType("taco_llm._core")
    stub.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    sys.modules["taco_llm._core"] = stub

from aiohttp import web  # noqa: E402
from fake_engine import FakeEngine, fake_handle  # noqa: E402
from taco_llm.server.app import make_app, make_runner  # noqa: E402
from taco_llm.server.options import ServerOptions  # noqa: E402
from taco_llm.server.state import STATE, State  # noqa: E402
from waiting import PATIENCE  # noqa: E402


class Server:
    """A server on a free port, in a thread with an event loop of its own."""

    def __init__(self, handle: Any, options: ServerOptions) -> None:
        self.handle = handle
        self.options = options
        self.app: web.Application = make_app(handle, options)
        self.state: State = self.app[STATE]
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._started.wait(PATIENCE), "the server did not start"
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._stop = asyncio.Event()
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = make_runner(self.app)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.options.ssl_context()).start()
            self.port = runner.addresses[0][1]
        except BaseException as e:
            self._failure = e
            self._started.set()
            return
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    @property
    def url(self) -> str:
        scheme = "https" if self.options.ssl_certfile else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    def call(self, function: Any, *args: Any) -> None:
        self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server did not stop"


@contextmanager
def serving(handle: Any, **options: Any) -> Iterator[Server]:
    server = Server(handle, ServerOptions(**options))
    try:
        yield server
    finally:
        server.close()
        handle.core.shutdown()


@pytest.fixture(scope="module")
def fake() -> Iterator[Server]:
    """Without keys, one token per millisecond."""
    with serving(fake_handle()) as server:
        yield server


@pytest.fixture
def make_fake() -> Iterator[Any]:
    """make_fake(engine options) (server options) -> Server; all are closed at the end."""
    contexts = []

    def make(
        engine: FakeEngine | None = None, handle: dict[str, Any] | None = None, **options: Any
    ) -> Server:
        context = serving(fake_handle(engine, **(handle or {})), **options)
        contexts.append(context)
        return context.__enter__()

    yield make
    for context in contexts:
        context.__exit__(None, None, None)
