"""From the engine's output queue to callbacks on an event loop: one eventfd wake, one poll."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taco_llm.cache_root import NO_ROOT

if TYPE_CHECKING:
    from taco_llm import _core

logger = logging.getLogger("taco_llm.output_hub")

Callback = Callable[[Any], None]  # takes a _core.Output


class OutputHub:
    """Shares one engine between many consumers of one thread.

    With `attach(loop)` outputs are dispatched whenever the engine has some; without a loop the owner calls
    `poll` itself. All methods belong on one thread (the loop's); the engine works in its own.
    A callback that raises loses its own request (it is aborted and reported in the log), no other.
    """

    def __init__(self, core: _core.Engine) -> None:
        self.core = core
        self.now = 0.0
        """time.monotonic() of the dispatch under way: one clock call for a whole batch."""
        self._callbacks: dict[int, Callback] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1

    def __len__(self) -> int:
        """Requests that have not finished."""
        return len(self._callbacks)

    def attach(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Dispatches on `loop` (default: the running one) from here on. RuntimeError if attached already."""
        if self._loop is not None:
            raise RuntimeError("the hub is already attached to an event loop")
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._fd = self.core.event_fd()
        self._loop.add_reader(self._fd, self._dispatch)

    def submit(
        self,
        prompt_ids: Sequence[int],
        core_params: Any,
        *,
        priority: int = 0,
        name_space: int = 0,
        cache_root: bytes = NO_ROOT,
        callback: Callback,
    ) -> int:
        """Queues a request; `callback` gets each of its outputs, the last with request_finished.

        Returns the request id. Raises what the core raises: ValueError for a request it cannot take,
        RuntimeError when it takes none (draining, dead, queue full)."""
        request_id = self.core.submit(prompt_ids, core_params, priority, name_space, cache_root)
        self._callbacks[request_id] = callback
        return request_id

    def abort(self, request_id: int) -> None:
        """Stops a request. Its callback is not called any more; unknown and finished ids are ignored."""
        if self._callbacks.pop(request_id, None) is not None:
            self.core.abort(request_id)

    def poll(self, timeout: float = 0.0) -> int:
        """Dispatches what there is, waiting up to `timeout` seconds for it. For use without a loop.
        Returns the number of outputs."""
        return self._deliver(self.core.poll(timeout))

    def close(self) -> None:
        """Detaches from the loop and aborts what still runs. The engine stays usable. Idempotent."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._loop = None
        for request_id in list(self._callbacks):
            self.abort(request_id)

    def _dispatch(self) -> None:
        self._deliver(self.core.poll(0.0))

    def _deliver(self, outputs: Sequence[Any]) -> int:
        self.now = time.monotonic()
        callbacks = self._callbacks
        for output in outputs:
            request_id = output.request
            try:
                callback = callbacks[request_id]
            except KeyError:  # aborted meanwhile
                continue
            if output.request_finished:
                del callbacks[request_id]
            try:
                callback(output)
            except Exception:
                logger.exception("the callback of request %d failed; the request is aborted", request_id)
                callbacks.pop(request_id, None)
                self.core.abort(request_id)
        return len(outputs)
