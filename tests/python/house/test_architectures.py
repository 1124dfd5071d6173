"""The page of architectures is what its script makes of the registry, and says something of each.

Needs the native core to be importable beside the package, nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from taco_llm.archs import catalog
from taco_llm.archs.registry import ALIASES, ARCHITECTURES
from taco_llm.cli import doctor

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts/architectures.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_architecture_is_described() -> None:
    assert set(ALIASES.values()) <= set(ARCHITECTURES)
    for name, (module, _, models, examples) in ARCHITECTURES.items():
        assert (ROOT / f"python/taco_llm/archs/{module}.py").is_file(), name
        assert models and all(example.count("/") == 1 for example in examples.split()) and examples, name


def test_what_is_recorded_passed_and_covers_all() -> None:
    assert "CPU" in catalog.verified()
    for device, results in catalog.verified().items():
        for name, result in results.items():
            assert result["passed"] == result["cases"] >= 3, (device, name)
            assert result["worst"] < 1e-4, (device, name)
    assert set(catalog.verified()["CPU"]) == set(ARCHITECTURES)


def test_doctor_prints_the_same(capsys) -> None:
    assert doctor.run(["--models"]) == 0
    shown = capsys.readouterr().out
    page = (ROOT / "docs/architectures.md").read_text(encoding="utf-8")
    for models, architecture, examples, reference, *results in catalog.rows()[1:]:
        for part in (models, architecture, examples, reference, *results):
            assert part in shown and part in page
    assert doctor.run(["--models", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(ARCHITECTURES)
