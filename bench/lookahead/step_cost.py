"""What a step costs by its width, for compose.py: T(batch, drafts of a sequence, context).

    python bench/lookahead/step_cost.py --out cost.json [--model llama3-8b] [--device cuda]
        [--batch 1,4,8,16,32,64,128,200,256] [--nodes 0,1,...,63] [--context 512,2048,8192]

Random weights. "steps" are the executor's own: sampling, verification and compaction included, contexts made
up, so that no prompt has to be computed. All widths are taken at the first context, a few of them at the
others; a batch that is padded to more rows also with as many drafts as fill them. "engine" are steps that an
engine made, with all that the host does: nodes -1 is an engine without speculation, which runs ahead on a
device; others verify that many drafts in every sequence. What does not fit the device is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import lab
from taco_llm import _core

WIDE = (0, 3, 7, 15)  # at the other contexts
ENGINE_NODES = (1, 4)
ENGINE_CONTEXT = 64


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="llama3-8b", help="a shape of random_config.py, or a folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=numbers, default="1,4,8,16,32,64,128,200,256")
    parser.add_argument("--nodes", type=numbers, default="0,1,2,3,4,5,6,7,8,12,16,32,63")
    parser.add_argument("--context", type=numbers, default="512,2048,8192")
    parser.add_argument("--draft-rows", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=2, help="of 5 steps each; the median of their best")
    parser.add_argument("--budget", type=float, default=60, help="seconds; what is left then is left out")
    parser.add_argument("--machine", default="")
    args = parser.parse_args()

    started = time.monotonic()
    place = lab.Lab(args.model, device=args.device)
    loaded = time.monotonic()
    largest = max(args.batch)
    result: dict[str, Any] = {
        "machine": args.machine or place.backend.description,
        "model": args.model,
        "steps": [],
        "engine": [],
    }

    def left() -> float:
        return args.budget - (time.monotonic() - loaded)

    def save() -> None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")

    # The engines first: they say most. One without speculation, some that verify drafts.
    length = ENGINE_CONTEXT + 1024
    for nodes in (-1, *ENGINE_NODES):
        executor = place.executor(
            num_blocks=place.blocks_for(largest * (ENGINE_CONTEXT + 512), 0.5),
            max_len=length,
            sequences=largest,
            batched=8192,
            draft_rows=args.draft_rows if nodes >= 0 else 0,
        )
        drafter = _core.fixed_drafter(nodes, place.model.spec.vocab_size) if nodes >= 0 else None
        engine = _core.Engine(
            executor,
            max_num_batched_tokens=8192,
            max_num_seqs=largest,
            **lab.speculation(drafter, cost_model=False),
        )
        for batch in args.batch:
            if left() < 5 or batch * (nodes + 1) > args.draft_rows:
                continue
            seconds = lab.step_seconds(engine, batch, ENGINE_CONTEXT)
            result["engine"].append(
                {"batch": batch, "nodes": nodes, "context": ENGINE_CONTEXT, "seconds": seconds}
            )
            print(f"engine: batch {batch}, nodes {nodes}: {1e3 * seconds:.3f} ms", flush=True)
        engine.shutdown()
        del engine, executor
    save()

    longest = max(args.context) + 128
    executor = place.executor(
        num_blocks=place.blocks_for(largest * longest, 0.8),
        max_len=longest,
        sequences=largest,
        batched=max(8192, args.draft_rows),
        draft_rows=args.draft_rows,
    )
    result["padding"] = executor.step_sizes
    for number, context in enumerate((ENGINE_CONTEXT, *args.context)):
        for batch in args.batch:
            fill = next((size for size in executor.step_sizes if size >= batch), batch) - batch
            for nodes in sorted({*args.nodes, fill / batch}):
                few = (0, *ENGINE_NODES) if number == 0 else WIDE
                if (number != 1 and nodes not in (*few, fill / batch)) or left() < 1:
                    continue
                drafts = round(batch * nodes)
                times = [executor.time_step(batch, drafts, context) for _ in range(args.repeats)]
                if min(times) <= 0:
                    continue
                result["steps"].append(
                    {"batch": batch, "nodes": nodes, "context": context, "seconds": lab.median(times)}
                )
        save()
        print(f"context {context}: {len(result['steps'])} sizes, {left():.0f} s left", flush=True)
    print(f"loading took {loaded - started:.1f} s, measuring {time.monotonic() - loaded:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
