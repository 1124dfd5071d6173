"""The application, and running it: sockets, TLS, signals, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import logging
import os
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from taco_llm.server import chat, completions, info, legacy
from taco_llm.server.errors import ApiError
from taco_llm.server.middleware import Guard
from taco_llm.server.options import ServerOptions
from taco_llm.server.state import STATE, State

logger = logging.getLogger("taco_llm.server")


def make_app(handle: Any, options: ServerOptions) -> web.Application:
    """The aiohttp application over one engine. Serve it with `make_runner`, whose limits belong to it.
    ValueError for options that are wrong or not built yet."""
    options.validate()
    state = State(handle, options)
    opened: set[Any] = {info.health, info.ready, info.ping, info.version}
    routes: list[tuple[str, str, Any]] = [
        ("GET", "/health", info.health),
        ("GET", "/ready", info.ready),
        ("GET", "/ping", info.ping),
        ("POST", "/ping", info.ping),
        ("GET", "/version", info.version),
        ("GET", "/load", info.load),
        ("GET", "/metrics", info.metrics),
        ("GET", "/speculation", info.speculation_view),
        ("GET", "/v1/cache", info.cache_view),
        ("POST", "/reset_prefix_cache", info.reset_prefix_cache),
        ("GET", "/v1/models", info.models),
        ("GET", "/v1/models/{model:.+}", info.model),
        ("POST", "/tokenize", info.tokenize),
        ("POST", "/detokenize", info.detokenize),
        ("POST", "/v1/completions", completions.completions),
        ("POST", "/v1/chat/completions", chat.chat_completions),
        ("POST", "/generate", legacy.generate),
    ]
    if options.open_metrics:
        opened.add(info.metrics)
    if options.page:
        page = info.Page()
        page_handler = page.get
        opened.add(page_handler)
        routes.append(("GET", "/", page_handler))
    work = {info.tokenize, info.detokenize, completions.completions, chat.chat_completions, legacy.generate}

    guard = Guard(state, opened, work)
    middlewares = [guard.middleware(), *(_load_middleware(name) for name in options.middleware)]
    app = web.Application(middlewares=middlewares, client_max_size=options.limits.max_body_bytes)
    app[STATE] = state
    for prefix in dict.fromkeys(("", (options.root_path or "").rstrip("/"))):
        for method, path, handler in routes:
            if method == "GET":
                app.router.add_get(prefix + path, handler)
            else:
                app.router.add_route(method, prefix + path, handler)
    app.on_response_prepare.append(guard.on_prepare)
    app.cleanup_ctx.append(_engine_context)
    return app


async def _engine_context(app: web.Application) -> AsyncIterator[None]:
    state = app[STATE]
    state.hub.attach(asyncio.get_running_loop())
    watch = asyncio.create_task(state.watch())
    yield
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    state.close()


def _load_middleware(name: str) -> Any:
    """--middleware package.module.name: an aiohttp middleware."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"--middleware {name}: cannot be imported ({e})") from None
    if inspect.isclass(found) or not callable(found):
        raise ValueError(
            f"--middleware {name} is no aiohttp middleware (a coroutine function of request and handler); "
            "ASGI middleware classes do not fit this server"
        )
    return found


def make_runner(app: web.Application) -> web.AppRunner:
    """The runner with the connection limits that the handlers rely on: a lost client cancels its handler."""
    limits = app[STATE].limits
    return web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=limits.keepalive_timeout,
        auto_decompress=False,
        max_line_size=limits.max_header_bytes,
        max_field_size=limits.max_header_bytes,
        lingering_time=2.0,
        shutdown_timeout=2.0,
    )


def run(handle: Any, options: ServerOptions) -> int:
    """Serves until SIGTERM or SIGINT, then drains. Returns the exit status: 0.

    On the first signal /ready and new requests get 503 at once, and the running ones have
    `options.shutdown_timeout` seconds to finish; a second signal cuts that short. Shuts the engine down."""
    _raise_file_limit()
    app = make_app(handle, options)
    try:
        if options.uvloop:
            _uvloop().run(_serve(app, options))
        else:
            asyncio.run(_serve(app, options))
    finally:
        handle.core.shutdown()
        gc.unfreeze()
    return 0


def _uvloop() -> Any:
    try:
        return importlib.import_module("uvloop")
    except ImportError:
        raise ValueError("--uvloop needs the uvloop package: pip install uvloop, or leave it out") from None


async def _serve(app: web.Application, options: ServerOptions) -> None:
    state = app[STATE]
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            hurry.set()
        state.draining = True
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    runner = make_runner(app)
    await runner.setup()
    try:
        try:
            await _site(runner, options).start()
        except OSError as e:
            where = options.uds or f"{options.host or '*'} port {options.port}"
            reason = e.strerror or str(e)
            raise ValueError(f"cannot listen on {where}: {reason}; choose another --port or --host") from None
        logger.info("serving %s at %s", ", ".join(state.model_names), _address(runner, options))
        if not state.keys.required:
            logger.info("no --api-key: everybody who can reach this address may use it")
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: collections need not look at it
        await stop.wait()
        await _drain(state, hurry)
    finally:
        await runner.cleanup()
        if options.uds:
            Path(options.uds).unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _drain(state: State, hurry: asyncio.Event) -> None:
    logger.info("draining: %d requests are running", state.requests_running)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + state.options.shutdown_timeout
    while state.requests_running and loop.time() < deadline and not hurry.is_set():
        await asyncio.sleep(0.02)
    if state.requests_running:
        logger.warning("aborting %d requests that have not finished", state.requests_running)
        state.fail_jobs(ApiError("The server is shutting down.", status=503))
        state.core.abort_all()
        deadline = loop.time() + 1.0
        while state.requests_running and loop.time() < deadline:
            await asyncio.sleep(0.02)
    logger.info("drained")


def _site(runner: web.AppRunner, options: ServerOptions) -> web.BaseSite:
    context = options.ssl_context()
    if options.uds:
        _remove_stale_socket(options.uds)
        old = os.umask(0o177)  # the socket is for this user alone
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(options.uds)
        finally:
            os.umask(old)
        return web.SockSite(runner, listener, ssl_context=context, backlog=1024)
    return web.TCPSite(
        runner, options.host, options.port, ssl_context=context, backlog=1024, reuse_address=True
    )


def _remove_stale_socket(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"--uds {path} exists and is no socket")
    Path(path).unlink()


def _address(runner: web.AppRunner, options: ServerOptions) -> str:
    if options.uds:
        return f"unix:{options.uds}"
    scheme = "https" if options.ssl_certfile else "http"
    host, port = runner.addresses[0][:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _raise_file_limit() -> None:
    """Every connection is a file descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
