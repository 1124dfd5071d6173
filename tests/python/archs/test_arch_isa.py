"""Every architecture again with the CPU backend forced down to each instruction set that the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import arch_zoo
import numpy as np
import parity
import pytest
from taco_llm import _core

LEVELS = ["generic", "avx2", "avx512", "amx"]


def lower_levels() -> list[str]:
    """The levels below the best one of this machine, which the other tests run on."""
    best = _core.cpu_info()["detected"]
    return LEVELS[: LEVELS.index(best)] if best in LEVELS else ["generic"]


@pytest.mark.parametrize("isa", lower_levels())
def test_parity_on_lower_isa(reference, tmp_path, isa):
    names = [n for n, c in arch_zoo.CASES.items() if c.save != "bin"]  # .bin: the weights of another case
    folders = []
    for name in names:
        ref = reference(name)
        np.save(ref.folder / "ids.npy", np.array(ref.ids))
        folders.append(str(ref.folder))
    out = tmp_path / "logits.npz"
    subprocess.run(
        [sys.executable, str(Path(parity.__file__)), str(out), *folders],
        env={**os.environ, "TACO_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=300,
    )
    with np.load(out) as results:
        assert str(results["isa"]) == isa
        for name in names:
            ref = reference(name)
            assert parity.error(results[name], ref.logits) < parity.TOLERANCE, name
            tokens = results[name][ref.prompt_len - 1 : -1].argmax(-1)
            assert tokens.tolist() == ref.ids[ref.prompt_len :], name
