"""`taco_llm bench serve`: an HTTP client that loads a running server and reports what its users see."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from taco_llm.cli.parser import Parser, UsageError
from taco_llm.cli.workload import cycle, mean, percentile, random_texts, read_prompts

METRICS = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-End Latency", "E2E Latency"),
}


@dataclass
class Sample:
    """What one request saw; times in seconds. itl: gaps between events that brought text."""

    ok: bool = False
    error: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft: float = 0.0
    latency: float = 0.0
    itl: list[float] = field(default_factory=list)
    text: str = ""


def make_parser() -> Parser:
    parser = Parser(
        prog="taco_llm bench serve",
        description="Sends requests to a running OpenAI-compatible server, prints throughput and latencies: "
        "TTFT (time to first token), TPOT (time per output token after it), ITL (gap between pieces).",
    )
    where = parser.add_argument_group("server")
    where.add_argument("--base-url", metavar="URL", help="The server, such as http://localhost:8000.")
    where.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="Default: 127.0.0.1.")
    where.add_argument("--port", type=int, default=8000, metavar="N", help="Default: 8000.")
    where.add_argument(
        "--backend", choices=("openai", "openai-chat", "vllm", "taco_llm"), default="openai",
        help="openai (the same as vllm and taco_llm): /v1/completions. openai-chat: /v1/chat/completions.",
    )  # fmt: skip
    where.add_argument("--endpoint", metavar="PATH", help="Path to use instead of the backend's.")
    where.add_argument("--model", metavar="NAME", help="Default: the server's first.")
    where.add_argument("--api-key", metavar="KEY", help="Also OPENAI_API_KEY.")
    what = parser.add_argument_group("requests")
    what.add_argument(
        "--dataset-name", choices=("random", "sharegpt", "file"), help="Default: by --dataset-path."
    )
    what.add_argument("--dataset-path", metavar="FILE", help="Prompts: ShareGPT, JSON lines or text lines.")
    what.add_argument("--num-prompts", type=int, default=100, metavar="N", help="Requests. Default: 100.")
    what.add_argument("--random-input-len", type=int, default=128, metavar="N", help="Default: 128 tokens.")
    what.add_argument("--random-output-len", type=int, default=128, metavar="N", help="Default: 128 tokens.")
    what.add_argument("--output-len", type=int, metavar="N", help="Tokens of an answer, for every dataset.")
    what.add_argument("--ignore-eos", action="store_true", help="Make answers as long as asked for.")
    what.add_argument("--temperature", type=float, default=0.0, metavar="X", help="Default: 0.")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="Of prompts and arrivals. Default: 0.")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--request-rate", type=float, default=float("inf"), metavar="X",
        help="Requests per second, at random (Poisson) moments. Default: inf, all at once.",
    )  # fmt: skip
    load.add_argument("--max-concurrency", type=int, metavar="N", help="Most requests under way at once.")
    out = parser.add_argument_group("results")
    out.add_argument(
        "--percentile-metrics",
        default="ttft,tpot,itl",
        metavar="NAMES",
        help="Which of ttft, tpot, itl, e2el get percentiles. Default: ttft,tpot,itl.",
    )
    out.add_argument("--metric-percentiles", default="99", metavar="P,...", help="Default: 99.")
    out.add_argument("--save-result", action="store_true", help="Write a JSON file of the figures.")
    out.add_argument("--result-dir", default=".", metavar="DIR", help="Where. Default: here.")
    out.add_argument("--result-filename", metavar="NAME", help="Default: BACKEND-RATEqps-MODEL-DATE.json.")
    return parser


def run(argv: Sequence[str]) -> int:
    settings = make_parser().parse(argv)
    for name in ("num_prompts", "random_input_len", "random_output_len"):
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} should be 1 or more")
    if not settings.request_rate > 0:
        raise UsageError("--request-rate should be above 0")
    if settings.max_concurrency is not None and settings.max_concurrency < 1:
        raise UsageError("--max-concurrency should be 1 or more")
    chosen = [name.strip() for name in settings.percentile_metrics.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in METRICS]:
        raise UsageError(f"--percentile-metrics: {unknown[0]!r} is not one of {', '.join(METRICS)}")
    try:
        percents = [float(text) for text in settings.metric_percentiles.split(",")]
    except ValueError:
        raise UsageError(f"--metric-percentiles {settings.metric_percentiles!r} should be numbers") from None
    samples, seconds, model = asyncio.run(measure(settings))
    figures = summarize(samples, seconds, chosen, percents)
    print(table(figures, settings, chosen, percents))
    failed = [sample for sample in samples if not sample.ok]
    if failed:
        print(f"{len(failed)} of {len(samples)} requests failed; the first: {failed[0].error}")
    if settings.save_result:
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        rate = f"{settings.request_rate:g}"
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in model.split("/")[-1])
        name = settings.result_filename or f"{settings.backend}-{rate}qps-{safe}-{now}.json"
        settings_of_run = {
            "date": now, "backend": settings.backend, "model_id": model, "num_prompts": settings.num_prompts,
            "request_rate": rate, "max_concurrency": settings.max_concurrency,
        }  # fmt: skip
        path = Path(settings.result_dir).expanduser() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {name: None if value != value else value for name, value in figures.items()}  # nan: no JSON
        path.write_text(json.dumps(settings_of_run | known, indent=2) + "\n", encoding="utf-8")
        print(f"written to {path}")
    return 0 if len(failed) < len(samples) else 1


async def measure(settings: argparse.Namespace) -> tuple[list[Sample], float, str]:
    """Sends the requests. Returns what each saw, the seconds from first to last, and the model's name."""
    import aiohttp

    base = (settings.base_url or f"http://{settings.host}:{settings.port}").rstrip("/").removesuffix("/v1")
    chat = settings.backend == "openai-chat"
    url = base + (settings.endpoint or ("/v1/chat/completions" if chat else "/v1/completions"))
    key = settings.api_key or os.environ.get("OPENAI_API_KEY")
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=6 * 3600, sock_connect=30)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        model = settings.model or await _first_model(session, base)
        bodies = await _bodies(settings, session, base, model, chat)
        probe = await _send(session, url, {**bodies[0], "max_tokens": 1}, chat)
        if not probe.ok:
            raise RuntimeError(f"a first request to {url} failed: {probe.error}")
        gate = asyncio.Semaphore(settings.max_concurrency or len(bodies))

        async def one(body: dict[str, Any]) -> Sample:
            async with gate:
                return await _send(session, url, body, chat)

        draw = random.Random(settings.seed)
        started = time.perf_counter()
        due = started
        tasks: list[asyncio.Task[Sample]] = []
        for body in bodies:
            if settings.request_rate != float("inf") and tasks:
                # Moments are absolute, so that a late start of one does not shift the rest.
                due += draw.expovariate(settings.request_rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(body)))
        samples = await asyncio.gather(*tasks)
        return list(samples), time.perf_counter() - started, model


