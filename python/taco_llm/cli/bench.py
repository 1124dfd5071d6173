"""`taco_llm bench latency|throughput|serve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from taco_llm.cli.parser import UsageError
from taco_llm.flag_table import nearest

KINDS = {
    "latency": "seconds that one batch of requests takes, in this process",
    "throughput": "tokens per second over many requests, in this process",
    "serve": "latencies and throughput of a running server, by its HTTP API",
}


def run(argv: Sequence[str]) -> int:
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<12}{what}" for name, what in KINDS.items())
        text = f"usage: taco_llm bench KIND [options]\n\nkinds:\n{lines}\n\n"
        text += "`taco_llm bench KIND -h` lists its options."
        print(text, file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    kind, rest = words[0], words[1:]
    if kind == "serve":
        from taco_llm.cli.bench_serve import run as run_serve

        return run_serve(rest)
    if kind in KINDS:
        from taco_llm.cli import bench_offline

        return bench_offline.run_latency(rest) if kind == "latency" else bench_offline.run_throughput(rest)
    near = nearest(kind, KINDS)
    raise UsageError(
        f"there is no bench {kind!r}; " + (f"did you mean {near}?" if near else ", ".join(KINDS))
    )
