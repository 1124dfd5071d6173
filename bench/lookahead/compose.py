"""Decoding speed from recorded streams and a table of step costs: what speculation gives on a device.

    python bench/lookahead/compose.py STREAMS ... --cost cost.json [--batch 1,8,64] [--drafters hybrid]
        [--policies controlled,fixed] [--warm] [--tasks] [--markdown]

An event simulation: `batch` slots, each with a request of the streams; a step takes what the table says,
drafts are accepted as the streams decide, and the budget controller (the engine's own) sees what it would see
in the engine. Slots are kept full; what comes after the last request was started is not counted, nor are the
first steps. "fixed" verifies every draft, without the controller. Prompts cost nothing here.

cost.json comes from step_cost.py; `--fit` takes a formula instead: seconds of a step, a KV token and a row,
and what running ahead hides of a step.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import replay
import streams
from streams import Stream
from taco_llm import _core


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Of points by ascending x; beyond the ends on the line through the last two."""
    if len(points) == 1:
        return points[0][1]
    i = min(max(bisect_left([x for x, _ in points], at), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


class Table:
    """Step seconds of one batch size from step_cost.py's measurements."""

    def __init__(self, data: dict[str, Any], batch: int) -> None:
        self.batch = batch
        self.by_nodes: dict[int, list[tuple[float, float]]] = {}
        for row in data["steps"]:
            if row["batch"] == batch:
                self.by_nodes.setdefault(row["nodes"], []).append((row["context"], row["seconds"]))
        if 0 not in self.by_nodes:
            raise SystemExit(f"the cost table has no steps of {batch} sequences without drafts")
        for points in self.by_nodes.values():
            points.sort()
        self.nodes = sorted(self.by_nodes)
        # What the engine takes beside the executor: measured at one context, the same at all of them.
        ordinary, speculative = [0.0], [0.0]
        for row in data.get("engine", ()):
            if row["batch"] == batch:
                alone = self.executor(max(row["nodes"], 0), row["context"])
                (ordinary if row["nodes"] < 0 else speculative).append(row["seconds"] - alone)
        self.ordinary_extra, self.speculative_extra = ordinary[-1], streams.mean(speculative[1:])

    def executor(self, nodes: float, context: float) -> float:
        return interpolate([(float(n), self.at(n, context)) for n in self.nodes], nodes)

    def at(self, nodes: int, context: float) -> float:
        points = self.by_nodes[nodes]
        if len(points) > 1:
            return interpolate(points, context)
        # Measured at one context: further tokens cost what they cost without drafts.
        there, seconds = points[0]
        plain = self.by_nodes[0]
        return seconds + interpolate(plain, context) - interpolate(plain, there)

    def seconds(self, speculative: bool, drafts: int, kv_tokens: int) -> float:
        context = kv_tokens / self.batch
        if not speculative:
            return self.executor(0, context) + self.ordinary_extra
        return self.executor(drafts / self.batch, context) + self.speculative_extra


class Fit:
    """The same as a formula."""

    def __init__(self, step: float, kv: float, row: float, hidden: float, batch: int) -> None:
        self.step, self.kv, self.row, self.hidden, self.batch = step, kv, row, hidden, batch

    def seconds(self, speculative: bool, drafts: int, kv_tokens: int) -> float:
        extra = 0.0 if speculative else -self.hidden
        return self.step + extra + self.kv * kv_tokens + self.row * (self.batch + drafts)


Cost = Table | Fit


def measurements(cost: Cost) -> list[tuple[bool, int, int, int, float]]:
    """What the engine would find at start-up."""
    batch, rows = cost.batch, []
    for context in (128, 1024):
        for nodes in (0, 1, 3, 7, 15):
            for speculative in (False, True):
                if speculative or nodes == 0:
                    seconds = cost.seconds(speculative, nodes * batch, context * batch)
                    rows.append((speculative, batch * (nodes + 1), batch, context * batch, seconds))
    return rows


@dataclass
class Slot:
    number: int
    row: Stream
    done: int = 1


@dataclass
class Tally:
    seconds: float = 0.0
    ordinary_seconds: float = 0.0
    tokens: int = 0
    drafts: int = 0
    steps: int = 0
    speculative_steps: int = 0
    budget: dict[str, float] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        return self.ordinary_seconds / self.seconds if self.seconds else 0.0


@dataclass
class Simulation:
    cost: Cost
    drafter: _core.Drafter
    options: replay.Options
    controlled: bool
    runs_ahead: bool = True
    draft_seconds: float = 5e-6  # for a sequence
    skip: int = 100  # steps that are not counted
    max_rows: int = 8192

    def run(self, rows: Sequence[Stream], *, first_id: int = 1, until_first_end: bool = False) -> Tally:
        """first_id: of the rows at the drafter, which knows each sequence once. until_first_end: all rows
        start together, and the first one's end is the end."""
        batch = self.cost.batch
        config = _core.SpeculationConfig(method="lookahead", cost_model=self.controlled)
        table = _core.StepCost()
        table.set_measurements(measurements(self.cost))
        budget = _core.DraftBudget(config, table, self.runs_ahead)
        waiting = list(enumerate(rows, first_id))[::-1]
        slots: list[Slot] = []
        tally = Tally()
        step = 0
        while True:
            while len(slots) < batch and waiting:
                number, row = waiting.pop()
                self.drafter.begin(number, row.prompt)
                self.drafter.commit(number, row.output[:1])
                slots.append(Slot(number, row))
            if len(slots) < batch:
                break
            kv_tokens = sum(len(slot.row.prompt) + slot.done for slot in slots)
            mode = budget.next(batch, kv_tokens)
            trees: list[_core.DraftTree] = []
            drafts = 0
            if mode != "none":
                least = budget.threshold(batch, kv_tokens)
                for slot in slots:
                    left = len(slot.row.output) - slot.done
                    depth = max(1, min(self.options.depth, left))
                    last = slot.row.output[slot.done - 1]
                    trees.append(self.drafter.draft(slot.number, last, depth, self.options.nodes, least))
                ids = [slot.number for slot in slots]
                drafts = budget.select(trees, ids, 0, kv_tokens, self.max_rows)[0]
            tokens = 0
            for i, slot in enumerate(slots):
                output = slot.row.output
                accepted, deepest = 0, 0
                if trees:
                    ahead = output[slot.done : slot.done + self.options.depth]
                    accepted, deepest = replay.walk(trees[i], ahead)
                    budget.verified(slot.number, trees[i], deepest)
                    self.drafter.verified(slot.number, trees[i], accepted)
                run = output[slot.done : slot.done + accepted + 1]
                self.drafter.commit(slot.number, run)
                budget.committed(slot.number, run)
                slot.done += len(run)
                tokens += len(run)
            speculative = drafts > 0 or (self.runs_ahead and mode == "draft")
            seconds = self.cost.seconds(speculative, drafts, kv_tokens)
            drafting = self.draft_seconds * batch if trees else 0.0
            budget.observe(speculative, batch + drafts, batch, kv_tokens, tokens, seconds, drafting)
            step += 1
            if step > self.skip:
                tally.seconds += seconds + drafting
                tally.ordinary_seconds += self.cost.seconds(False, 0, kv_tokens) / batch * tokens
                tally.tokens += tokens
                tally.drafts += drafts
                tally.steps += 1
                tally.speculative_steps += speculative
            ended = [slot for slot in slots if slot.done >= len(slot.row.output)]
            if ended and until_first_end:
                ended, waiting = list(slots), []
            for slot in ended:
                self.drafter.end(slot.number)
                budget.end(slot.number)
                slots.remove(slot)
        tally.budget = budget.stats
        return tally


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams", type=Path, nargs="+")
    parser.add_argument("--cost", type=Path)
    parser.add_argument("--fit", default="7.09e-3,39.3e-9,21e-6,0", help="step,kv,row,hidden")
    parser.add_argument("--batch", default="1,4,8,16,32,64,128,200,256")
    parser.add_argument("--drafters", default="hybrid")
    parser.add_argument("--policies", default="controlled,fixed")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--tasks", action="store_true", help="each task on its own as well")
    parser.add_argument("--loops", action="store_true", help="looping generations too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--depth", type=int, default=7)
    parser.add_argument("--serial", action="store_true", help="ordinary steps do not run ahead")
    args = parser.parse_args()
    settings = {word.partition("=")[0]: json.loads(word.partition("=")[2]) for word in args.set}
    options = replay.Options(depth=args.depth, settings=settings)
    data = json.loads(args.cost.read_text()) if args.cost else None
    rows = [row for row in streams.read(args.streams) if args.loops or not row.looping]
    warm = streams.warm_half(rows) if args.warm else []
    test = [row for row in rows if not args.warm or row.half == "test"]
    groups = {"all": test}
    if args.tasks:
        groups |= {task: [r for r in test if r.task == task] for task in streams.tasks_of(test)}

    columns = "requests", "drafter", "batch", "policy", "speedup", "tokens a step", "drafts a step"
    print("| " + " | ".join((*columns, "speculative steps")) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for name, chosen in groups.items():
        for batch in (int(word) for word in args.batch.split(",")):
            if len(chosen) < 2 * batch:
                continue
            for kind in args.drafters.split(","):
                for policy in args.policies.split(","):
                    cost: Cost
                    if data is not None:
                        cost = Table(data, batch)
                    else:
                        step, kv, row, hidden = (float(word) for word in args.fit.split(","))
                        cost = Fit(step, kv, row, hidden, batch)
                    drafter = replay.make_drafter(kind, options)
                    replay.warm_up(drafter, warm)
                    controlled = policy == "controlled"
                    tally = Simulation(cost, drafter, options, controlled, runs_ahead=not args.serial).run(
                        chosen
                    )
                    sequences = max(tally.steps * batch, 1)
                    print(
                        f"| {name} | {kind} | {batch} | {policy} | **{tally.speedup:.2f}** "
                        f"| {tally.tokens / sequences:.2f} | {tally.drafts / sequences:.2f} "
                        f"| {tally.speculative_steps / max(tally.steps, 1):.2f} |",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