async def _first_model(session: Any, base: str) -> str:
    import aiohttp

    try:
        async with session.get(f"{base}/v1/models") as response:
            data = await response.json(content_type=None)
            if response.status >= 400:
                raise RuntimeError(f"{base}/v1/models says {response.status}: {data}")
            return str(data["data"][0]["id"])
    except aiohttp.ClientError as error:
        raise RuntimeError(f"no answer from {base}: {error}; is the server running?") from None
    except (KeyError, IndexError, TypeError):
        raise RuntimeError(f"{base}/v1/models lists no model; name one by --model") from None


async def _bodies(
    settings: argparse.Namespace, session: Any, base: str, model: str, chat: bool
) -> list[dict[str, Any]]:
    kind = settings.dataset_name or ("file" if settings.dataset_path else "random")
    length = settings.output_len or settings.random_output_len
    prompts: list[Any]
    if kind == "random":
        prompts = random_texts(settings.num_prompts, settings.random_input_len, settings.seed)
        if not chat:
            # Token ids make the length exact; a server without /tokenize gets about as many words.
            prompts = await asyncio.gather(
                *(_exact(session, base, model, text, settings.random_input_len) for text in prompts)
            )
    else:
        if not settings.dataset_path:
            raise UsageError(f"--dataset-name {kind} needs --dataset-path")
        found = read_prompts(Path(settings.dataset_path).expanduser())
        random.Random(settings.seed).shuffle(found)
        prompts = cycle(found, settings.num_prompts)
    bodies = []
    for prompt in prompts:
        body: dict[str, Any] = {"model": model, "max_tokens": length, "temperature": settings.temperature}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if settings.ignore_eos:
            body["ignore_eos"] = True
        if chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        bodies.append(body)
    return bodies


