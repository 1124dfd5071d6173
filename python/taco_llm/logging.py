"""Log lines to stderr: `INFO 04-28 16:10:04 builder.py:118] what happened`.

Nothing is set up by importing the package; the command line, `LLM` and the server call `setup`.
TACO_LLM_LOG_LEVEL (debug, info, warning, error) sets the level.
"""

from __future__ import annotations

import logging
import os
import sys

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR,
           "critical": logging.CRITICAL, "trace": logging.DEBUG}  # fmt: skip


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the stderr of the moment, so that capturing and redirecting it work."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of this package."""
    return logging.getLogger(name if name.startswith("taco_llm") else f"taco_llm.{name}")


def setup(level: str | None = None) -> None:
    """Sends the package's log to stderr, unless the program has configured it itself. Can be called again."""
    root = logging.getLogger("taco_llm")
    wanted = level or os.environ.get("TACO_LLM_LOG_LEVEL", "").lower() or None
    if not root.handlers and not logging.getLogger().handlers:
        handler = _Handler()
        line = "%(levelname)s %(asctime)s %(filename)s:%(lineno)d] %(message)s"
        handler.setFormatter(logging.Formatter(line, datefmt="%m-%d %H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
        root.setLevel(logging.INFO)
    if wanted is not None:
        if wanted not in _LEVELS:
            raise ValueError(f"log level {wanted!r} is not one of {', '.join(_LEVELS)}")
        root.setLevel(_LEVELS[wanted])
