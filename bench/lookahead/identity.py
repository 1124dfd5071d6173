"""Whether drafts change a text: the same requests with and without the Lookahead Cache, token by token.

    python bench/lookahead/identity.py MODEL --data DIR [--count 48] [--tokens 96] [--batch 4]

Prompts are those of Spec-Bench; requests go through temperature, top-p, top-k, min-p, penalties, seeds, stop
strings, stop ids, min_tokens, no_repeat_ngram_size and several sequences. In float32 every text must be the
same (exit status 1 otherwise); the second pass over the same prompts meets a cache that has seen them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import datasets
from taco_llm import LLM, SamplingParams

KINDS = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 0.0, "min_tokens": 60, "stop": ["\n"]},
    {"temperature": 0.0, "no_repeat_ngram_size": 4},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20, "presence_penalty": 0.5},
    {"temperature": 0.7, "min_p": 0.05, "frequency_penalty": 0.4},
    {"temperature": 0.5, "stop": [". ", "\n\n"], "include_stop_str_in_output": True},
    {"temperature": 0.5, "n": 3},
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4, help="requests at a time: many leave drafts no room")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    asked = [question.text for question in datasets.questions(args.data) if len(question.text) < 4000]
    prompts = asked[:: max(1, len(asked) // args.count)][: args.count]
    params = [
        SamplingParams(seed=1000 + i, max_tokens=args.tokens, logprobs=1, **KINDS[i % len(KINDS)])
        for i in range(len(prompts))
    ]
    found = []
    with tempfile.TemporaryDirectory() as config:
        for extra in ({}, {"lookahead_cache_config_dir": config}):
            llm = LLM(args.model, device=args.device, dtype=args.dtype, max_model_len=2048, **extra)
            for _ in range(2 if extra else 1):
                results = []
                for i in range(0, len(prompts), args.batch):
                    part = slice(i, i + args.batch)
                    results += llm.generate(prompts[part], params[part], use_tqdm=False)
                found.append(
                    [[(tuple(o.token_ids), o.text, o.finish_reason) for o in r.outputs] for r in results]
                )
            if extra:
                stats = llm.handle.core.stats().speculation
                print(f"drafted {stats.drafted}, accepted {stats.accepted}, iterations {stats.iterations}")
            llm.shutdown()
    different = 0
    for name, texts in zip(("cold", "warm"), found[1:], strict=True):
        wrong = [i for i, (a, b) in enumerate(zip(found[0], texts, strict=True)) if a != b]
        print(f"{name}: {len(wrong)} of {len(prompts)} requests differ {wrong[:10]}")
        different += len(wrong)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
