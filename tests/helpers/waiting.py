"""Waiting for what another thread or process is going to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Longer than anything takes on a machine that is busy with other things: only what never comes is missed.
PATIENCE = 120.0


def wait_until(condition: Callable[[], Any], what: Any = "", seconds: float = PATIENCE) -> Any:
    """The condition's value as soon as it is true. AssertionError when it does not become so; `what`, or what
    it returns if it is a function, is told."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited in vain: {what() if callable(what) else what}")
        time.sleep(0.005)
    return value
