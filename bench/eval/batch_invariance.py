"""Whether an answer depends on what else is in its batch: the same prompts alone and together.

    python bench/eval/batch_invariance.py MODEL [--load-format dummy] [--count 64] [--batch-invariant]

Prompts of random tokens and of several lengths are answered greedily one by one, then all at once. Tokens and
their log probabilities are compared bit for bit: with --batch-invariant a difference is an error (exit status
1), without it the number of different answers is only told.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--batch-invariant", action="store_true")
    args = parser.parse_args()
    from taco_llm import LLM, SamplingParams

    llm = LLM(
        args.model,
        load_format=args.load_format,
        dtype=args.dtype,
        quantization=args.quantization,
        device=args.device,
        skip_tokenizer_init=True,
        max_model_len=2048,
        batch_invariant=args.batch_invariant,
    )
    draw = random.Random(7)
    vocab = llm.handle.vocab_size
    prompts = [
        [draw.randrange(16, vocab) for _ in range(draw.choice((1, 7, 33, 128, 500)))]
        for _ in range(args.count)
    ]
    params = SamplingParams(
        temperature=0, max_tokens=args.output_len, ignore_eos=True, detokenize=False, logprobs=1
    )

    def answers(batch: list[list[int]]) -> list[tuple[tuple[int, ...], list[float]]]:
        found = []
        for result in llm.generate(prompt_token_ids=batch, sampling_params=params, use_tqdm=False):
            (out,) = result.outputs
            chosen = [entry[token].logprob for entry, token in zip(out.logprobs, out.token_ids, strict=True)]
            found.append((tuple(out.token_ids), chosen))
        return found

    begin = time.perf_counter()
    alone = [answers([prompt])[0] for prompt in prompts]
    together = answers(prompts)
    tokens = sum(a[0] != b[0] for a, b in zip(alone, together, strict=True))
    exact = sum(a != b for a, b in zip(alone, together, strict=True))
    row = {
        "model": args.model,
        "device": llm.handle.device,
        "batch_invariant": args.batch_invariant,
        "answers": args.count,
        "tokens_each": args.output_len,
        "different_tokens": tokens,
        "different_logprobs": exact,
        "seconds": round(time.perf_counter() - begin, 2),
    }
    print(json.dumps(row))
    llm.shutdown()
    return 1 if args.batch_invariant and exact else 0


if __name__ == "__main__":
    sys.exit(main())
