"""`taco_llm bench latency` and `taco_llm bench throughput`: the engine in this process, without HTTP."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taco_llm import logging as taco_logging
from taco_llm.cli.parser import Parser, UsageError
from taco_llm.cli.serve import add_model_tag, engine_args
from taco_llm.cli.workload import cycle, mean, percentile, random_token_ids, read_prompts
from taco_llm.engine_args import EngineArgs


def _parser(kind: str, description: str) -> Parser:
    parser = Parser(
        prog=f"taco_llm bench {kind}",
        usage=f"taco_llm bench {kind} [MODEL] [options]",
        description=description,
    )
    add_model_tag(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--input-len", type=int, default=128, metavar="N", help="Tokens of a prompt. Default: 128."
    )
    group.add_argument(
        "--output-len", type=int, default=128, metavar="N", help="Tokens of an answer. Default: 128."
    )
    group.add_argument("--output-json", metavar="FILE", help="Write the figures to this file, too.")
    return parser


def make_latency_parser() -> Parser:
    parser = _parser("latency", "Seconds from submitting a batch of equal requests to the last token.")
    group = parser.add_argument_group("measurement of latency")
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="Requests at once. Default: 8.")
    group.add_argument(
        "--num-iters", type=int, default=10, metavar="N", help="Measured batches. Default: 10."
    )
    group.add_argument(
        "--num-iters-warmup", type=int, default=2, metavar="N", help="Batches before. Default: 2."
    )
    EngineArgs.add_cli_args(parser)
    return parser


def make_throughput_parser() -> Parser:
    parser = _parser("throughput", "Tokens per second over many requests that are all there at the start.")
    group = parser.add_argument_group("measurement of throughput")
    group.add_argument("--num-prompts", type=int, default=100, metavar="N", help="Requests. Default: 100.")
    group.add_argument(
        "--dataset",
        metavar="FILE",
        help="Prompts from a file (ShareGPT, JSON lines, text) instead of random ones.",
    )
    EngineArgs.add_cli_args(parser)
    return parser


def _check(settings: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} should be 1 or more")


def _load(settings: argparse.Namespace) -> Any:
    from taco_llm.engine import build
    from taco_llm.llm import LLM

    taco_logging.setup()
    llm = LLM.__new__(LLM)
    llm._start(build(engine_args(settings)))
    if settings.input_len + settings.output_len > llm.handle.max_model_len:
        raise UsageError(
            f"--input-len and --output-len make {settings.input_len + settings.output_len} tokens, and the "
            f"model takes {llm.handle.max_model_len}"
        )
    return llm


def _write(settings: argparse.Namespace, figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else value
        print(f"{name:<28}{shown}")
    if settings.output_json:
        Path(settings.output_json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def run_latency(argv: Sequence[str]) -> int:
    settings = make_latency_parser().parse(argv)
    _check(settings, "input_len", "output_len", "batch_size", "num_iters")
    from taco_llm.sampling_params import SamplingParams

    llm = _load(settings)
    try:
        params = SamplingParams(
            temperature=0, ignore_eos=True, max_tokens=settings.output_len, detokenize=False
        )
        prompts = random_token_ids(
            settings.batch_size, settings.input_len, llm.handle.vocab_size, settings.seed
        )
        seconds = []
        for number in range(settings.num_iters_warmup + settings.num_iters):
            started = time.perf_counter()
            llm.generate(prompt_token_ids=prompts, sampling_params=params, use_tqdm=False)
            spent = time.perf_counter() - started
            if number >= settings.num_iters_warmup:
                seconds.append(spent)
            print(f"\rbatch {number + 1}: {spent:.3f} s", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        figures: dict[str, Any] = {"model": llm.handle.model_name, "batch size": settings.batch_size}
        figures |= {"input tokens": settings.input_len, "output tokens": settings.output_len}
        figures["mean latency (s)"] = mean(seconds)
        figures |= {f"p{percent} latency (s)": percentile(seconds, percent) for percent in (10, 50, 90, 99)}
        figures["output tokens/s (median)"] = (
            settings.batch_size * settings.output_len / percentile(seconds, 50)
        )
        _write(settings, figures)
    finally:
        llm.shutdown()
    return 0


def run_throughput(argv: Sequence[str]) -> int:
    settings = make_throughput_parser().parse(argv)
    _check(settings, "input_len", "output_len", "num_prompts")
    from taco_llm.sampling_params import SamplingParams

    texts = None
    if settings.dataset:
        texts = read_prompts(Path(settings.dataset).expanduser())
    llm = _load(settings)
    try:
        handle = llm.handle
        if texts is None:
            prompts: list[Any] = random_token_ids(
                settings.num_prompts, settings.input_len, handle.vocab_size, settings.seed
            )
        else:
            if handle.tokenizer is None:
                raise UsageError("--dataset needs a tokenizer; leave --skip-tokenizer-init out")
            room = handle.max_model_len - settings.output_len
            ids = [handle.tokenizer.encode(text)[:room] for text in cycle(texts, settings.num_prompts)]
            prompts = [one for one in ids if one]
        params = SamplingParams(
            temperature=0,
            ignore_eos=True,
            max_tokens=settings.output_len,
            detokenize=handle.tokenizer is not None,
        )
        started = time.perf_counter()
        outputs = llm.generate(prompts, params)
        seconds = time.perf_counter() - started
        prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        output_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        _write(
            settings,
            {
                "model": handle.model_name,
                "requests": len(outputs),
                "seconds": seconds,
                "requests/s": len(outputs) / seconds,
                "prompt tokens": prompt_tokens,
                "output tokens": output_tokens,
                "prompt tokens/s": prompt_tokens / seconds,
                "output tokens/s": output_tokens / seconds,
                "tokens/s": (prompt_tokens + output_tokens) / seconds,
            },
        )
    finally:
        llm.shutdown()
    return 0
