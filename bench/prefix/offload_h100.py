"""Prefix cache offload on a device: what a load from host memory takes, saves and costs others.

    python bench/prefix/offload_h100.py [--model llama3-8b] [--device cuda] [--prefix 16384] [--out FILE]

Random weights; the engine without HTTP. Five parts, each with figures on a line of its own:

restore   a prefix of --prefix tokens that was pushed out to host memory, and its time to first token, against
          computing it; the speed of the copies as the executor timed them. Medians over --repeats prefixes.
follow    the same with more text behind the prefix, so that the step follows the load layer by layer.
document  100 blocks, 11 prefixes of 10 blocks one after the other, then the first again: it must hit.
steps     how long each step of requests that generate takes meanwhile.
beside    tokens a second of requests that generate, alone, beside requests for prefixes on the device, and
          beside the same requests for prefixes in host memory; windows there and back, means of ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lookahead"))
import lab  # noqa: E402
from taco_llm import _core  # noqa: E402

BLOCK = lab.BLOCK
TIERS = ("device", "host")
LINK = 55e9  # bytes a second that the host link was measured at


class Run:
    """An engine with a prefix cache, and requests that somebody waits for."""

    def __init__(
        self,
        place: lab.Lab,
        *,
        blocks: int,
        host_blocks: int,
        max_len: int,
        sequences: int,
        batched: int,
        max_idle_blocks: int = -1,
    ) -> None:
        executor = _core.ModelExecutor(
            place.model,
            max_model_len=max_len,
            block_size=BLOCK,
            num_blocks=blocks,
            max_num_batched_tokens=batched,
            max_num_seqs=sequences,
            host_blocks=host_blocks,
        )
        self.engine = _core.Engine(
            executor,
            max_num_batched_tokens=batched,
            max_num_seqs=sequences,
            prefix_caching=_core.PrefixCachingConfig(
                enabled=True,
                host_blocks=host_blocks,
                block_bytes=place.block_bytes,
                max_idle_blocks=max_idle_blocks,
            ),
        )
        self.vocab = place.model.spec.vocab_size
        self.done: dict[int, _core.Output] = {}

    def submit(self, prompt: list[int], tokens: int = 1) -> int:
        return self.engine.submit(prompt, lab.forced_params(tokens))

    def poll(self, timeout: float = 0.005) -> None:
        for output in self.engine.poll(timeout):
            if output.error:
                raise RuntimeError(output.error)
            if output.request_finished:
                self.done[output.request] = output

    def wait(self, request: int, limit: float = 60) -> _core.Output:
        deadline = time.monotonic() + limit
        while request not in self.done:
            self.poll()
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer within {limit:g} s")
        return self.done.pop(request)

    def ask(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds to the first token, and the prompt tokens that were cached."""
        output = self.wait(self.submit(prompt))
        arrival, _, first, _, _ = output.times
        return first - arrival, output.num_cached_tokens

    def settle(self, limit: float = 20) -> None:
        """Until nothing is being moved."""
        deadline = time.monotonic() + limit
        while self.engine.stats().prefix_cache.transfers and time.monotonic() < deadline:
            self.poll()
        time.sleep(0.02)
        self.poll(0)

    def cache(self) -> _core.PrefixCacheStats:
        return self.engine.stats().prefix_cache

    def close(self) -> None:
        self.engine.shutdown()


def text(seed: int, length: int, vocab: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(2, vocab) for _ in range(length)]


def seeds() -> Iterator[int]:
    yield from range(1, 1 << 30)


