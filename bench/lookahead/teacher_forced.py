"""The end-to-end check of compose.py: an engine repeats recorded texts, and the clock tells.

    python bench/lookahead/teacher_forced.py STREAMS ... --cost cost.json [--model llama3-8b] [--device cuda]
        [--batch 1,16,64] [--drafter hybrid] [--warm]

A logit bias makes the model say one token only, and the drafter is wrapped so that a draft is accepted where
the recorded text accepts it (ReplayDrafter): everything that an engine does is done and takes its time, only
the words are another model's. For each batch so many requests start together; what counts is the time from
the last one's first token to the first one's last, so that the batch is whole and no prompt is computed. The
same window is simulated with the costs of step_cost.py, measured on the same machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
    draft_seconds: float = 0.0  # for a sequence of a step
    expected: float = 0.0
    realised: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def run(engine: _core.Engine, rows: Sequence[Stream]) -> Window:
    """One request for each row."""
    before = engine.stats().generation_tokens
    for row in rows:
        engine.submit(row.prompt, lab.forced_params(len(row.output)))
    started: set[int] = set()
    deadline = time.monotonic() + 120
    while len(started) < len(rows):
        for output in engine.poll(0.01):
            started.add(output.request)
            if output.request_finished:
                raise SystemExit("a request ended before all had begun: take longer ones (--least)")
        if time.monotonic() > deadline:
            raise SystemExit("the requests do not run together: the batch is too large for the cache")
    begin = engine.stats()
    while not any(output.request_finished for output in engine.poll(0.002)):
        pass
    end = engine.stats()
    engine.abort_all()
    while engine.stats().running:
        engine.poll(0.01)
    lab.drop_outputs(engine)
    assert end.generation_tokens > begin.generation_tokens >= before
    steps = end.steps - begin.steps
    drafting = end.speculation.draft_seconds - begin.speculation.draft_seconds
    return Window(
        tokens=end.generation_tokens - begin.generation_tokens,
        seconds=end.last_step_end - begin.last_step_end,
        steps=steps,
        draft_seconds=drafting / max(steps * len(rows), 1),
        expected=end.speculation.expected_speedup,
        realised=end.speculation.realised_speedup,
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
    args = parser.parse_args()
    batches = [int(word) for word in args.batch.split(",")]
    data = json.loads(args.cost.read_text())
    options = replay.Options()

    rows = [row for row in streams.read(args.streams) if not row.looping]
    warm = streams.warm_half(rows) if args.warm else []
    seen: set[tuple[int, ...]] = set()
    test: list[Stream] = []
    for row in rows:
        key = tuple(row.prompt)
        fits = len(row.output) >= args.least and len(row.prompt) <= args.most
        if row.half == "test" and fits and key not in seen:
            seen.add(key)
            test.append(row)
    if len(test) < max(batches):
        raise SystemExit(f"only {len(test)} requests of the test half are long enough for a window")

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
    ordinary = {batch: [run(engine, part) for part in chosen[batch]] for batch in batches}
    engine.shutdown()
    del engine
    inner = replay.make_drafter(args.drafter, options)
    replay.warm_up(inner, warm)
    engine = engine_of(_core.replay_drafter(inner, texts, lab.FORCED))
    speculative = {batch: [run(engine, part) for part in chosen[batch]] for batch in batches}
    engine.shutdown()
    del engine

    print(
        "| batch | off tok/s | on tok/s | speedup | simulated off | simulated on | simulated | difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    drafter = replay.make_drafter(args.drafter, options)
    replay.warm_up(drafter, warm)
    for batch in batches:
        off = Window(*(sum(getattr(w, k) for w in ordinary[batch]) for k in ("tokens", "seconds", "steps")))
        on = Window(*(sum(getattr(w, k) for w in speculative[batch]) for k in ("tokens", "seconds", "steps")))
        cost = compose.Table(data, batch)
        tallies = []
        for number, part in enumerate(chosen[batch]):
            tallies.append(
                compose.Simulation(
                    cost,
                    drafter,
                    options,
                    controlled=True,
                    runs_ahead=place.device != "cpu",
                    draft_seconds=streams.mean([w.draft_seconds for w in speculative[batch]]),
                    skip=0,
                    max_rows=args.draft_rows,
                ).run(part, first_id=(batch << 32) + (number << 20), until_first_end=True)
            )
        tokens = sum(t.tokens for t in tallies)
        simulated = tokens / sum(t.seconds for t in tallies)
        simulated_off = tokens / sum(t.ordinary_seconds for t in tallies)
        measured = on.rate / off.rate
        predicted = simulated / simulated_off
        print(
            f"| {batch} | {off.rate:.0f} | {on.rate:.0f} | **{measured:.2f}** | {simulated_off:.0f} "
            f"| {simulated:.0f} | **{predicted:.2f}** | {100 * (measured / predicted - 1):+.1f} % |",
            flush=True,
        )
        last = speculative[batch][-1]
        print(
            f"  tokens a step {on.tokens / on.steps / batch:.2f} (simulated "
            f"{tokens / sum(t.steps for t in tallies) / batch:.2f}), the engine expected {last.expected:.2f} "
            f"and saw {last.realised:.2f}, drafting {1e6 * last.draft_seconds:.1f} us a sequence",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
