"""Whether the engine counts what replay.py counts: the same requests live, every draft verified.

    python bench/lookahead/live_check.py MODEL STREAMS.jsonl.gz [--requests 16] [--dtype bfloat16]
        [--drafters raw,turbo,hybrid,ngram]

Requests run one after the other. Of each the iterations, accepted and drafted tokens must be those of the
replay of the text that came out; the exit status is 1 if not. How many texts are those of the streams is told
too: all where the streams are of this model, dtype and device and results do not depend on a step's width.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import lab
import replay
import streams
from streams import Stream
from taco_llm import _core

MAX_LEN = 4096


def live(engine: _core.Engine, row: Stream, max_tokens: int, eos: list[int]) -> tuple[list[int], list[int]]:
    """(iterations, accepted, drafted) and the text of one request."""
    params = _core.SamplingParams(temperature=0.0, max_tokens=max_tokens, eos_token_ids=eos, detokenize=False)
    engine.submit(row.prompt, params)
    tokens: list[int] = []
    while True:
        for output in engine.poll(1.0):
            tokens += output.token_ids
            if output.request_finished:
                told = output.speculation
                return [told.iterations, told.accepted, told.drafted], tokens


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("streams", type=Path, nargs="+")
    parser.add_argument("--drafters", default="raw,turbo,hybrid,ngram")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-tokens", type=int, default=256, help="of the recording")
    parser.add_argument("--eos", type=int, default=2)
    args = parser.parse_args()
    rows = [row for row in streams.read(args.streams) if row.half == "test"][: args.requests]
    place = lab.Lab(args.model, device=args.device, dtype=args.dtype)
    options = replay.Options(vocab=place.model.spec.vocab_size, max_tokens=args.max_tokens, eos=args.eos)
    failed = 0
    for kind in args.drafters.split(","):
        executor = place.executor(
            num_blocks=MAX_LEN // lab.BLOCK, max_len=MAX_LEN, sequences=4, batched=1024, draft_rows=256
        )
        drafter = replay.make_drafter(kind, options)
        engine = _core.Engine(
            executor,
            max_num_batched_tokens=1024,
            max_num_seqs=4,
            **lab.speculation(drafter, cost_model=False),
        )
        again = replay.make_drafter(kind, options)
        same_counts = same_texts = 0
        for number, row in enumerate(rows):
            counts, text = live(engine, row, args.max_tokens, [args.eos])
            said = replace(row, output=text)
            found = replay.replay(again, number + 1, said, options)
            expected = [found.iterations, found.accepted, found.drafted]
            same_texts += text == row.output
            same_counts += counts == expected
            if counts != expected:
                print(f"{kind}, {row.name}: live {counts}, replayed {expected}")
        engine.shutdown()
        failed += len(rows) - same_counts
        print(
            f"{kind}: {same_texts} of {len(rows)} texts and {same_counts} of {len(rows)} counts the same",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
