"""`taco_llm chat [MODEL]`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from taco_llm import logging as taco_logging
from taco_llm.cli import talk
from taco_llm.cli.parser import Parser

HELP = "/clear forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


def make_parser() -> Parser:
    parser = Parser(
        prog="taco_llm chat",
        usage="taco_llm chat [MODEL] [options]",
        description="Talks to a model, loaded here or offered by a server at --url. Answers appear as they "
        f"are made. In the conversation: {HELP} Without a terminal, each line of the input is one message.",
    )
    parser.add_argument(
        "--system-prompt", metavar="TEXT", help="What the model is told before the conversation."
    )
    talk.add_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    settings = make_parser().parse(argv)
    interactive = sys.stdin.isatty()
    taco_logging.setup()
    talker = talk.open_talker(settings)
    start = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
    messages: talk.Messages = list(start)
    try:
        if interactive:
            print(f"Talking to {talker.name}. {HELP}", file=sys.stderr)
        for line in _lines(interactive):
            if line in ("/exit", "/quit"):
                break
            if line == "/clear":
                messages = list(start)
                continue
            messages.append({"role": "user", "content": line})
            answer, complete = show(talker.chat(messages))
            if complete:
                messages.append({"role": "assistant", "content": answer})
            else:
                messages.pop()  # an answer that was stopped is not part of the conversation
            if interactive and (speed := talk.report(talker)):
                print(speed, file=sys.stderr)
    finally:
        talker.close()
    return 0


def show(pieces: Iterator[str]) -> tuple[str, bool]:
    """Prints an answer as it comes. Returns it, and False when Ctrl-C stopped it."""
    text = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]  # a generator: aborts the request
        print(flush=True)
        return text, False
    print(flush=True)
    return text, True


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    try:
        import readline  # noqa: F401  # gives input() line editing and history
    except ImportError:
        pass
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        if line:
            yield line
