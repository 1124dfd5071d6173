"""Writes docs/architectures.md: python scripts/architectures.py [--check] [RESULT.json ...]

RESULT.json: what `tests/python/archs/device_parity.py run` recorded on a device; it replaces what the table
says of that device. --check: writes nothing, exit status 1 if the page is not what would be written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architectures.md"


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT / "python"))
    from taco_llm.archs import catalog

    check = "--check" in arguments
    for result in (a for a in arguments if a != "--check"):
        recorded = json.loads(Path(result).read_text(encoding="utf-8"))
        known = {**catalog.verified(), recorded["device"]: recorded["architectures"]}
        catalog.VERIFIED.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        catalog.verified.cache_clear()
    page = catalog.markdown()
    if check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page
        print("docs/architectures.md: " + ("ok" if same else "run `python scripts/architectures.py`"))
        return 0 if same else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
