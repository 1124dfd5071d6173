"""Decoding speed from recorded streams and a table of step costs: what speculation gives on a device.

    python bench/lookahead/compose.py STREAMS ... --cost cost.json [--batch 1,8,64] [--drafters hybrid]
        [--policies controlled,fixed] [--warm] [--tasks] [--markdown]

An event simulation: `batch` slots, each with a request of the streams; a step takes what the table says,
drafts are accepted as the streams decide, and the budget controller (the engine's own) sees what it would see
in the engine: costs as start-up finds them, ordinary steps that run ahead except for the first, drafts that
are only followed made while a step runs. Slots are kept full; what comes after the last request was started
is not counted, nor are the first steps. "fixed" verifies every draft, without the controller. Prompts cost
nothing here; in the windows of teacher_forced.py, which begin with all requests' prompts, they do.

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
        self.padding: list[int] = data.get("padding", [])
        self.by_nodes: dict[int, list[tuple[float, float]]] = {}
        for row in data["steps"]:
            if row["batch"] == batch:
                self.by_nodes.setdefault(row["nodes"], []).append((row["context"], row["seconds"]))
        if 0 not in self.by_nodes:
            raise SystemExit(f"the cost table has no steps of {batch} sequences without drafts")
        for points in self.by_nodes.values():
            points.sort()
        # The widest number of drafts for each padded size: what is measured costs the same for all of them.
        # Steps without drafts have prices of their own.
        drafting = sorted(n for n in self.by_nodes if n > 0)
        self.nodes = sorted({self.padded(round(batch * (n + 1))): n for n in drafting}.values())
        # What the engine takes beside the executor: measured at one context, the same at all of them.
        ordinary, speculative = [0.0], [0.0]
        for row in data.get("engine", ()):
            if row["batch"] == batch:
                alone = self.executor(batch * max(row["nodes"], 0), row["context"])
                (ordinary if row["nodes"] < 0 else speculative).append(row["seconds"] - alone)
        self.ordinary_extra, self.speculative_extra = ordinary[-1], streams.mean(speculative[1:])

    def padded(self, rows: int) -> int:
        i = bisect_left(self.padding, rows)
        return self.padding[i] if i < len(self.padding) else rows

    def executor(self, drafts: int, context: float) -> float:
        if drafts == 0 or not self.nodes:
            return self.at(0, context)
        points = [(float(self.padded(round(self.batch * (n + 1)))), self.at(n, context)) for n in self.nodes]
        return max(self.at(0, context), interpolate(points, self.padded(self.batch + drafts)))

    def at(self, nodes: int, context: float) -> float:
        points = self.by_nodes[nodes]
        if len(points) > 1:
            return interpolate(points, context)
        # Measured at one context: further tokens cost what they cost without drafts.
        there, seconds = points[0]
        plain = self.by_nodes[0]
        return seconds + interpolate(plain, context) - interpolate(plain, there)

    def seconds(self, speculative: bool, drafts: int, kv_tokens: int, sequences: int = 0) -> float:
        context = kv_tokens / (sequences or self.batch)
        if not speculative:
            return self.executor(0, context) + self.ordinary_extra
        return self.executor(drafts, context) + self.speculative_extra

    def prompt_row(self) -> float:
        """Seconds of a prompt's token, about: what the widest steps cost a row."""
        widest = max(self.by_nodes)
        return self.at(widest, 0) / (self.batch * (widest + 1))


class Fit:
    """The same as a formula."""

    def __init__(self, step: float, kv: float, row: float, hidden: float, batch: int) -> None:
        self.step, self.kv, self.row, self.hidden, self.batch = step, kv, row, hidden, batch

    def seconds(self, speculative: bool, drafts: int, kv_tokens: int, sequences: int = 0) -> float:
        extra = 0.0 if speculative else -self.hidden
        return self.step + extra + self.kv * kv_tokens + self.row * ((sequences or self.batch) + drafts)

    def prompt_row(self) -> float:
        return self.row


Cost = Table | Fit


Measurement = tuple[bool, int, int, int, float]


def measurements(cost: Cost) -> list[Measurement]:
    """What the engine would find at start-up: steps that are waited for."""
    batch, rows = cost.batch, []
    for context in (128, 1024):
        for nodes in (0, 1, 3, 7, 15):
            seconds = cost.seconds(True, nodes * batch, context * batch)
            rows.append((nodes > 0, batch * (nodes + 1), batch, context * batch, seconds))
    return rows


def start_up(data: dict[str, Any], max_rows: int) -> _core.StepCost:
    """The same for the batch sizes that an engine measures, as far as the table has them."""
    cost = _core.StepCost()
    for speculative in (False, True):
        cost.set_padding(speculative, data.get("padding", []))
    found: list[Measurement] = []
    measured = sorted({row["batch"] for row in data["steps"]})
    for batch in measured:
        table = Table(data, batch)
        if batch in (1, 4, 16, 64, 256):
            found += [m for m in measurements(table) if m[1] <= min(max_rows, 2048)]
        elif (rows := table.padded(batch)) > batch:  # a few drafts of many
            found.append((True, rows, batch, 128 * batch, table.seconds(True, rows - batch, 128 * batch)))
    cost.set_measurements(found)
    return cost


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
class Step:
    speculative: bool
    seconds: float
    ordinary_seconds: float
    tokens: int
    drafts: int


