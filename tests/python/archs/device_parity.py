"""The architectures' parity on a device, in one process and two steps, the first of which needs transformers.

    python tests/python/archs/device_parity.py make DIR     tiny models, prompts and the references' logits
    TACO_TEST_DEVICE=cuda python tests/python/archs/device_parity.py run DIR [RESULT.json]

DIR may be an archive, or a folder that holds it, archs.tar.xz: a tenth of the size, to carry to a machine.

`run` needs neither torch nor pytest: it computes what test_arch_parity.py asks for (float32 logits of a
prefill and of 32 greedy tokens, one by one) and prints a line for each model; exit status 1 if any is beyond
the tolerance. RESULT.json: where to record it for the table of architectures (scripts/architectures.py).
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

ARCHIVE = ".tar.xz"


def make(root: Path) -> None:
    import arch_zoo
    import torch

    torch.set_num_threads(1)
    if root.name.endswith(ARCHIVE):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            with tarfile.open(root, "w:xz") as archive:
                archive.add(folder, ".")
        return
    for name, case in arch_zoo.CASES.items():
        if case.save == "bin":  # would need torch to be read
            continue
        model = arch_zoo.make_model(case)
        arch_zoo.save(case, model, root / name)
        ids = arch_zoo.greedy(model, arch_zoo.prompt(), arch_zoo.NEW_TOKENS)
        np.savez(
            root / name / "reference.npz",
            ids=np.array(ids),
            logits=arch_zoo.logits(model, ids),
            prompt_len=arch_zoo.PROMPT,
            reference="plain float32 model" if isinstance(case, arch_zoo.PlainCase) else "transformers",
            architecture=case.architecture,
        )


def run(root: Path, result: Path | None) -> int:
    if (root / "archs.tar.xz").is_file():
        root = root / "archs.tar.xz"
    if root.name.endswith(ARCHIVE):
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(root) as archive:
                archive.extractall(folder, filter="data")
            return run(Path(folder), result)
    import parity

    failed, worst = [], 0.0
    recorded: dict[str, dict] = {}
    begin = time.perf_counter()
    print(parity.backend().description)
    for folder in sorted(path.parent for path in root.glob("*/reference.npz")):
        with np.load(folder / "reference.npz") as stored:
            ids, expected, prompt_len = stored["ids"].tolist(), stored["logits"], int(stored["prompt_len"])
            entry = recorded.setdefault(
                str(stored["architecture"]),
                {"reference": str(stored["reference"]), "cases": 0, "passed": 0, "worst": 0.0},
            )
        entry["cases"] += 1
        try:
            model = parity.load(folder)
            prefill = parity.error(parity.run(model, ids[:prompt_len]), expected[:prompt_len])
            chunked = parity.error(parity.run(model, ids, parity.split(len(ids), [13, 1, 7])), expected)
            steps = [prompt_len] + [1] * (len(ids) - prompt_len)
            out = parity.run(model, ids, steps)
            decode = parity.error(out, expected)
            same = out[prompt_len - 1 : -1].argmax(-1).tolist() == ids[prompt_len:]
        except Exception as error:
            print(f"{folder.name:<28} {type(error).__name__}: {error}")
            failed.append(folder.name)
            continue
        good = max(prefill, chunked, decode) < parity.TOLERANCE and same
        entry["passed"] += good
        entry["worst"] = max(entry["worst"], prefill, chunked, decode)
        worst = max(worst, prefill, chunked, decode)
        if not good:
            failed.append(folder.name)
        print(
            f"{folder.name:<28} prefill {prefill:.1e}  chunks {chunked:.1e}  decode {decode:.1e}  greedy "
            f"{'equal' if same else 'DIFFERENT'}{'' if good else '  FAILED'}"
        )
    count = len(list(root.glob("*/reference.npz")))
    print(f"{count - len(failed)} of {count} pass, worst {worst:.1e}, {time.perf_counter() - begin:.1f} s")
    if result is not None:
        device = "CPU" if parity.DEVICE == "cpu" else parity.backend().description.split(",")[0]
        for entry in recorded.values():
            entry["worst"] = float(f"{entry['worst']:.1e}")
        result.write_text(json.dumps({"device": device, "architectures": recorded}, indent=1))
    return 1 if failed or not count else 0


def main() -> int:
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("make", "run"):
        print(__doc__, file=sys.stderr)
        return 2
    root = Path(sys.argv[2])
    if sys.argv[1] == "make":
        make(root)
        return 0
    return run(root, Path(sys.argv[3]) if len(sys.argv) == 4 else None)


if __name__ == "__main__":
    sys.exit(main())
