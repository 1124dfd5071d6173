"""Ours against other engines on one CPU, on the same GGUF files and the same prompts, in one run.

    python bench/offline/peers_cpu.py --model A.gguf [--model B.gguf ...] [--openvino-python PATH]
        [--llama-bin DIR] [--llama-python PATH] [--rounds 3] [--cases prefill512,b1]

Cases, each in tokens per second:
    prefill512, prefill2048   prompt tokens over the time of a request for one token
    b1, b8, b32               decoding: B prompts of 128 tokens, B * 128 / (T(129 tokens) - T(1 token))

Every engine is a process of its own and stays loaded; the engines take turns within a round, so that a drift
of the machine meets them all. A sample during which other processes used more than 3% of the CPUs is dropped
and taken again, as long as the case's time allows; a row without clean samples is marked `dirty`.

Engines: ours (the interpreter that runs this script, or --ours-python); openvino (--openvino-python: an
interpreter with openvino-genai); llama.cpp by its binaries (--llama-bin: a folder with llama-bench and
llama-batched-bench; every sample is one run of them) or by llama-cpp-python (--llama-python: an interpreter
with it; prefill and b1 only).

--peer-model openvino=F16.gguf lets a peer read another file than ours (OpenVINO is fastest on float16).
The rows, the machine and the commit go to bench/results/peers_cpu-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = ("prefill512", "prefill2048", "b1", "b8", "b32")
PROMPT, DECODE = 128, 128


# --- how disturbed a sample was


def machine_cpu_seconds() -> float:
    """CPU time that all processes have used, and what a hypervisor took away."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq, stolen = ticks[:8]
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def own_cpu_seconds() -> float:
    """CPU time of this process and all below it, ended ones too."""
    used: dict[int, float] = {}
    parent: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        number = int(stat.parent.name)
        parent[number] = int(fields[1])
        used[number] = sum(int(text) for text in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def is_ours(number: int) -> bool:
        while number > 1:
            if number == os.getpid():
                return True
            number = parent.get(number, 0)
        return False

    return sum(seconds for number, seconds in used.items() if is_ours(number))


def watched(take: Callable[[], float]) -> tuple[float, bool]:
    """A sample, and whether other processes left the CPUs alone during it."""
    started, all_before, own_before = time.perf_counter(), machine_cpu_seconds(), own_cpu_seconds()
    value = take()
    foreign = (machine_cpu_seconds() - all_before) - (own_cpu_seconds() - own_before)
    room = 0.03 * (os.cpu_count() or 1) * (time.perf_counter() - started)
    return value, foreign <= max(room, 0.05)


def wait_for_quiet(limit: float) -> None:
    end = time.monotonic() + limit
    while time.monotonic() < end and not watched(lambda: time.sleep(0.3) or 0.0)[1]:
        pass


# --- engines


class Worker:
    """An engine in a process of its own that answers JSON lines: {"prompts", "tokens"} -> {"seconds"}."""

    def __init__(
        self, name: str, kind: str, python: str, model: str, env: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.cases = CASES if kind != "llama-python" else CASES[:3]
        command = [python, str(Path(__file__).resolve()), "--worker", kind, "--model", model]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = time.perf_counter()
        self.process = subprocess.Popen(command, env={**os.environ, **(env or {})}, **pipes)
        self.about = self._read()
        self.load_seconds = time.perf_counter() - started

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("#json "):  # engines print what they like besides
                answer = json.loads(line[6:])
                if "error" in answer:
                    raise RuntimeError(f"{self.name}: {answer['error']}")
                return dict(answer)
        raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")

    def seconds(self, prompts: list[list[int]], tokens: int) -> float:
        assert self.process.stdin is not None
        print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self.process.stdin, flush=True)
        return float(self._read()["seconds"])

    def warm_up(self, case: str, prompts: Prompts) -> None:
        self.seconds(prompts.of(case), 1 if case.startswith("prefill") else 4)

    def sample(self, case: str, prompts: Prompts) -> float:
        chosen = prompts.of(case)
        if case.startswith("prefill"):
            return len(chosen[0]) / self.seconds(chosen, 1)
        short = self.seconds(chosen, 1)
        return len(chosen) * DECODE / (self.seconds(chosen, DECODE + 1) - short)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


class LlamaBinaries:
    """llama.cpp's own benches; each sample is one run, with its own made-up prompts."""

    def __init__(self, folder: str, model: str, threads: int) -> None:
        self.name = "llama.cpp"
        self.folder, self.model, self.threads = Path(folder), model, str(threads)
        self.cases = CASES
        self.load_seconds = float("nan")
        self.about: dict[str, Any] = {"version": "binaries"}

    def warm_up(self, case: str, prompts: Prompts) -> None:
        pass  # the benches warm up themselves

    def sample(self, case: str, prompts: Prompts) -> float:
        if case in ("b8", "b32"):
            words = ["llama-batched-bench", "-c", "8192", "-b", "2048", "-ub", "512", "-npp", str(PROMPT)]
            words += ["-ntg", str(DECODE), "-npl", case[1:], "--output-format", "jsonl"]
            return float(self._run(words)["speed_tg"])
        words = ["llama-bench", "-r", "1", "-o", "jsonl"]
        if case == "b1":
            words += ["-p", "0", "-n", str(DECODE), "-d", str(PROMPT)]
        else:
            words += ["-p", case.removeprefix("prefill"), "-n", "0"]
        return float(self._run(words)["avg_ts"])

    def _run(self, words: list[str]) -> dict[str, Any]:
        command = [str(self.folder / words[0]), "-m", self.model, "-t", self.threads, *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not rows:
            raise RuntimeError(f"{' '.join(words)} failed: {done.stderr[-300:]}")
        return dict(rows[-1])

    def close(self) -> None:
        pass


class Prompts:
    """The prompts of the cases: stretches of the LICENSE's text, as token ids."""

    def __init__(self, model: str) -> None:
        from taco_llm.loading import resolve
        from taco_llm.tokenizer import load_tokenizer

        text = (ROOT / "LICENSE").read_text(encoding="utf-8")
        ids: list[int] = load_tokenizer(resolve(model)).encode(text)
        while len(ids) < 2048:
            ids += ids
        self.prefill = {"prefill512": ids[:512], "prefill2048": ids[:2048]}
        self.decode = [ids[50 * number : 50 * number + PROMPT] for number in range(32)]

    def of(self, case: str) -> list[list[int]]:
        return [self.prefill[case]] if case in self.prefill else self.decode[: int(case[1:])]


# --- inside the workers


def worker_ours(model: str) -> Callable[[list[list[int]], int], float]:
    from taco_llm import LLM, SamplingParams

    # As the peers' settings: a prompt in one step, 32 sequences.
    llm = LLM(model, max_num_seqs=32, max_num_batched_tokens=4096, max_model_len=4096)

    def run(prompts: list[list[int]], tokens: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        outputs = llm.generate(prompt_token_ids=prompts, sampling_params=params, use_tqdm=False)
        seconds = time.perf_counter() - started
        assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)
        return seconds

    return run


def worker_openvino(model: str) -> Callable[[list[list[int]], int], float]:
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_batched_tokens = 4096
    scheduler.max_num_seqs = 32
    scheduler.enable_prefix_caching = False
    threads = len(os.sched_getaffinity(0))
    pipeline = openvino_genai.LLMPipeline(
        model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY"
    )

    def run(prompts: list[list[int]], tokens: int) -> float:
        ids = np.array(prompts, dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample = True, False
        started = time.perf_counter()
        result = pipeline.generate(inputs, config)
        seconds = time.perf_counter() - started
        assert all(len(one) == tokens for one in result.tokens)
        return seconds

    return run


def worker_llama_python(model: str) -> Callable[[list[list[int]], int], float]:
    import llama_cpp

    threads = len(os.sched_getaffinity(0))
    llama = llama_cpp.Llama(
        model, n_ctx=4096, n_batch=2048, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def run(prompts: list[list[int]], tokens: int) -> float:
        (prompt,) = prompts
        llama.reset()
        started = time.perf_counter()
        stream = llama.generate(prompt, temp=0, top_k=1)
        for _ in range(tokens):
            next(stream)
        return time.perf_counter() - started

    return run


def work(kind: str, model: str) -> None:
    """The worker's side: one JSON line for each line of the input."""
    makers = {"ours": worker_ours, "openvino": worker_openvino, "llama-python": worker_llama_python}
    module = {"ours": "taco_llm", "openvino": "openvino_genai", "llama-python": "llama_cpp"}[kind]

    def say(answer: dict[str, Any]) -> None:
        print("#json " + json.dumps(answer), flush=True)

    try:
        run = makers[kind](model)
        say({"version": getattr(__import__(module), "__version__", "?")})
        for line in sys.stdin:
            asked = json.loads(line)
            say({"seconds": run(asked["prompts"], asked["tokens"])})
    except Exception as error:  # the driver reports it
        say({"error": f"{type(error).__name__}: {error}"})


# --- the driver


def machine() -> dict[str, Any]:
    from taco_llm import _core

    info = _core.cpu_info()
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "-C", str(ROOT), "status", "--porcelain", "-uno", "cpp", "python"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "cpu": info["model"], "isa": info["isa"], "cores": info["cores"], "kernel": os.uname().release,
        "commit": commit + ("+" if dirty else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip


def measure(engines: list[Any], case: str, prompts: Prompts, rounds: int, budget: float) -> dict[str, Any]:
    """Samples of each engine for one case, taken in turns. budget: seconds for the case."""
    clean: dict[str, list[float]] = {engine.name: [] for engine in engines}
    disturbed: dict[str, list[float]] = {engine.name: [] for engine in engines}
    able = [engine for engine in engines if case in engine.cases]
    for engine in able:
        engine.warm_up(case, prompts)
    end = time.monotonic() + budget
    while any(len(clean[engine.name]) < rounds for engine in able):
        for engine in able:
            if len(clean[engine.name]) >= rounds:
                continue
            wait_for_quiet(3)
            value, quiet = watched(lambda engine=engine: engine.sample(case, prompts))  # type: ignore[misc]
            (clean if quiet else disturbed)[engine.name].append(value)
        if time.monotonic() > end and all(clean[e.name] or disturbed[e.name] for e in able):
            break
    rows = {}
    for engine in able:
        values = clean[engine.name] or disturbed[engine.name]
        rows[engine.name] = {
            "median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values),
            "dropped": len(disturbed[engine.name]), "dirty": not clean[engine.name],
        }  # fmt: skip
    return rows


def table(model: str, results: dict[str, dict[str, Any]], names: list[str]) -> str:
    peers = [name for name in names if name != "ours"]
    head = f"{model:<40}" + "".join(f"{name:>12}" for name in names)
    lines = [head + "".join(f"{'ours/' + name:>16}" for name in peers)]
    for case, rows in results.items():
        cells, ratios = [], []
        for name in names:
            row = rows.get(name)
            cells.append(f"{row['median']:>11.1f}{'*' if row['dirty'] else ' '}" if row else f"{'-':>11} ")
        for name in peers:
            known = name in rows and "ours" in rows
            ratios.append(
                f"{rows['ours']['median'] / rows[name]['median']:>15.2f}x" if known else f"{'-':>16}"
            )
        lines.append(f"{case:<40}" + "".join(cells) + "".join(ratios))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", metavar="GGUF", help="Default: the embedded SmolLM2.")
    parser.add_argument("--worker", choices=("ours", "openvino", "llama-python"), help=argparse.SUPPRESS)
    parser.add_argument("--ours-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--openvino-python", metavar="PATH")
    parser.add_argument("--llama-python", metavar="PATH")
    parser.add_argument("--llama-bin", metavar="DIR")
    parser.add_argument("--peer-model", action="append", default=[], metavar="PEER=GGUF")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="Clean samples of each engine. Default: 3.")
    parser.add_argument("--budget", type=float, default=90.0, help="Seconds for a case. Default: 90.")
    parser.add_argument("--results", default=str(ROOT / "bench" / "results"), metavar="DIR")
    settings = parser.parse_args()
    if settings.worker:
        work(settings.worker, settings.model[0])
        return 0
    cases = settings.cases.split(",")
    if unknown := [case for case in cases if case not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; the cases are {', '.join(CASES)}")
    if not settings.model:
        from taco_llm import default_model

        settings.model = [str(default_model.path())]
    others = dict(text.split("=", 1) for text in settings.peer_model)
    about = machine()
    print(json.dumps(about))
    rows: list[dict[str, Any]] = []
    for model in settings.model:
        prompts = Prompts(model)
        engines: list[Any] = [Worker("ours", "ours", settings.ours_python, model)]
        try:
            if settings.openvino_python:
                given = others.get("openvino", model)
                engines.append(
                    Worker("openvino", "openvino", settings.openvino_python, given, {"PYTHONPATH": ""})
                )
            if settings.llama_bin:
                threads = len(os.sched_getaffinity(0))
                engines.append(LlamaBinaries(settings.llama_bin, others.get("llama.cpp", model), threads))
            if settings.llama_python:
                given = others.get("llama.cpp", model)
                env = {"PYTHONPATH": ""}
                engines.append(Worker("llama-python", "llama-python", settings.llama_python, given, env))
            results = {}
            for case in cases:
                results[case] = measure(engines, case, prompts, settings.rounds, settings.budget)
                print(f"  {case}: {json.dumps(results[case])}", file=sys.stderr, flush=True)
                for engine in engines:
                    if row := results[case].get(engine.name):
                        file = others.get(engine.name, model) if engine.name != "ours" else model
                        names = {"model": Path(file).name, "case": case, "engine": engine.name}
                        rows.append(about | names | {"version": engine.about["version"]} | row)
        finally:
            for engine in engines:
                engine.close()
        print(table(Path(model).name, results, [engine.name for engine in engines]), flush=True)
    if any(row["dirty"] for row in rows):
        print("* other processes used the CPUs during every sample: not a figure to report")
    folder = Path(settings.results)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"peers_cpu-{datetime.now(timezone.utc).strftime('%Y%m%d-%H%M')}.json"
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
