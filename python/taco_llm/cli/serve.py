"""`taco_llm serve [MODEL]`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import threading
from collections.abc import Sequence

from taco_llm import logging as taco_logging
from taco_llm.cli.parser import Parser, UsageError
from taco_llm.cli.serve_flags import ServeFlags
from taco_llm.engine_args import AsyncEngineArgs
from taco_llm.flag_table import add_flags

logger = taco_logging.get_logger(__name__)


def make_parser() -> Parser:
    parser = Parser(
        prog="taco_llm serve",
        usage="taco_llm serve [MODEL] [options]",
        description="Offers a model over HTTP: OpenAI's completions and chat API at /v1, and a chat page "
        "at /. Without a model it serves the embedded SmolLM2-135M-Instruct.",
    )
    add_model_tag(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings (`flag: value`); the command line wins over it.",
    )
    add_flags(parser, ServeFlags)
    AsyncEngineArgs.add_cli_args(parser)
    return parser


def add_model_tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_tag",
        nargs="?",
        metavar="MODEL",
        help="Folder, .gguf file or hub id of the model (as --model).",
    )


def engine_args(settings: argparse.Namespace) -> AsyncEngineArgs:
    """The engine's settings of a parsed command line, with the positional model in its place."""
    tag = settings.model_tag
    if tag is not None:
        if settings.model not in (None, tag) and not getattr(settings, "config", None):
            raise UsageError(f"two models are named: {tag} and --model {settings.model}; name one")
        settings.model = tag
    args = AsyncEngineArgs.from_cli_args(settings)
    assert isinstance(args, AsyncEngineArgs)
    return args


def serve_flags(settings: argparse.Namespace) -> ServeFlags:
    names = [field.name for field in dataclasses.fields(ServeFlags)]
    return ServeFlags(**{name: getattr(settings, name) for name in names})


def run(argv: Sequence[str]) -> int:
    settings = make_parser().parse(argv)
    flags, args = serve_flags(settings), engine_args(settings)
    taco_logging.setup(flags.uvicorn_log_level if flags.uvicorn_log_level != "info" else None)
    # All that can be refused is refused before the model is loaded.
    try:
        flags.check()
        args.check()
        options = flags.to_options(disable_log_requests=args.disable_log_requests)
        options.validate()
    except ValueError as error:
        raise UsageError(str(error)) from error
    for note in flags.notes():
        logger.info("%s", note)
    # The server's imports take as long as a small model's loading: side by side, it is ready sooner.
    threading.Thread(target=importlib.import_module, args=("taco_llm.server.app",), daemon=True).start()
    from taco_llm.engine import build

    handle = build(args)
    from taco_llm.server import app

    options.served_model_name = handle.served_names
    try:
        app.run(handle, options)
    finally:
        handle.shutdown()
    return 0
