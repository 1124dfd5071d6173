"""`import taco_llm` is quick and lazy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import taco_llm


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_import_is_quick() -> None:
    code = "import time; t = time.process_time(); import taco_llm; print(time.process_time() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.05  # of the CPU's, which other programs do not use up


def test_import_loads_nothing_else() -> None:
    code = "import sys; import taco_llm; print(sorted(m for m in sys.modules if m.startswith('taco_llm')))"
    assert run(code) == "['taco_llm']"
    heavy = (
        "import sys; import taco_llm.cli.serve; "
        "print([m for m in ('numpy', 'torch', 'aiohttp', 'transformers') if m in sys.modules])"
    )
    assert run(heavy) == "[]"


def test_names() -> None:
    from taco_llm.engine_args import EngineArgs

    assert taco_llm.EngineArgs is EngineArgs
    assert set(taco_llm.__all__) <= set(dir(taco_llm))
    assert all(getattr(taco_llm, name) is not None for name in taco_llm.__all__)


@pytest.mark.parametrize(
    "name", ["LoRARequest", "PromptAdapterRequest", "LLMGuidedOptions", "GuidedDecodingRequest"]
)
def test_later_names_say_so(name: str) -> None:
    with pytest.raises(AttributeError, match="not built yet"):
        getattr(taco_llm, name)
    with pytest.raises(AttributeError, match="no attribute"):
        taco_llm.nothing_of_the_kind  # noqa: B018
