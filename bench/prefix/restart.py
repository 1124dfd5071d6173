"""What a server has of yesterday's conversations after it was killed: kill -9, start, the second turn.

    python bench/prefix/restart.py MODEL [--data bbh_tasks_and_cot_prompts.tar.gz] [--chats 8] [--tokens 48]
        [--settle 3] [--dtype bfloat16] [--json OUT]

A server with the disk tier answers the first turn of some chats and, --settle seconds later, is killed
without warning. A new one over the same folder answers their second turns (from disk). A server over an empty
folder answers the second turns cold (under a salt of their own), then both turns one after the other (the
second from the device): what it would have been without the kill. Texts of all three must be the same in
float32; in other types differences are only counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import prompts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serve"))
from served import Answer, Server  # noqa: E402


def line(name: str, answers: list[Answer]) -> str:
    first = statistics.median(answer.first for answer in answers)
    cached, asked = sum(a.cached_tokens for a in answers), sum(a.prompt_tokens for a in answers)
    return (
        f"{name:26s} {cached:6,} of {asked:6,} prompt tokens cached, first token after {first * 1e3:7.1f} ms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--settle", type=float, default=3.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tasks = prompts.few_shot(args.data, 2)[: args.chats]
    flags = ["--enable-prefix-caching", "--enable-prefix-cache-offload", "--cpu-prefill-memory-utilization",
             "0.05", "--prefix-cache-disk-gb", "2", "--dtype", args.dtype, "--device", "cpu"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)

        def start(where: str) -> Server:
            return Server(args.model, [*flags, "--prefix-cache-dir", str(base / where)], base / "log")

        server = start("kept")
        first = [server.complete(t.prefix + t.questions[0], args.tokens) for t in tasks]
        time.sleep(args.settle)
        before = server.cache()
        server.kill()
        second_turns = [
            task.prefix + task.questions[0] + answer.text + task.questions[1]
            for task, answer in zip(tasks, first, strict=True)
        ]
        server = start("kept")
        ready = server.ready_after
        restored = server.cache()
        from_disk = [server.complete(text, args.tokens) for text in second_turns]
        server.stop()
        server = start("empty")
        cold = [server.complete(text, args.tokens, cache_salt="cold") for text in second_turns]
        for task in tasks:
            server.complete(task.prefix + task.questions[0], args.tokens)
        from_device = [server.complete(text, args.tokens) for text in second_turns]
        server.stop()
    print(line("first turns, cold", first))
    print(line("second turns, after kill -9", from_disk))
    print(line("second turns, no kill", from_device))
    print(line("second turns, cold", cold))
    tiers = {tier["tier"]: tier["blocks"] for tier in before["tiers"]}
    found = {tier["tier"]: tier["blocks"] for tier in restored["tiers"]}
    print(f"blocks before the kill {tiers}, after the start {found}; ready after {ready:.2f} s")
    different = sum(
        a.text != b.text for kind in (from_disk, from_device) for a, b in zip(kind, cold, strict=True)
    )
    print(f"{different} of {2 * len(cold)} second turns differ from the cold ones")
    if args.json:
        rows = {"first": first, "from_disk": from_disk, "from_device": from_device, "cold": cold}
        report = {
            name: {
                "prompt_tokens": [a.prompt_tokens for a in answers],
                "cached_tokens": [a.cached_tokens for a in answers],
                "first_token_s": [a.first for a in answers],
            }
            for name, answers in rows.items()
        }
        args.json.write_text(json.dumps(report | {"different": different, "ready_s": ready}, indent=1) + "\n")
    return 1 if different and args.dtype == "float32" else 0


if __name__ == "__main__":
    sys.exit(main())
