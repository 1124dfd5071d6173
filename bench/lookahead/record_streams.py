"""Record what a model says, without speculation: the streams that replay.py and compose.py work on.

    python bench/lookahead/record_streams.py MODEL --data FOLDER --out streams.jsonl.gz
        [--temperature 0] [--max-tokens 256] [--batch 32] [--per-task N]

A line of the output is one request: task, name, half ("warm" or "test"), temperature, seed, prompt and output
(token ids), finish. A file that exists is continued.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path

import datasets


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True, type=Path, help="the folder of the data sets")
    parser.add_argument("--out", required=True, type=Path, help="a .jsonl.gz")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--per-task", type=int, default=0)
    parser.add_argument("--gsm8k", type=int, default=300)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    from taco_llm import LLM, SamplingParams

    wanted = datasets.questions(args.data, gsm8k=args.gsm8k, per_task=args.per_task)
    have = {row["name"] for row in datasets.read_lines(args.out)} if args.out.exists() else set()
    todo = [question for question in wanted if question.name not in have]
    print(f"{len(wanted)} requests, {len(have)} recorded already", flush=True)
    llm = LLM(
        model=args.model, dtype=args.dtype, device=args.device, max_num_seqs=args.batch, max_model_len=4096
    )
    tokenizer = llm.handle.tokenizer
    limit = llm.handle.max_model_len - args.max_tokens
    begin, made = time.perf_counter(), 0
    for start in range(0, len(todo), 2 * args.batch):
        part, prompts, sampling = [], [], []
        for question in todo[start : start + 2 * args.batch]:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": question.text}], add_generation_prompt=True
            )
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) > limit:
                print(f"{question.name}: {len(ids)} tokens do not fit, left out", file=sys.stderr)
                continue
            part.append(question)
            prompts.append(ids)
            sampling.append(
                SamplingParams(
                    temperature=args.temperature,
                    max_tokens=args.max_tokens,
                    seed=wanted.index(question),
                    detokenize=False,
                )
            )
        results = llm.generate(prompt_token_ids=prompts, sampling_params=sampling, use_tqdm=False)
        # Appended as a gzip member of its own: a run cut short leaves a good file.
        with gzip.open(args.out, "at", encoding="utf-8") as file:
            for question, prompt, params, result in zip(part, prompts, sampling, results, strict=True):
                output = list(result.outputs[0].token_ids)
                made += len(output)
                row = {
                    "task": question.task,
                    "name": question.name,
                    "half": question.half,
                    "temperature": args.temperature,
                    "seed": params.seed,
                    "prompt": prompt,
                    "output": output,
                    "finish": result.outputs[0].finish_reason,
                }
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
        rate = made / (time.perf_counter() - begin)
        print(f"{start + len(part)} of {len(todo)}, {rate:.0f} tokens/s", flush=True)
    llm.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