async def _exact(session: Any, base: str, model: str, text: str, length: int) -> Any:
    """The text as exactly `length` token ids; the text itself when the server does not tokenise."""
    ids: list[int] = []
    while len(ids) < length:
        try:
            async with session.post(f"{base}/tokenize", json={"model": model, "prompt": text}) as response:
                if response.status >= 400:
                    return text
                ids = (await response.json(content_type=None))["tokens"]
        except Exception:  # whatever else such a server answers: words will do
            return text
        text += " " + text
    return ids[:length]


async def _send(session: Any, url: str, body: dict[str, Any], chat: bool) -> Sample:
    sample = Sample()
    started = latest = time.perf_counter()
    events = 0
    try:
        async with session.post(url, json=body) as response:
            if response.status >= 400:
                sample.error = f"{response.status}: {(await response.text())[:300]}"
                return sample
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    sample.ok = True
                    continue
                event = json.loads(data)
                if event.get("error"):
                    sample.error = str(event["error"])
                    return sample
                if usage := event.get("usage"):
                    sample.prompt_tokens = usage.get("prompt_tokens", 0)
                    sample.output_tokens = usage.get("completion_tokens", 0)
                for choice in event.get("choices") or []:
                    text = (choice.get("delta") or {}).get("content") if chat else choice.get("text")
                    if not text:
                        continue
                    now = time.perf_counter()
                    if events == 0:
                        sample.ttft = now - started
                    else:
                        sample.itl.append(now - latest)
                    events += 1
                    latest = now
                    sample.text += text
            sample.latency = latest - started
            sample.output_tokens = sample.output_tokens or events
            if not sample.ok:
                sample.error = "the stream ended without [DONE]"
    except Exception as error:  # one request's failure is a figure, not the end of the run
        sample.ok = False
        sample.error = f"{type(error).__name__}: {error}"
    return sample


def summarize(
    samples: Sequence[Sample], seconds: float, chosen: Sequence[str], percents: Sequence[float]
) -> dict[str, Any]:
    """The figures of a run; latencies in milliseconds."""
    done = [sample for sample in samples if sample.ok]
    spoken = [sample for sample in done if sample.ttft]
    prompt_tokens = sum(sample.prompt_tokens for sample in done)
    output_tokens = sum(sample.output_tokens for sample in done)
    series = {
        "ttft": [sample.ttft for sample in spoken],
        "tpot": [
            (sample.latency - sample.ttft) / (sample.output_tokens - 1)
            for sample in spoken
            if sample.output_tokens > 1
        ],
        "itl": [gap for sample in spoken for gap in sample.itl],
        "e2el": [sample.latency for sample in spoken],
    }
    figures: dict[str, Any] = {
        "completed": len(done),
        "failed": len(samples) - len(done),
        "duration": seconds,
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(done) / seconds,
        "input_throughput": prompt_tokens / seconds,
        "output_throughput": output_tokens / seconds,
    }
    for name, values in series.items():
        millis = [value * 1e3 for value in values]
        figures[f"mean_{name}_ms"] = mean(millis)
        figures[f"median_{name}_ms"] = percentile(millis, 50)
        if name in chosen:
            for percent in percents:
                figures[f"p{percent:g}_{name}_ms"] = percentile(millis, percent)
    return figures


def table(
    figures: dict[str, Any], settings: argparse.Namespace, chosen: Sequence[str], percents: Sequence[float]
) -> str:
    """The figures as a person reads them."""
    width = 52
    rows = [" Serving Benchmark Result ".center(width, "=")]

    def row(name: str, value: Any) -> None:
        rows.append(f"{name:<41}{value:<10.2f}" if isinstance(value, float) else f"{name:<41}{value:<10}")

    row("Backend:", settings.backend)
    row("Traffic request rate:", f"{settings.request_rate:g}")
    row("Successful requests:", figures["completed"])
    row("Benchmark duration (s):", figures["duration"])
    row("Total input tokens:", figures["total_input_tokens"])
    row("Total generated tokens:", figures["total_output_tokens"])
    row("Request throughput (req/s):", figures["request_throughput"])
    row("Input token throughput (tok/s):", figures["input_throughput"])
    row("Output token throughput (tok/s):", figures["output_throughput"])
    for name in ("e2el", "ttft", "tpot", "itl"):
        title, short = METRICS[name]
        rows.append(title.center(width, "-"))
        row(f"Mean {short} (ms):", figures[f"mean_{name}_ms"])
        row(f"Median {short} (ms):", figures[f"median_{name}_ms"])
        if name in chosen:
            for percent in percents:
                row(f"P{percent:g} {short} (ms):", figures[f"p{percent:g}_{name}_ms"])
    rows.append("=" * width)
    return "\n".join(rows)
