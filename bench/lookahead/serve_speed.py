"""What speculation gives through the server: the same requests to two servers, one with the lookahead cache.

    python bench/lookahead/serve_speed.py MODEL STREAMS.jsonl.gz --out results.json [--batch 1,4,8,16,32]
        [--requests 12] [--tasks summarization,rag,code] [--warm] [--repeats 2] [--on-args "--flag ..."]

Both servers run all the time, and take turns request by request (batch 1) or round by round, so that whatever
else the machine does meets both. A request repeats the recorded settings: greedy, so many new tokens. Prompts
are token ids of the "test" half; --warm teaches the cache the "warm" half first. Decoding is timed
from a request's first token to its last; "request" has the prompt's time in it, too.

At batch 1 every task is measured on its own; larger batches mix them (--each-task: and take each alone), with
`batch` requests in flight until none is left. There the processors' time is compared as well, which does not
count what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import streams
from streams import Stream

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serve"))
from served import Answer, Server  # noqa: E402


def complete(server: Server, model: str, row: Stream, max_tokens: int) -> Answer:
    return server.complete(row.prompt, max_tokens, model=model, ignore_eos=False)


def in_flight(server: Server, model: str, rows: Sequence[Stream], batch: int, most: int) -> dict[str, Any]:
    """All rows, `batch` at a time; seconds from the first request to the last answer, and those computed."""
    answers: list[Answer | None] = [None] * len(rows)
    lock = threading.Lock()
    waiting = list(range(len(rows)))[::-1]

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                i = waiting.pop()
            answers[i] = complete(server, model, rows[i], most)

    threads = [threading.Thread(target=work) for _ in range(batch)]
    begin, computed = time.perf_counter(), server.cpu_seconds()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    computed = server.cpu_seconds() - computed
    done = [answer for answer in answers if answer is not None]
    assert len(done) == len(rows)
    return {
        "seconds": seconds,
        "cpu_seconds": computed,
        "tokens": sum(answer.tokens for answer in done),
        "decode": sum(answer.decode for answer in done),
        "texts": [answer.text for answer in done],
    }


def ratio(off: Sequence[float], on: Sequence[float]) -> tuple[float, float, float]:
    """Time without over time with, of all together, and its interval."""
    return streams.bootstrap(
        len(off), lambda chosen: sum(off[i] for i in chosen) / sum(on[i] for i in chosen)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("streams", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", default="1,4,8,16,32")
    parser.add_argument("--requests", type=int, default=12, help="of each task at batch 1")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--each-task", action="store_true", help="larger batches of each task, too")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--repeats", type=int, default=2, help="rounds of the larger batches")
    parser.add_argument("--server-args", default="--max-model-len 4096 --max-num-seqs 32")
    parser.add_argument("--on-args", default="", help="further flags of the server with the cache")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()

    rows = streams.read(args.streams)
    wanted = args.tasks.split(",") if args.tasks else streams.tasks_of(rows)
    test = {task: [row for row in rows if row.half == "test" and row.task == task] for task in wanted}
    result: dict[str, Any] = {"model": args.model, "warm": args.warm, "batch1": {}, "batches": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = {word.partition("=")[0]: json.loads(word.partition("=")[2]) for word in args.set}
        if args.warm:
            warm = [{"prompt": r.prompt, "output": r.output} for r in streams.warm_half(rows)]
            (folder / "warm.json").write_text(json.dumps(warm))
            settings["warmup_file"] = str(folder / "warm.json")
        if settings:
            (folder / "lookahead_cache_config.json").write_text(json.dumps(settings))
        common = shlex.split(args.server_args)
        off = Server(args.model, common, folder / "off.log")
        on = Server(
            args.model,
            [*common, "--lookahead-cache-config-dir", scratch, *shlex.split(args.on_args)],
            folder / "on.log",
        )
        try:
            name = json.loads(off.get("/v1/models")[1])["data"][0]["id"]
            for server in (off, on):  # code paths that run for the first time
                complete(server, name, test[wanted[0]][0], 8)
            if "1" in args.batch.split(","):
                for task in wanted:
                    measure_task(task, test[task][: args.requests], off, on, name, args, result)
            mixed = [row for group in zip(*test.values(), strict=False) for row in group]
            # No request comes twice before all have come, as the cache remembers: tasks on their own begin at
            # the other end.
            alone = {task: list(reversed(part)) for task, part in test.items()}
            served = dict.fromkeys(["mixed", *test], 0)
            if "1" in args.batch.split(","):
                served["mixed"] = args.requests * len(test)
            for batch in (int(word) for word in args.batch.split(",")):
                if batch == 1:
                    continue
                groups = {"mixed": mixed} | (alone if args.each_task else {})
                for group, rows in groups.items():
                    measure_batch(batch, group, rows, served, off, on, name, args, result)
            result["metrics"] = [
                line for line in on.get("/metrics")[1].splitlines() if "specul" in line and "#" not in line
            ]
        finally:
            off.stop()
            on.stop()
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure_task(
    task: str,
    rows: Sequence[Stream],
    off: Server,
    on: Server,
    name: str,
    args: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    pairs: list[tuple[Answer, Answer]] = []
    for number, row in enumerate(rows):
        order = (off, on) if number % 2 == 0 else (on, off)
        answers = {server: complete(server, name, row, args.max_tokens) for server in order}
        pairs.append((answers[off], answers[on]))
    long = [pair for pair in pairs if pair[0].tokens > 1 and pair[1].tokens > 1]
    decode = ratio([a.decode / a.tokens for a, _ in long], [b.decode / b.tokens for _, b in long])
    total = ratio([a.total for a, _ in long], [b.total for _, b in long])
    same = sum(a.text == b.text for a, b in pairs)
    result["batch1"][task] = {
        "requests": len(long),
        "decode": decode,
        "request": total,
        "tokens_per_second_off": sum(a.tokens for a, _ in long) / sum(a.decode for a, _ in long),
        "tokens_per_second_on": sum(b.tokens for _, b in long) / sum(b.decode for _, b in long),
        "same_text": same,
        "pairs": [[asdict(a), asdict(b)] for a, b in pairs],
    }
    print(
        f"{task:14} {len(long):3} requests: decode {decode[0]:.2f}x ({decode[1]:.2f}-{decode[2]:.2f}), "
        f"request {total[0]:.2f}x, {same} of {len(pairs)} texts the same",
        flush=True,
    )


def measure_batch(
    batch: int,
    group: str,
    rows: Sequence[Stream],
    served: dict[str, int],
    off: Server,
    on: Server,
    name: str,
    args: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    rounds = []
    for number in range(args.repeats):
        part = [rows[(served[group] + i) % len(rows)] for i in range(2 * batch)]
        served[group] += 2 * batch
        order = (off, on) if number % 2 == 0 else (on, off)
        found = {server: in_flight(server, name, part, batch, args.max_tokens) for server in order}
        rounds.append((found[off], found[on]))

    def per_token(time: str, side: int) -> list[float]:
        return [pair[side][time] / pair[side]["tokens"] for pair in rounds]

    rate_off = sum(a["tokens"] for a, _ in rounds) / sum(a["seconds"] for a, _ in rounds)
    rate_on = sum(b["tokens"] for _, b in rounds) / sum(b["seconds"] for _, b in rounds)
    each = [a / b for a, b in zip(per_token("seconds", 0), per_token("seconds", 1), strict=True)]
    computed = ratio(per_token("cpu_seconds", 0), per_token("cpu_seconds", 1))
    result["batches"][f"{batch} {group}"] = {
        "off": rate_off,
        "on": rate_on,
        "ratio": rate_on / rate_off,
        "rounds": each,
        "cpu": computed,
        "same_text": sum(x == y for a, b in rounds for x, y in zip(a["texts"], b["texts"], strict=True)),
        "requests": sum(len(a["texts"]) for a, _ in rounds),
    }
    print(
        f"batch {batch:3} {group:14} {rate_off:.0f} -> {rate_on:.0f} tokens/s, {rate_on / rate_off:.2f}x "
        f"(rounds {', '.join(f'{r:.2f}' for r in each)}), by the processors' time {computed[0]:.3f} "
        f"({computed[1]:.3f}-{computed[2]:.3f})",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
