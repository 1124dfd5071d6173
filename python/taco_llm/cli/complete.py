"""`taco_llm complete [MODEL]`: text goes in, its continuation comes out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from taco_llm import logging as taco_logging
from taco_llm.cli import talk
from taco_llm.cli.chat import show
from taco_llm.cli.parser import Parser, UsageError


def make_parser() -> Parser:
    parser = Parser(
        prog="taco_llm complete",
        usage="taco_llm complete [MODEL] [options]",
        description="Completes text, with a model loaded here or offered by a server at --url. The text is "
        "--prompt, or the input; in a terminal, each line is completed.",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="The text to complete.")
    talk.add_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    settings = make_parser().parse(argv)
    prompt = settings.prompt
    interactive = prompt is None and sys.stdin.isatty()
    if prompt is None and not interactive:
        prompt = sys.stdin.read()
    if prompt is not None and not prompt:
        raise UsageError("there is no text to complete; give --prompt, or text on the input")
    taco_logging.setup()
    talker = talk.open_talker(settings)
    try:
        if prompt is not None:
            show(talker.complete(prompt))
            return 0
        print(f"Completing with {talker.name}; Ctrl-D leaves, Ctrl-C stops a completion.", file=sys.stderr)
        while True:
            try:
                line = input("> ")
            except EOFError:
                return 0
            if line:
                show(talker.complete(line))
    finally:
        talker.close()
