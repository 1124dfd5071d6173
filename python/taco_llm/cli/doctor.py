"""`taco_llm doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from taco_llm.cli.parser import Parser


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="taco_llm doctor",
        description="Looks at this machine and installation, and says what is missing and what to do "
        "about it. Exit status 1 if taco_llm cannot run a model here.",
    )
    parser.add_argument("--json", action="store_true", help="Print the findings as JSON.")
    parser.add_argument(
        "--models", action="store_true", help="Print the architectures that run, with how each was verified."
    )
    settings = parser.parse(argv)
    if settings.models:
        from taco_llm.archs import catalog

        print(json.dumps(catalog.records(), indent=2) + "\n" if settings.json else catalog.text(), end="")
        return 0
    from taco_llm.doctor import examine

    findings = examine()
    if settings.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
        for finding in findings:
            print(f"{marks[finding.state]}  {finding.what}: {finding.detail}")
            if finding.advice:
                print(f"      -> {finding.advice}")
    broken = [finding for finding in findings if finding.state == "bad"]
    if not settings.json:
        print("taco_llm can run models here." if not broken else f"{len(broken)} thing(s) to put right.")
    return 1 if broken else 0