def restore(place: lab.Lab, args: argparse.Namespace, suffix: int) -> dict[str, Any]:
    """--resident prefixes fit the device; each was pushed out by those after it when its turn comes again."""
    per = -(-args.prefix // BLOCK)
    spare = -(-(suffix + 64) // BLOCK)
    run = Run(
        place,
        blocks=args.resident * (per + spare),
        host_blocks=(args.resident + args.repeats + 1) * (per + spare),
        max_len=args.prefix + suffix + 64,
        sequences=16,
        batched=args.batched,
    )
    new = seeds()
    tails = (text(100000 + next(new), suffix, run.vocab) for _ in iter(int, 1))
    prefixes = [text(next(new), args.prefix, run.vocab) for _ in range(args.resident + args.repeats)]
    cold, restored, hits, resident = [], [], [], []
    for number, prefix in enumerate(prefixes):
        seconds, cached = run.ask(prefix + next(tails))
        if number >= 2:  # the first ones set things up
            cold.append(seconds)
        if cached:
            raise RuntimeError(f"{cached} tokens of a new prefix were cached")
        run.settle()
    before = run.cache()
    for prefix in prefixes[: args.repeats]:
        seconds, cached = run.ask(prefix + next(tails))
        restored.append(seconds)
        hits.append(cached)
        run.settle()
        resident.append(run.ask(prefix + next(tails))[0])  # it is on the device now
        run.settle()
    after = run.cache()
    moved = (after.loaded - before.loaded) * place.block_bytes
    run.close()
    result = {
        "prefix": args.prefix,
        "suffix": suffix,
        "ttft_computed_ms": 1e3 * lab.median(cold),
        "ttft_restored_ms": 1e3 * lab.median(restored),
        "ttft_on_device_ms": 1e3 * lab.median(resident),
        "times_shorter": lab.median(cold) / lab.median(restored),
        "cached_tokens": min(hits),
        "loaded_gb": moved * 1e-9,
        "load_gb_s": after.load_speed * 1e-9,
        "store_gb_s": after.store_speed * 1e-9,
        "part_of_link": after.load_speed / LINK,
        "end_to_end_gb_s": moved / max(1, len(restored)) / lab.median(restored) * 1e-9,
        "prefill_tokens_s": after.prefill_speed,
        "declined": after.fetches_declined - before.fetches_declined,
    }
    print(
        f"{'restore' if suffix == 1 else 'follow '}  {args.prefix} tokens (+{suffix}): computed "
        f"{result['ttft_computed_ms']:.1f} ms, restored {result['ttft_restored_ms']:.1f} ms "
        f"({result['times_shorter']:.1f}x shorter), on the device {result['ttft_on_device_ms']:.1f} ms; "
        f"cached {result['cached_tokens']} tokens; load {result['load_gb_s']:.1f} GB/s "
        f"({100 * result['part_of_link']:.0f} % of 55), store {result['store_gb_s']:.1f} GB/s, end to end "
        f"{result['end_to_end_gb_s']:.1f} GB/s; declined {result['declined']}",
        flush=True,
    )
    return result


def document(place: lab.Lab, args: argparse.Namespace) -> dict[str, Any]:
    run = Run(
        place, blocks=100, host_blocks=400, max_len=BLOCK * 12, sequences=4, batched=max(256, BLOCK * 12)
    )
    prefixes = [text(500 + i, 10 * BLOCK, run.vocab) for i in range(11)]
    for prefix in prefixes:
        run.ask([*prefix, 5])
        run.settle()
    stats = run.cache()
    # A fetch is not begun where computing is faster, or where neither speed has been measured yet.
    seconds, cached = run.ask([*prefixes[0], 7])
    after = run.cache()
    run.close()
    result = {
        "cached_tokens": cached,
        "of": 10 * BLOCK,
        "hits_host": after.tokens_hit["host"] - stats.tokens_hit["host"],
        "hits_device": after.tokens_hit["device"] - stats.tokens_hit["device"],
        "loaded": after.loaded - stats.loaded,
        "declined": after.fetches_declined - stats.fetches_declined,
        "ms": 1e3 * seconds,
    }
    print(
        f"document 11 x 10 blocks over 100, the first again: {cached} of {10 * BLOCK} tokens cached "
        f"({result['loaded']} blocks loaded, fetches declined {result['declined']}), {result['ms']:.1f} ms",
        flush=True,
    )
    return result


def mean_ratio(rounds: list[dict[str, tuple[float, float, int]]], kind: str) -> float:
    return sum(r["host"][0] / r[kind][0] for r in rounds) / len(rounds)


def beside(place: lab.Lab, args: argparse.Namespace) -> dict[str, Any]:
    """Requests that generate, and among them one request after another for a long prefix."""
    per = -(-args.prefix // BLOCK)
    lines, context = args.sequences, args.context
    generating = lines * -(-(context + args.tokens + BLOCK) // BLOCK)
    run = Run(
        place,
        blocks=generating + 3 * per + 64,
        host_blocks=8 * per,
        max_idle_blocks=3 * per,
        max_len=max(args.prefix + 128, context + args.tokens + 64),
        sequences=lines + 16,
        batched=args.batched,
    )
    many = [text(900 + i, args.prefix, run.vocab) for i in range(5)]  # three stay on the device
    for prefix in many:
        run.ask([*prefix, 3])
        run.settle()
    for i in range(lines):
        run.submit(text(2000 + i, context, run.vocab), args.tokens)
    while run.engine.stats().running < lines:
        run.poll()
    time.sleep(0.1)
    turn = 0

    def window(kind: str) -> tuple[float, float, int]:
        """Tokens a second of the generating requests, GB loaded a second, probes answered."""
        nonlocal turn
        run.settle()
        begin, first = time.monotonic(), run.engine.stats()
        probe, probes, next_probe = None, 0, begin
        while (now := time.monotonic()) < begin + args.window:
            if kind != "alone" and probe is None and now >= next_probe:
                if kind == "host":
                    prefix = many[turn % len(many)]
                    turn += 1
                else:
                    prefix = many[(turn - 1) % len(many)]  # the last one: on the device
                probe = run.submit([*prefix, 4 + turn % 1000, 9 + probes % 1000])
                next_probe = now + args.pause
            run.poll(0.002)
            if probe is not None and probe in run.done:
                del run.done[probe]
                probe, probes = None, probes + 1
        last, end = run.engine.stats(), time.monotonic()
        tokens = last.generation_tokens - first.generation_tokens - probes
        loaded = (last.prefix_cache.loaded - first.prefix_cache.loaded) * place.block_bytes
        if probe is not None:
            run.wait(probe)
        if last.running < lines:
            raise RuntimeError("the generating requests ended: raise --tokens or shorten --window")
        return tokens / (end - begin), loaded / (end - begin) * 1e-9, probes

    results: dict[str, Any] = {}
    for pause in args.pauses:
        args.pause = pause
        window("host")
        rounds: list[dict[str, tuple[float, float, int]]] = []
        # There and back: steps get slower as texts grow.
        for number in range(args.rounds):
            kinds = ("alone", "device", "host")
            rounds.append({kind: window(kind) for kind in (kinds if number % 2 == 0 else kinds[::-1])})
        speed = {kind: lab.median([r[kind][0] for r in rounds]) for kind in rounds[0]}
        ratio = mean_ratio(rounds, "device")
        to_alone = mean_ratio(rounds, "alone")
        loads = lab.median([r["host"][1] for r in rounds])
        probes = lab.median([r["host"][2] for r in rounds])
        results[f"{pause:g}"] = {
            "tokens_s": speed,
            "host_to_device": ratio,
            "host_to_alone": to_alone,
            "load_gb_s": loads,
            "probes": probes,
            "all": rounds,
        }
        print(
            f"beside   {lines} sequences, a request each {pause:g} s: alone {speed['alone']:.0f} tokens/s, "
            f"beside hits on the device {speed['device']:.0f}, in host memory {speed['host']:.0f} "
            f"({loads:.1f} GB/s, {probes} requests a window): {100 * (ratio - 1):+.1f} % against the "
            f"device's, {100 * (to_alone - 1):+.1f} % against alone",
            flush=True,
        )
    run.engine.abort_all()
    run.close()
    return results


def steps(place: lab.Lab, args: argparse.Namespace) -> dict[str, Any]:
    """How long each step takes while a request's prefix comes from the device, or from host memory."""
    per, lines = -(-args.prefix // BLOCK), args.sequences
    generating = lines * -(-(args.context + args.tokens + BLOCK) // BLOCK)
    run = Run(
        place,
        blocks=generating + 3 * per + 64,
        host_blocks=8 * per,
        max_idle_blocks=3 * per,
        max_len=max(args.prefix + 128, args.context + args.tokens + 64),
        sequences=lines + 16,
        batched=args.batched,
    )
    many = [text(900 + i, args.prefix, run.vocab) for i in range(5)]
    for prefix in many:
        run.ask([*prefix, 3])
        run.settle()
    for i in range(lines):
        run.submit(text(2000 + i, args.context, run.vocab), args.tokens)
    while run.engine.stats().running < lines:
        run.poll()
    time.sleep(0.2)
    result: dict[str, Any] = {}

    def watch(kind: str, prefix: list[int] | None) -> None:
        request = run.submit([*prefix, 4, 9]) if prefix else None
        begin, loaded = time.monotonic(), run.cache().loaded
        seen: list[tuple[int, float, int]] = []
        while time.monotonic() < begin + 0.25:
            stats = run.engine.stats()
            if not seen or stats.steps != seen[-1][0]:
                seen.append((stats.steps, stats.last_step_end, stats.prefix_cache.loaded - loaded))
            time.sleep(0.0002)
            run.poll(0)
        took = [
            (1e3 * (b[1] - a[1]) / (b[0] - a[0]), 1e3 * (b[1] - begin), b[2])
            for a, b in zip(seen, seen[1:], strict=False)
        ]
        result[kind] = took
        ttft = 0.0
        if request is not None:
            times = run.wait(request).times
            ttft = 1e3 * (times[2] - times[0])
        shown = " ".join(f"{ms:.1f}" + (f"[{blocks}]" if blocks else "") for ms, _, blocks in took[:14])
        print(
            f"steps    {kind}: first token {ttft:.1f} ms; steps' ms [blocks loaded by then]: {shown}",
            flush=True,
        )

    for turn in range(2):
        watch(f"alone {turn}", None)
        watch(f"device {turn}", many[turn - 1])
        watch(f"host {turn}", many[turn])
    run.engine.abort_all()
    run.close()
    return result


def numbers(value: str) -> list[float]:
    return [float(v) for v in value.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3-8b", help="a shape of random_config.py, or a folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prefix", type=int, default=16384, help="tokens of a prefix")
    parser.add_argument("--follow", type=int, default=2048, help="tokens behind it in the part follow")
    parser.add_argument("--resident", type=int, default=9, help="prefixes that fit the device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batched", type=int, default=8192, help="tokens of a step")
    parser.add_argument("--sequences", type=int, default=32, help="that generate in the part beside")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=6000, help="that each may generate")
    parser.add_argument(
        "--window", type=float, default=1.5, help="seconds of a measurement in the part beside"
    )
    parser.add_argument("--rounds", type=int, default=4, help="an even number: every other is in reverse")
    parser.add_argument("--pauses", type=numbers, default=[0.5, 0.0], help="seconds between its requests")
    parser.add_argument("--parts", default="restore,follow,document,steps,beside")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    place = lab.Lab(args.model, device=args.device, dtype=args.dtype)
    print(
        f"{place.backend.description}; {args.model}, {place.block_bytes / 2**20:.2f} MiB a block; "
        f"loaded in {time.monotonic() - started:.1f} s",
        flush=True,
    )
    result: dict[str, Any] = {"machine": place.backend.description, "model": args.model}
    parts = {
        "restore": lambda: restore(place, args, 1),
        "follow": lambda: restore(place, args, args.follow),
        "document": lambda: document(place, args),
        "steps": lambda: steps(place, args),
        "beside": lambda: beside(place, args),
    }
    for name in args.parts.split(","):
        try:
            result[name] = parts[name]()
        except RuntimeError as error:  # the other parts' figures count all the same
            print(f"{name}: {error}", flush=True)
            result[name] = {"error": str(error)}
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"all: {time.monotonic() - started:.1f} s")
    return 1 if any("error" in part for part in result.values() if isinstance(part, dict)) else 0


if __name__ == "__main__":
    sys.exit(main())
