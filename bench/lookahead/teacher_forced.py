"""The end-to-end check of compose.py: an engine repeats recorded texts, and the clock tells.

    python bench/lookahead/teacher_forced.py STREAMS ... --cost cost.json [--model llama3-8b] [--device cuda]
        [--batch 1,16,64] [--drafter hybrid] [--warm]

A logit bias makes the model say one token only, and the drafter is wrapped so that a draft is accepted where
the recorded text accepts it (ReplayDrafter): everything that an engine does is done and takes its time, only
the words are another model's. For each batch so many requests start together; what counts is the time from
the last one's first token to the first one's last, so that the batch is whole and no prompt is computed. The
same windows are simulated with the costs of step_cost.py, measured on the same machine.

Windows of a batch are of different requests as long as there are enough of the test half; then of both halves
(without --warm). Each batch size has its own name space: what it drafts from is what its own windows brought.
--details writes what each window did, and its course, as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import compose
import lab
import replay
import streams
from streams import Stream
from taco_llm import _core


@dataclass
class Window:
    tokens: int
    seconds: float
    steps: int
    speculative_steps: int = 0
    draft_seconds: float = 0.0  # for a sequence of a speculative step
    expected: float = 0.0
    realised: float = 0.0
    course: list[dict[str, float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def total(windows: Sequence[Window]) -> Window:
    return Window(
        tokens=sum(w.tokens for w in windows),
        seconds=sum(w.seconds for w in windows),
        steps=sum(w.steps for w in windows),
        speculative_steps=sum(w.speculative_steps for w in windows),
        draft_seconds=streams.mean([w.draft_seconds for w in windows if w.speculative_steps > 0]),
        expected=windows[-1].expected,
        realised=windows[-1].realised,
    )


def point(stats: _core.EngineStats, begin: _core.EngineStats) -> dict[str, float]:
    """Where a window stands; of the controller: what it takes an ordinary step for, its allowance."""
    now, then = stats.speculation, begin.speculation
    return {
        "running": stats.running,
        "steps": stats.steps - begin.steps,
        "seconds": round(stats.last_step_end - (begin.last_step_end or stats.last_step_end), 6),
        "tokens": stats.generation_tokens - begin.generation_tokens,
        "ordinary_steps": now.ordinary_steps - then.ordinary_steps,
        "speculative_steps": now.speculative_steps - then.speculative_steps,
        "drafted": now.drafted - then.drafted,
        "accepted": now.accepted - then.accepted,
        "draft_seconds": round(now.draft_seconds - then.draft_seconds, 6),
        "hidden_draft_seconds": round(now.hidden_draft_seconds - then.hidden_draft_seconds, 6),
        "expected_speedup": round(now.expected_speedup, 4),
        "realised_speedup": round(now.realised_speedup, 4),
        "ordinary_step_seconds": round(now.ordinary_step_seconds, 6),
        "allowance": round(now.allowance, 4),
    }


def run(engine: _core.Engine, rows: Sequence[Stream], name_space: int) -> Window:
    """One request for each row."""
    submitted = engine.stats()
    course: list[dict[str, float]] = []

    def record(every: int) -> None:
        stats = engine.stats()
        if not course or stats.steps - submitted.steps >= course[-1]["steps"] + every:
            course.append(point(stats, submitted))

    ours = {
        engine.submit(row.prompt, lab.forced_params(len(row.output)), name_space=name_space) for row in rows
    }
    started: set[int] = set()
    deadline = time.monotonic() + 120
    while len(started) < len(rows):
        for output in engine.poll(0.01):
            if output.request not in ours:  # the end of one of the window before
                continue
            started.add(output.request)
            if output.request_finished:
                raise SystemExit(
                    f"a request ended before all had begun ({len(started)} of {len(rows)}, "
                    f"{output.num_output_tokens} tokens) {output.error}: take longer ones (--least)"
                )
        record(1)
        if time.monotonic() > deadline:
            raise SystemExit("the requests do not run together: the batch is too large for the cache")
    begin = engine.stats()
    while not any(output.request_finished and output.request in ours for output in engine.poll(0.002)):
        record(8)
    end = engine.stats()
    course.append(point(end, submitted))
    engine.abort_all()
    while engine.stats().running:
        engine.poll(0.01)
    lab.drop_outputs(engine)
    assert end.generation_tokens > begin.generation_tokens >= submitted.generation_tokens
    last = point(end, begin)
    speculative = int(last["speculative_steps"])
    return Window(
        tokens=int(last["tokens"]),
        seconds=end.last_step_end - begin.last_step_end,
        steps=int(last["steps"]),
        speculative_steps=speculative,
        draft_seconds=last["draft_seconds"] / max(speculative * len(rows), 1),
        expected=last["expected_speedup"],
        realised=last["realised_speedup"],
        course=course,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams", type=Path, nargs="+")
    parser.add_argument("--cost", type=Path, required=True)
    parser.add_argument("--model", default="llama3-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--drafter", default="hybrid")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--least", type=int, default=192, help="tokens of a request's output")
    parser.add_argument("--most", type=int, default=1024, help="tokens of a request's prompt")
    parser.add_argument("--draft-rows", type=int, default=512)
    parser.add_argument(
        "--repeats", type=int, default=2, help="windows of each batch, of other requests each"
    )
    parser.add_argument("--details", type=Path, help="JSON lines: each window's course")
    args = parser.parse_args()
    batches = [int(word) for word in args.batch.split(",")]
    data = json.loads(args.cost.read_text())
    options = replay.Options()
    tables = {batch: compose.Table(data, batch) for batch in batches}

    rows = [row for row in streams.read(args.streams) if not row.looping]
    warm = streams.warm_half(rows) if args.warm else []
    seen: set[tuple[int, ...]] = set()
    halves: dict[str, list[Stream]] = {"test": [], "warm": []}
    for row in sorted(rows, key=lambda row: row.half):  # the test half's version of what both have
        key = tuple(row.prompt)
        if len(row.output) >= args.least and len(row.prompt) <= args.most and key not in seen:
            seen.add(key)
            halves[row.half].append(row)
    wanted = {batch: batch * args.repeats for batch in batches}
    test = halves["test"]
    if max(wanted.values()) > len(test) and not args.warm:
        test = test + halves["warm"]
    if len(test) < max(batches):
        raise SystemExit(f"only {len(test)} requests are long enough for a window")

    place = lab.Lab(args.model, device=args.device)
    largest = max(batches)
    length = max(len(row.prompt) + len(row.output) for row in test) + 64
    texts = [(row.prompt, row.output) for row in test]

    def engine_of(drafter: _core.Drafter | None) -> _core.Engine:
        executor = place.executor(
            num_blocks=place.blocks_for(largest * length, 0.8),
            max_len=length,
            sequences=largest,
            batched=8192,
            draft_rows=args.draft_rows if drafter is not None else 0,
        )
        return _core.Engine(
            executor, max_num_batched_tokens=8192, max_num_seqs=largest, **lab.speculation(drafter)
        )

    chosen = {
        batch: [
            [test[(i + r * batch) % len(test)] for i in range(batch)]
            for r in range(max(1, min(args.repeats, len(test) // batch)))
        ]
        for batch in batches
    }
    engine = engine_of(None)
    # Requests serve several batch sizes, none of which may know texts from another.
    space = {batch: 0 if args.warm else batch for batch in batches}
    ordinary = {batch: [run(engine, part, space[batch]) for part in chosen[batch]] for batch in batches}
    engine.shutdown()
    del engine
    inner = replay.make_drafter(args.drafter, options)
    replay.warm_up(inner, warm)
    engine = engine_of(_core.replay_drafter(inner, texts, lab.FORCED))
    speculative = {batch: [run(engine, part, space[batch]) for part in chosen[batch]] for batch in batches}
    engine.shutdown()
    del engine

    drafter = replay.make_drafter(args.drafter, options)
    replay.warm_up(drafter, warm)
    simulation = compose.Simulation(
        tables[batches[0]],
        drafter,
        options,
        controlled=True,
        runs_ahead=place.device != "cpu",
        skip=0,
        max_rows=args.draft_rows,
        known=compose.start_up(data, args.draft_rows),
    )
    print(
        "| batch | windows | off tok/s | on tok/s | speedup | simulated off | simulated on | simulated "
        "| measured on, against simulated | tokens a step | simulated | speculative steps | simulated |"
    )
    print("|" + "---|" * 13)
    details: list[dict[str, object]] = []
    for batch in batches:
        off, on = total(ordinary[batch]), total(speculative[batch])
        simulation.cost = tables[batch]
        simulation.name_space = space[batch]
        simulation.draft_seconds = on.draft_seconds or 5e-6
        tallies = []
        for number, part in enumerate(chosen[batch]):
            first = (batch << 32) + (number << 20)
            tallies.append(simulation.run(part, first_id=first, window=True))
        tokens, steps = sum(t.tokens for t in tallies), sum(t.steps for t in tallies)
        simulated = tokens / sum(t.seconds for t in tallies)
        simulated_off = tokens / sum(t.ordinary_seconds for t in tallies)
        measured = on.rate / off.rate
        predicted = simulated / simulated_off
        fresh = sum(row.half == "warm" for part in chosen[batch] for row in part)
        both = f" ({fresh} requests of the other half)" if fresh else ""
        print(
            f"| {batch} | {len(chosen[batch])}{both} | {off.rate:.0f} | {on.rate:.0f} | **{measured:.2f}** "
            f"| {simulated_off:.0f} | {simulated:.0f} | **{predicted:.2f}** "
            f"| {100 * (measured / predicted - 1):+.1f} % | {on.tokens / on.steps / batch:.2f} "
            f"| {tokens / steps / batch:.2f} | {on.speculative_steps} of {on.steps} "
            f"| {sum(t.speculative_steps for t in tallies)} of {steps} |",
            flush=True,
        )
        for number, (without, window, tally) in enumerate(
            zip(ordinary[batch], speculative[batch], tallies, strict=True)
        ):
            speedup, expected = window.rate / without.rate, tally.speedup
            print(
                f"  {batch}, window {number}: {speedup:.2f} (simulated {expected:.2f}), "
                f"{window.speculative_steps} of {window.steps} steps speculative "
                f"({tally.speculative_steps} of {tally.steps}), {window.tokens / window.steps / batch:.2f} "
                f"tokens a step ({tally.tokens / tally.steps / batch:.2f}), the engine expected "
                f"{window.expected:.2f} and saw {window.realised:.2f}, "
                f"drafting {1e6 * window.draft_seconds:.1f} us a sequence",
                file=sys.stderr,
            )
            row = {"batch": batch, "window": number, "speedup": speedup, "simulated": expected}
            row["simulated_steps"] = [tally.speculative_steps, tally.steps]
            row["ordinary"] = {k: v for k, v in vars(without).items() if k != "course"}
            row["speculative"] = vars(window)
            details.append(row)
    if args.details:
        args.details.write_text("".join(json.dumps(row) + "\n" for row in details))
    return 0


if __name__ == "__main__":
    sys.exit(main())
