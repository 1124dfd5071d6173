"""This engine on the workload of its peers: the same requests, the same procedure, rows of the same form.

    python bench/offline/peer_workload.py --workload PATH/workload.py [--model FOLDER-OR-SHAPE] [--quant ,fp8]
        [--out FILE] [--parts decode,prefill,throughput] [--engine-args '{"max_num_seqs": 256}']

workload.py says what is measured and what the fields of a row mean; `python workload.py A B` prints the rows
of several files as one table. A model is a folder with a config.json, or the name of a shape
(random_config.py); its weights are random. Each quantisation runs in a process of its own, so that start_s is
what a user waits: from the start of the process until the engine takes requests.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import random_config

HERE = Path(__file__).resolve().parent


def process_age() -> float:
    """Seconds since this process started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - started


def load_workload(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("workload", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commit() -> str:
    if os.environ.get("TACO_COMMIT"):
        return os.environ["TACO_COMMIT"]
    found = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return found.stdout.strip()


def driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    return found.group(1) if found else ""


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def measure(args: argparse.Namespace) -> None:
    """One engine in this process: start it, write its settings, run the workload."""
    deadline = time.monotonic() + args.budget
    from taco_llm import LLM, SamplingParams, __version__

    workload = load_workload(args.workload)
    folder = Path(args.model)
    settings: dict[str, Any] = dict(
        model=str(folder),
        load_format="dummy",
        dtype="bfloat16",
        gpu_memory_utilization=0.92,
        skip_tokenizer_init=not (folder / "tokenizer.json").exists(),
        device=args.device,
    )
    if args.quant:
        settings["quantization"] = args.quant
    settings |= json.loads(args.engine_args)
    llm = LLM(**settings)
    start = process_age()
    emit = workload.emitter(
        args.out, engine="taco_llm", model=args.name, quant=args.quant or "bf16", mode=args.mode
    )
    handle = llm.handle
    plan = handle.memory_plan
    kv_tokens = handle.num_kv_blocks * handle.args.block_size
    emit(
        part="engine",
        start_s=round(start, 2),
        taco_llm=__version__,
        commit=commit(),
        device=plan.device if plan else platform.processor() or "cpu",
        driver=driver_version(),
        kv_blocks=handle.num_kv_blocks,
        block=handle.args.block_size,
        kv_tokens=kv_tokens,
        max_len=handle.max_model_len,
        memory=str(plan) if plan else "",
        settings={name: value for name, value in settings.items() if name != "model"},
    )
    draw = random.Random(workload.PROMPT_SEED)

    def gen(inputs: list[int], outputs: list[int]) -> float:
        batch = workload.prompts(inputs, draw)
        sampling = [
            SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in outputs
        ]
        begin = time.perf_counter()
        results = llm.generate(prompt_token_ids=batch, sampling_params=sampling, use_tqdm=False)
        seconds = time.perf_counter() - begin
        got = sum(len(result.outputs[0].token_ids) for result in results)
        assert got == sum(outputs), (got, sum(outputs))
        return seconds

    given: dict[str, Any] = {}
    if args.batches:
        given["batches"] = numbers(args.batches)
    if args.prefill:
        given["prefill"] = numbers(args.prefill)
    if args.decode_steps:
        given["steps"] = args.decode_steps
    if args.input:
        given["tokens"] = args.input
    if args.requests:
        given["requests"] = args.requests
    workload.run(
        gen,
        emit,
        parts=args.parts.split(","),
        reps=args.reps,
        kv_tokens=kv_tokens,
        max_len=handle.max_model_len,
        left=lambda: deadline - time.monotonic(),
        **given,
    )
    llm.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", required=True, type=Path, help="the peers' workload.py")
    parser.add_argument(
        "--model", default="llama3-8b", help=f"a folder, or one of {', '.join(random_config.SHAPES)}"
    )
    parser.add_argument("--quant", default="", help="'' (bf16), 'fp8', or several: ',fp8'")
    parser.add_argument("--out", default=str(Path(os.environ.get("OUT", "build")) / "taco.jsonl"))
    parser.add_argument("--parts", default="decode,prefill,throughput")
    parser.add_argument("--batches", default="", help="instead of the workload's: 1,8,32")
    parser.add_argument("--prefill", default="", help="lengths instead of the workload's: 512,2048")
    parser.add_argument(
        "--input", type=int, default=0, help="tokens of a decode prompt instead of the workload's"
    )
    parser.add_argument("--decode-steps", type=int, default=0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--reps", type=int, default=2, help="repeats of each decode run")
    parser.add_argument("--budget", type=float, default=600, help="seconds for each quantisation")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mode", default="default", help="name of these settings in the rows")
    parser.add_argument("--engine-args", default="{}", help="further arguments of LLM, as JSON")
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args)
        return 0
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    first = Path(args.out).stat().st_size if Path(args.out).exists() else 0
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        name, folder = args.model.rstrip("/").rpartition("/")[2], args.model
        if not Path(folder).is_dir():
            folder = str(random_config.write(args.model, Path(scratch) / args.model))
        for quant in args.quant.split(","):
            words = [*sys.argv[1:], "--child", "--name", name, "--model", folder, f"--quant={quant}"]
            failed |= subprocess.run([sys.executable, str(Path(__file__).resolve()), *words]).returncode
    if not Path(args.out).exists():
        return 1  # nothing was measured; the child said why
    workload = load_workload(args.workload)
    with open(args.out, encoding="utf-8") as file:
        file.seek(first)
        workload.table([json.loads(line) for line in file if line.strip()])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
