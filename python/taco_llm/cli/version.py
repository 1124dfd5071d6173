"""`taco_llm version`."""

from __future__ import annotations

from collections.abc import Sequence

from taco_llm import __version__
from taco_llm.cli.parser import Parser


def run(argv: Sequence[str]) -> int:
    Parser(prog="taco_llm version", description="Prints the version.").parse(argv)
    print(__version__)
    return 0