@dataclass
class Simulation:
    """An engine: what its controller learns in one run it knows in the next."""

    cost: Cost
    drafter: _core.Drafter
    options: replay.Options
    controlled: bool
    runs_ahead: bool = True
    draft_seconds: float = 5e-6  # for a sequence
    skip: int = 100  # steps that are not counted
    max_rows: int = 8192
    batched: int = 8192  # tokens of a step with prompts
    known: _core.StepCost | None = None  # at start-up; None: of this batch size
    name_space: int = 0

    def __post_init__(self) -> None:
        config = _core.SpeculationConfig(method="lookahead", cost_model=self.controlled)
        if self.known is None:
            self.known = _core.StepCost()
            self.known.set_measurements(measurements(self.cost))
        self.budget = _core.DraftBudget(config, self.known, self.runs_ahead)
        self.waited = True  # for the last step

    def begin(self, number: int, row: Stream) -> Slot:
        self.drafter.begin(number, row.prompt, self.name_space)
        self.drafter.commit(number, row.output[:1])
        return Slot(number, row)

    def step(self, slots: Sequence[Slot], prompt_rows: int = 0) -> Step:
        budget, batch = self.budget, len(slots)
        kv_tokens = sum(len(slot.row.prompt) + slot.done for slot in slots)
        mode = budget.next(batch, kv_tokens, prompt_rows)
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
            drafts = budget.select(trees, ids, prompt_rows, kv_tokens, self.max_rows + prompt_rows)[0]
        ordinary_seconds = self.cost.seconds(False, 0, kv_tokens, batch)
        rows = batch + drafts + prompt_rows
        self.drafter.catch_up(_core.tokens_to_learn(rows, ordinary_seconds, self.runs_ahead))
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
        waits = speculative or (self.runs_ahead and self.waited)
        self.waited = speculative
        seconds = self.cost.seconds(waits, drafts, kv_tokens, batch) + prompt_rows * self.cost.prompt_row()
        drafting = self.draft_seconds * batch if trees else 0.0
        hidden = drafting if self.runs_ahead and not speculative else 0.0
        budget.observe(
            speculative,
            batch + drafts + prompt_rows,
            batch + (prompt_rows > 0),
            kv_tokens,
            tokens,
            seconds,
            drafting - hidden,
            hidden,
            prompt_rows,
        )
        ordinary = ordinary_seconds / batch * tokens
        return Step(speculative, seconds + drafting - hidden, ordinary, tokens, drafts)

    def prompts(self, rows: Sequence[tuple[int, Stream]]) -> list[Slot]:
        """All requests come at once: their prompts are computed, and whoever is ready generates."""
        slots: list[Slot] = []
        waiting, computed = list(rows)[::-1], 0
        while waiting:
            room, prompt_rows, ready = self.batched - len(slots), 0, []
            while waiting and prompt_rows < room:
                part = min(room - prompt_rows, len(waiting[-1][1].prompt) - computed)
                prompt_rows += part
                computed += part
                if computed == len(waiting[-1][1].prompt):
                    ready.append(waiting.pop())
                    computed = 0
            if slots:
                self.step(slots, prompt_rows)
            slots += [self.begin(number, row) for number, row in ready]
        return slots

    def run(self, rows: Sequence[Stream], *, first_id: int = 1, window: bool = False) -> Tally:
        """first_id: of the rows at the drafter, which knows each sequence once. window: all rows start
        together, and what counts is from the last one's first token to the first one's end."""
        batch = self.cost.batch
        waiting = list(enumerate(rows, first_id))[::-1]
        slots: list[Slot] = []
        if window:
            slots, waiting = self.prompts(waiting[::-1]), []
        tally = Tally()
        count = 0
        while True:
            while len(slots) < batch and waiting:
                slots.append(self.begin(*waiting.pop()))
            ended = [slot for slot in slots if slot.done >= len(slot.row.output)]
            if len(slots) < batch or (window and ended):
                break
            step = self.step(slots)
            count += 1
            if count > self.skip:
                tally.seconds += step.seconds
                tally.ordinary_seconds += step.ordinary_seconds
                tally.tokens += step.tokens
                tally.drafts += step.drafts
                tally.steps += 1
                tally.speculative_steps += step.speculative
            for slot in [slot for slot in slots if slot.done >= len(slot.row.output)]:
                if window:
                    break
                self.end(slot)
                slots.remove(slot)
        for slot in slots:
            self.end(slot)
        tally.budget = self.budget.stats
        return tally

    def end(self, slot: Slot) -> None:
        self.drafter.end(slot.number)
        self.budget.end(slot.number)


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
