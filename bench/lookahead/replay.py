"""Acceptance of drafters on recorded streams, without a model.

    python bench/lookahead/replay.py STREAMS.jsonl.gz ... [--drafters raw,turbo,hybrid,ngram] [--warm]
        [--nodes 63] [--depth 7] [--min-p 0] [--set KEY=VALUE ...] [--markdown]

Each request of the "test" half is generated as an engine with this drafter would: the drafter proposes a
tree, the stream decides how much of it is accepted, one more token follows. Requests come one after the other
and share the drafter's global cache; with --warm it has seen the "warm" half before. --nodes limits a tree,
which makes drafters comparable at an equal number of verified tokens; --set changes a key of the lookahead
settings.

Per request: I iterations (the prompt's excluded), S accepted drafts, L drafted nodes. The hit length is the
mean over requests of S / I, its interval a bootstrap over requests. Looping generations are counted apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streams
from streams import Stream
from taco_llm import _core

CATCH_UP = 256  # tokens, while a step runs: as the engine's Speculator does

MODES = {"raw": 0, "turbo": 1, "hybrid": 2}


@dataclass
class Options:
    nodes: int = 63
    depth: int = 7
    min_p: float = 0.0
    memory: int = 1 << 30
    vocab: int = 200_000
    eos: int = -1  # ends a text for the drafter
    max_tokens: int = 0  # of the recording: a draft reaches no further; 0: the end of the stream
    settings: dict[str, Any] | None = None


@dataclass
class Outcome:
    iterations: int = 0
    hits: int = 0
    accepted: int = 0
    drafted: int = 0

    @property
    def hit_length(self) -> float:
        return self.accepted / self.iterations if self.iterations else 0.0

    @property
    def nodes(self) -> float:
        return self.drafted / self.iterations if self.iterations else 0.0


def make_drafter(kind: str, options: Options) -> _core.Drafter:
    settings = dict(options.settings or {})
    if kind in MODES:
        lookahead = _core.LookaheadConfig(
            cache_mode=MODES[kind],
            copy_length=options.depth,
            voc_size=options.vocab,
            eos_token_id=[options.eos] if options.eos >= 0 else [],
            max_seq_len=1 << 20,
            **settings,
        )
        config = _core.SpeculationConfig(method="lookahead", lookahead=lookahead, memory_bytes=options.memory)
    elif kind == "ngram":
        config = _core.SpeculationConfig(
            method="ngram",
            ngram_max=settings.get("ngram_max", 4),
            ngram_min=settings.get("ngram_min", 1),
            num_speculative_tokens=options.depth,
        )
    else:
        raise SystemExit(f"no drafter {kind!r}: raw, turbo, hybrid or ngram")
    drafter = _core.make_drafter(config)
    assert drafter is not None
    return drafter


def warm_up(drafter: _core.Drafter, rows: Sequence[Stream], first_id: int = 1 << 40) -> None:
    """Shows whole requests to the drafter, as if it had served them."""
    for number, row in enumerate(rows):
        drafter.begin(first_id + number, row.prompt)
        drafter.commit(first_id + number, row.output)
        drafter.end(first_id + number)
        drafter.catch_up(0)


def walk(tree: _core.DraftTree, tokens: Sequence[int]) -> tuple[int, int]:
    """How many of the tokens the tree has guessed, and the deepest node on their way."""
    node = count = 0
    for token in tokens:
        child = tree.find_child(node, token)
        if child < 0:
            break
        node, count = child, count + 1
    return count, node


def replay(drafter: _core.Drafter, number: int, row: Stream, options: Options) -> Outcome:
    found = Outcome()
    drafter.begin(number, row.prompt)
    drafter.commit(number, row.output[:1])
    done, end = 1, len(row.output)
    while done < end:
        # The last token of a step is never a draft.
        left = max(end, options.max_tokens) - done
        if left > 1:
            tree = drafter.draft(
                number, row.output[done - 1], min(options.depth, left - 1), options.nodes, options.min_p
            )
        else:
            tree = _core.DraftTree(row.output[done - 1])
        drafter.catch_up(CATCH_UP)
        accepted, _ = walk(tree, row.output[done : done + options.depth])
        found.iterations += 1
        found.hits += accepted > 0
        found.accepted += accepted
        found.drafted += len(tree) - 1
        step = min(accepted + 1, end - done)
        drafter.verified(number, tree, accepted)
        drafter.commit(number, row.output[done : done + step])
        done += step
    drafter.end(number)
    return found


def run(kind: str, rows: Sequence[Stream], warm: Sequence[Stream], options: Options) -> list[Outcome]:
    drafter = make_drafter(kind, options)
    warm_up(drafter, warm)
    return [replay(drafter, number + 1, row, options) for number, row in enumerate(rows)]


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    lengths = [o.hit_length for o in outcomes]
    value, low, high = streams.bootstrap(
        len(outcomes), lambda chosen: streams.mean([lengths[i] for i in chosen])
    )
    return {
        "requests": len(outcomes),
        "hit_length": round(value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "nodes": round(streams.mean([o.nodes for o in outcomes]), 3),
        "hit_rate": round(streams.mean([o.hits / o.iterations for o in outcomes if o.iterations]), 4),
    }


def ratio(a: Sequence[Outcome], b: Sequence[Outcome]) -> tuple[float, float, float]:
    """Of the hit lengths of two drafters on the same requests."""

    def of(chosen: Sequence[int]) -> float:
        top = streams.mean([a[i].hit_length for i in chosen])
        bottom = streams.mean([b[i].hit_length for i in chosen])
        return top / bottom if bottom else float("inf")

    return streams.bootstrap(len(a), of)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams", type=Path, nargs="+")
    parser.add_argument("--drafters", default="raw,turbo,hybrid,ngram")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--nodes", type=int, default=63)
    parser.add_argument("--depth", type=int, default=7)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--vocab", type=int, default=200_000)
    parser.add_argument("--memory", type=int, default=1 << 30)
    parser.add_argument("--eos", type=int, default=-1)
    parser.add_argument("--max-tokens", type=int, default=0, help="of the recording")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--limit", type=int, default=0, help="of requests of each half")
    parser.add_argument("--markdown", action="store_true", help="tables instead of JSON lines")
    args = parser.parse_args()
    settings = {}
    for word in args.set:
        key, _, value = word.partition("=")
        settings[key] = json.loads(value)
    options = Options(
        args.nodes, args.depth, args.min_p, args.memory, args.vocab, args.eos, args.max_tokens, settings
    )

    rows = streams.read(args.streams)
    if args.tasks:
        rows = [row for row in rows if row.task in args.tasks.split(",")]
    warm = streams.warm_half(rows) if args.warm else []
    test = [row for row in rows if row.half == "test"]
    if args.limit:
        warm, test = warm[: args.limit], test[: args.limit]
    kinds = args.drafters.split(",")
    results, seconds = {}, {}
    for kind in kinds:
        begin = time.perf_counter()
        results[kind] = run(kind, test, warm, options)
        seconds[kind] = time.perf_counter() - begin

    groups = [("all", [i for i, row in enumerate(test) if not row.looping])]
    for task in streams.tasks_of(test):
        groups.append((task, [i for i, row in enumerate(test) if row.task == task and not row.looping]))
    groups.append(("looping", [i for i, row in enumerate(test) if row.looping]))
    if args.markdown:
        print("| requests | | " + " | ".join(kinds) + " |")
        print("|---|---|" + "---|" * len(kinds))
    for name, chosen in groups:
        if not chosen:
            continue
        cells = []
        for kind in kinds:
            found = summary([results[kind][i] for i in chosen])
            if args.markdown:
                interval = f"{found['low']:.2f}-{found['high']:.2f}"
                cells.append(f"**{found['hit_length']:.2f}** ({interval}), {found['nodes']:.1f} nodes")
            else:
                print(json.dumps({"group": name, "drafter": kind, "warm": bool(warm), **found}))
        if args.markdown:
            print(f"| {name} | {len(chosen)} | " + " | ".join(cells) + " |")
    if "raw" in kinds:
        for kind in kinds:
            if kind == "raw":
                continue
            for name, chosen in groups:
                if chosen:
                    value, low, high = ratio(
                        [results[kind][i] for i in chosen], [results["raw"][i] for i in chosen]
                    )
                    print(f"{kind} / raw, {name}: {value:.2f} ({low:.2f}-{high:.2f})")
    print(", ".join(f"{kind} {s:.1f} s" for kind, s in seconds.items()), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
