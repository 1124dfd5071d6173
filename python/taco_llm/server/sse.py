"""Server-sent events, written straight to the transport.

aiohttp's own `StreamResponse.write` is a coroutine with several layers; at one call per token it would cost
more than everything else here. The response is prepared and ended by aiohttp; in between, chunks of the
chunked encoding are put together here, one `transport.write` each.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from typing import Any

from aiohttp import HttpVersion11, web

from taco_llm.server.body import timeout
from taco_llm.server.errors import ApiError, error_body
from taco_llm.server.generation import Collector, Job, Request
from taco_llm.server.state import State

logger = logging.getLogger("taco_llm.server")

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Dropped(Exception):
    """The client reads too slowly, or is gone."""


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


class ChunkWriter:
    """The body of one streamed response. A client that does not read gets its connection cut."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._response: web.StreamResponse | None = None
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self.chunked = True

    async def open(self, request: web.Request, headers: dict[str, str]) -> None:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        self._response = response
        self._transport = request.transport  # type: ignore[assignment]  # None: the client is gone
        self.chunked = request.version >= HttpVersion11
        if self._transport is not None and self._transport.get_extra_info("sslcontext") is None:
            found = self._transport.get_extra_info("socket")
            self._fd = found.fileno() if found is not None else -1

    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def write(self, data: bytes) -> None:
        self.put(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data, self.unsent())

    def put(self, data: bytes, unsent: int) -> None:
        """Writes what is framed already; `unsent` as the method has it. With nothing unsent before it the
        bytes go to the socket without the transport's help, which is cheaper; what the kernel does not take
        is left to the transport."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not unsent and self._fd >= 0:
            try:
                sent = os.write(self._fd, data)
            except OSError:  # a full socket, or a broken one: the transport deals with both
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    async def end(self) -> web.StreamResponse:
        """Ends the body. A client that has not read the rest in time is cut off."""
        assert self._response is not None
        try:
            async with timeout(self._state.limits.stalled_reader_timeout):
                await self._response.write_eof()
        except (asyncio.TimeoutError, ConnectionError):
            self.cut()
        return self._response

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class StreamJob(Job):
    """Streams text as it comes. Subclasses give the frames of their route.

    A token's frame is prefix + JSON-escaped text (made by the engine) + suffix. While the client leaves more
    than `soft_buffer_bytes` unsent, text is held back and coalesced per choice; beyond `hard_buffer_bytes`,
    or after `stalled_reader_timeout` seconds, the stream is dropped.
    """

    headers = HEADERS
    pings = True

    def __init__(self, state: State, request: Request, *, plain: bool) -> None:
        super().__init__(state, request)
        self._plain = plain  # frames hold text alone: no logprobs, token ids or running usage
        self._writer = ChunkWriter(state)
        self._early = []  # until the header is out
        self._started = [False] * request.choices
        self._flowing = [False] * request.choices  # started, and its frames are plain
        self._many = request.choices > 1
        self._hub = state.hub
        self._note_gap = state.metrics.inter_token.observe
        self._prefix = [b""] * request.choices
        self._suffix = b""
        self._frame_size = [0] * request.choices  # without the text
        self._held: dict[int, list[bytes]] = {}
        self._held_bytes = 0
        self._held_since = 0.0
        self._held_usual = 0
        self._tail = b""  # what `on_done` appends to the last frame
        self._timer: asyncio.TimerHandle | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self._soft = state.limits.soft_buffer_bytes
        self._hard = state.limits.hard_buffer_bytes
        self.tokens_seen = [0] * request.choices

    # --- what a route adds

    def set_frames(self, prefixes: list[bytes], suffix: bytes) -> None:
        """The bytes around a plain text delta, per choice."""
        self._prefix, self._suffix = prefixes, suffix
        self._frame_size = [len(prefix) + len(suffix) for prefix in prefixes]

    def first_frames(self, choice: int) -> bytes:
        """Sent before a choice's first delta."""
        return b""

    def frame(self, choice: int, prompt: int, output: Any) -> bytes:
        """The frame of an output that is not plain: the last of its choice, or one with logprobs."""
        raise NotImplementedError

    def usage_frame(self) -> bytes:
        """Sent after the last choice has finished."""
        return b""

    # --- the walk of an output

    def _receive(self, output: Any, prompt: int = 0) -> None:
        # Nearly all outputs are a bit of text for a stream under way: they take this short path. It is worth
        # being short: one Python function more is a few per cent of the server's whole cost per token.
        choice = prompt * self.request.n + output.index if self._many else 0
        if not self._flowing[choice] or output.finish_reason is not None:
            super()._receive(output, prompt)
            return
        now = self._hub.now
        self._note_gap(now - self._last[choice])
        self._last[choice] = now
        text = output.text_json
        if not text:
            return
        writer = self._writer
        unsent = writer.unsent()
        if unsent > self._soft or self._held_bytes:
            self._hold(choice, text)
        elif writer.chunked:
            size = self._frame_size[choice] + len(text)
            writer.put(b"%x\r\n%b%b%b\r\n" % (size, self._prefix[choice], text, self._suffix), unsent)
        else:
            writer.put(self._prefix[choice] + text + self._suffix, unsent)

    def on_output(self, prompt: int, output: Any) -> None:
        choice = prompt * self.request.n + output.index
        frames = b""
        if not self._started[choice]:
            self._stop_pings()
            self._started[choice] = True
            self._flowing[choice] = self._plain
            frames = self.first_frames(choice)
            if self._plain and output.finish_reason is None:
                text = output.text_json
                self._send(frames + self._prefix[choice] + text + self._suffix if text else frames)
                return
        if output.finish_reason is None and not output.token_ids:
            self._send(frames)
            return
        frames += self.frame(choice, prompt, output)
        if output.request_finished and self._unfinished == 1:  # the very last: one write with what follows it
            self._last_frames = frames
            return
        self._send(frames)

    _last_frames = b""

    def on_done(self) -> None:
        self._release()
        self._send(self._last_frames + self.usage_frame() + DONE)

    def _send(self, frames: bytes) -> None:
        """Frames that cannot be coalesced: in order after what is held."""
        if not frames:
            return
        if self._held_bytes:
            self._release()
        self._writer.write(frames)
        if self._writer.unsent() > self._hard:
            self._drop()

    def _hold(self, choice: int, text: bytes) -> None:
        loop = asyncio.get_running_loop()
        if not self._held_bytes:
            self._held_since = loop.time()
            self._held_usual = self._writer.unsent()
            self._timer = loop.call_later(0.1, self._look_again)
        self._held.setdefault(choice, []).append(text)
        self._held_bytes += len(text)
        if self._held_bytes + self._writer.unsent() > self._hard:
            self._drop()

    def _look_again(self) -> None:
        """While text is held: has the client read on?"""
        loop = asyncio.get_running_loop()
        unsent = self._writer.unsent()
        if unsent <= self._soft:
            self._release()
            return
        if unsent < self._held_usual:  # slow, but reading
            self._held_usual, self._held_since = unsent, loop.time()
        if loop.time() - self._held_since > self.state.limits.stalled_reader_timeout:
            self._drop()
            return
        self._timer = loop.call_later(0.1, self._look_again)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held, self._held_bytes = self._held, {}, 0
        for choice, parts in held.items():
            self._writer.write(self._prefix[choice] + b"".join(parts) + self._suffix)

    def _drop(self) -> None:
        logger.warning("a stream was dropped: its client does not read")
        self._held, self._held_bytes = {}, 0
        self._writer.cut()
        if not self.future.done():
            self.future.set_exception(Dropped())

    def _ping(self) -> None:
        self._writer.write(PING)
        loop = asyncio.get_running_loop()
        self._ping_timer = loop.call_later(self.state.options.ping_seconds, self._ping)

    def _stop_pings(self) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None

    def close(self) -> None:
        self._stop_pings()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().close()

    def error_frames(self, error: ApiError) -> bytes:
        return event(error_body(error)) + DONE

    async def run(self, request: web.Request) -> web.StreamResponse:
        """The whole response. An ApiError from here was raised before anything was sent."""
        try:
            self.submit()
            await self._writer.open(request, self.headers)
            if self.pings:
                loop = asyncio.get_running_loop()
                self._ping_timer = loop.call_later(self.state.options.ping_seconds, self._ping)
            self.release_early()
            try:
                await self.future
            except ApiError as e:
                self._release()
                self._writer.write(self.error_frames(e))
            except Dropped:
                pass
            return await self._writer.end()
        finally:
            self.close()


async def stream_when_done(
    request: web.Request, job: Collector, render: Callable[[], bytes]
) -> web.StreamResponse:
    """A stream whose content is known only at the end (best_of > n): pings, then all of `render`'s frames."""
    state = job.state
    writer = ChunkWriter(state)
    try:
        job.submit()
        await writer.open(request, HEADERS)
        while not job.future.done():
            await asyncio.wait([job.future], timeout=state.options.ping_seconds)
            if not job.future.done():
                writer.write(PING)
        try:
            job.future.result()
            writer.write(render() + DONE)
        except ApiError as e:
            writer.write(event(error_body(e)) + DONE)
        return await writer.end()
    finally:
        job.close()
