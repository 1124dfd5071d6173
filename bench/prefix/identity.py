"""Whether the prefix cache changes a text: the same requests with the cache and without it, token by token.

    python bench/prefix/identity.py MODEL [--data bbh_tasks_and_cot_prompts.tar.gz] [--tasks 27]
        [--questions 4] [--tokens 32] [--block-sizes 8,16,32] [--device cpu] [--offload-blocks 0] [--json OUT]

Greedy, float32. Few-shot prompts that share their task's examples, all at once and then again in another
order; conversations of four turns, each turn after the answers of those before; prompts cut at the lengths
around a block's end, for all sizes. Once without the cache (blocks of 16), then with it for each block size.
In float32 every text must be the same (exit status 1 otherwise).
--offload-blocks N: a device pool of only N blocks above which blocks move to memory, so that hits come from
there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import prompts
from taco_llm import LLM, SamplingParams

TURNS = (
    "Summarise the last answer in one sentence.",
    "Now say the same to a child of five.",
    "Which word of it is the most important, and why?",
)


class Runs:
    """The requests of all experiments, in one LLM; `found`: the answers by experiment."""

    def __init__(self, llm: LLM, tokens: int) -> None:
        self.llm = llm
        self.params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        self.found: dict[str, list[tuple[int, ...]]] = {}
        self.prompt_tokens: dict[str, int] = {}
        self.cached: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def ask(self, name: str, asked: list[Any]) -> list[str]:
        begin = time.perf_counter()
        results = self.llm.generate(asked, self.params, use_tqdm=False)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        self.found.setdefault(name, []).extend(tuple(r.outputs[0].token_ids) for r in results)
        self.prompt_tokens[name] = self.prompt_tokens.get(name, 0) + sum(
            len(r.prompt_token_ids) for r in results
        )
        self.cached[name] = self.cached.get(name, 0) + sum(r.num_cached_tokens for r in results)
        return [r.outputs[0].text for r in results]

    def few_shot(self, tasks: list[prompts.Task]) -> None:
        asked = [task.prefix + question for task in tasks for question in task.questions]
        self.ask("few-shot, all at once", asked)
        random.Random(5).shuffle(asked)
        self.ask("few-shot, again in another order", asked)

    def multi_turn(self, tasks: list[prompts.Task]) -> None:
        tokenizer = self.llm.get_tokenizer()
        talks = [[{"role": "user", "content": task.questions[0].strip()}] for task in tasks]
        for turn in range(len(TURNS) + 1):
            texts = [tokenizer.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
            ids = [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts]
            answers = self.ask(f"conversations, turn {turn + 1}", ids)
            if turn < len(TURNS):
                for talk, answer in zip(talks, answers, strict=True):
                    talk += [
                        {"role": "assistant", "content": answer},
                        {"role": "user", "content": TURNS[turn]},
                    ]

    def boundaries(self, task: prompts.Task, blocks: list[int]) -> None:
        ids = self.llm.get_tokenizer().encode(task.prefix)
        lengths = {k * block + d for block in blocks for k in (1, 2, 5) for d in (-1, 0, 1)}
        for _ in range(2):  # the second time there is something to hit
            for length in sorted(lengths):
                self.ask("lengths around a block's end", [{"prompt_token_ids": ids[:length]}])


def run(args: argparse.Namespace, tasks: list[prompts.Task], block: int | None, blocks: list[int]) -> Runs:
    """block: None: without the cache."""
    settings: dict[str, Any] = {"block_size": block or 16, "max_model_len": args.max_model_len}
    if block:
        settings["enable_prefix_caching"] = True
        if args.offload_blocks:
            settings |= {"enable_prefix_cache_offload": True, "num_gpu_blocks_override": args.offload_blocks}
    with LLM(args.model, device=args.device, dtype="float32", **settings) as llm:
        runs = Runs(llm, args.tokens)
        runs.few_shot(tasks)
        runs.multi_turn(tasks)
        runs.boundaries(tasks[0], blocks)
        return runs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", type=int, default=27)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--block-sizes", default="8,16,32")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--offload-blocks", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tasks = prompts.few_shot(args.data, args.questions)[: args.tasks]
    blocks = [int(size) for size in args.block_sizes.split(",")]
    # Blocks are where K and V lie, nothing that an answer could depend on: one reference serves all sizes.
    different, report = 0, []
    off = run(args, tasks, None, blocks)
    for block in blocks:
        on = run(args, tasks, block, blocks)
        for name, wanted in off.found.items():
            wrong = sum(a != b for a, b in zip(wanted, on.found[name], strict=True))
            different += wrong
            row = {
                "block_size": block,
                "experiment": name,
                "requests": len(wanted),
                "different": wrong,
                "prompt_tokens": on.prompt_tokens[name],
                "cached_tokens": on.cached[name],
                "seconds_off": round(off.seconds[name], 2),
                "seconds_on": round(on.seconds[name], 2),
            }
            report.append(row)
            print(
                f"block {block:2d}  {name:34s} {wrong} of {len(wanted)} requests differ, "
                f"{row['cached_tokens']:,} of {row['prompt_tokens']:,} prompt tokens cached, "
                f"{row['seconds_off']} s -> {row['seconds_on']} s",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
