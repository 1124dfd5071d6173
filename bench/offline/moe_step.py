"""Decoding steps of a mixture of experts, against the bytes that a step must read.

    python bench/offline/moe_step.py [--model mixtral-8x7b] [--layers 8] [--batch 1,32,256] [--context 512]
        [--device cuda] [--out FILE.json]

An engine decodes greedily behind prompts of random tokens; a step is what passes between the ends of two
steps, host work included: the median over windows of steps. Weights are random, with norms of one and a
residual stream that the embedding dominates: a router sees the token's embedding (up to its length, which
top-k does not see), so that the experts of a step follow from its tokens and are counted. `experts` is that
count, mean over layers and steps; `expected` is that of uniform routing, E (1 - (1 - k/E)^batch). The head is
the embedding, one row on: token t is followed by t + 1, which is checked, and sequences do not run into one.

A step must read every weight outside experts and embedding once, the keys and values of the context, and the
weights of the experts in use. `share` is bytes per second over those of a device copy in the same process
(reads and writes counted); `share_all` takes all experts as read. Bytes are 2 for each weight, key and value.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import random_config
from taco_llm import _core, cuda
from taco_llm.archs import build_spec

BLOCK = 16
SEED = 5
BYTES = 2  # of a weight, key or value


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def from_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


class Mixture:
    """The model, with the few weights that decide the routing kept here too."""

    def __init__(self, config: dict[str, Any], backend: _core.Backend) -> None:
        self.config = config
        spec, _ = build_spec(config)
        builder = _core.ModelBuilder(spec, backend, "bfloat16")
        self.slots = builder.slots()
        draw = np.random.default_rng(SEED)
        pool = to_bfloat16(draw.uniform(-1e-3, 1e-3, 1 << 20)) if backend.name == "cpu" else None
        self.routers: list[np.ndarray] = []
        self.embedding = np.empty(0, np.uint16)
        for number, (slot, shape) in enumerate(self.slots.items()):
            if slot == "head.weight":
                values = np.roll(self.embedding, 1, axis=0)
            elif len(shape) == 1:
                values = to_bfloat16(np.ones(shape))
            elif slot == "embed.tokens" or slot.endswith("router.weight"):
                size = 1 if slot == "embed.tokens" else shape[1] ** -0.5
                values = to_bfloat16(size * draw.standard_normal(shape, np.float32))
            elif pool is not None:
                values = np.resize(np.roll(pool, -7919 * number), shape)
            else:
                builder.add_dummy(slot, shape, number)
                continue
            if slot == "embed.tokens":
                self.embedding = values
            elif slot.endswith("router.weight"):
                self.routers.append(from_bfloat16(values))
            builder.add(slot, values.reshape(-1).view(np.uint8), "BF16", shape)
        self.model = builder.finish()

    def experts_of(self, tokens: np.ndarray) -> np.ndarray:
        """[layers, tokens, top_k]: which experts they are sent to."""
        rows = from_bfloat16(self.embedding[tokens])
        top = self.config["num_experts_per_tok"]
        return np.stack([np.argsort(-(rows @ router.T), axis=1)[:, :top] for router in self.routers])

    def bytes_of(self, batch: int, context: float, experts: float) -> int:
        """What a step must read. experts: distinct ones of a layer, their mean."""
        dense = expert = 0
        for slot, shape in self.slots.items():
            if ".experts." in slot:
                expert += int(np.prod(shape))
            elif slot != "embed.tokens":
                dense += int(np.prod(shape))
        config = self.config
        keys = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        used = expert * experts / config["num_local_experts"]
        return round(BYTES * (dense + used + batch * config["hidden_size"] + batch * context * keys))

    def flops_of(self, batch: int, context: float) -> float:
        """Of the products and the attention of a step."""
        config = self.config
        weights = 0.0
        for slot, shape in self.slots.items():
            if len(shape) == 2 and slot != "embed.tokens":
                share = config["num_experts_per_tok"] / config["num_local_experts"]
                weights += np.prod(shape, dtype=float) * (share if ".experts." in slot else 1)
        heads = config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"]
        return 2 * batch * (weights + 2 * context * heads)


def copy_speed(device: str, buffer_bytes: int) -> float:
    """Bytes per second of a copy, read and written; the median of 15."""
    if device == "cpu":
        source = np.ones(buffer_bytes, np.uint8)
        target = np.zeros_like(source)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            np.copyto(target, source)
            times.append(time.perf_counter() - begin)
        return 2 * buffer_bytes / statistics.median(times)
    import torch

    source = torch.empty(buffer_bytes // 2, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    times = []
    for _ in range(18):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    del source, target
    torch.cuda.empty_cache()
    return 2 * buffer_bytes / statistics.median(times[3:])


def measure(
    engine: _core.Engine, batch: int, context: int, *, windows: int, steps: int, warm: int
) -> tuple[list[float], list[np.ndarray], float]:
    """(seconds of a step in each window; the tokens that each measured step computed; mean context)."""
    draw = random.Random(batch)
    params = _core.SamplingParams(
        temperature=0.0, max_tokens=engine.max_model_len - context - 1, ignore_eos=True, detokenize=False
    )
    tokens: dict[int, list[int]] = {}
    for _ in range(batch):
        prompt = [draw.randrange(2, engine.vocab_size) for _ in range(context)]
        tokens[engine.submit(prompt, params)] = []

    def poll(timeout: float) -> None:
        for output in engine.poll(timeout):
            if output.finish_reason is not None:
                raise RuntimeError(f"a request ended: {output.finish_reason} {output.error}")
            tokens[output.request] += output.token_ids

    deadline = time.monotonic() + 120
    while min(map(len, tokens.values())) < 2:
        poll(0.01)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{batch} sequences do not run together")

    def wait(count: int) -> tuple[int, float]:
        begin = engine.stats().steps
        while True:
            poll(0.002)
            now = engine.stats()
            if now.steps >= begin + count:
                return now.steps, now.last_step_end

    last, end = wait(warm)
    before = {request: len(found) for request, found in tokens.items()}
    seconds = []
    for _ in range(windows):
        first, begin = last, end
        last, end = wait(steps)
        seconds.append((end - begin) / (last - first))
    poll(0)
    after = {request: len(found) for request, found in tokens.items()}
    if engine.stats().running != batch:
        raise RuntimeError("not all sequences ran to the end of the measurement")
    engine.abort_all()
    while engine.stats().running:
        engine.poll(0.01)
    while engine.poll():
        pass
    for found in tokens.values():
        if any(b != (a + 1) % engine.vocab_size for a, b in pairwise(found)):
            raise RuntimeError(
                "the model is not the one that was put together: a token has the wrong successor"
            )
    count = min(after[request] - before[request] for request in tokens)
    computed = [
        np.array([found[before[request] + step] for request, found in tokens.items()])
        for step in range(count)
    ]
    mean = context + statistics.mean((before[r] + after[r]) / 2 for r in tokens)
    return seconds, computed, mean


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mixtures = [name for name, config in random_config.SHAPES.items() if "num_local_experts" in config]
    parser.add_argument("--model", default="mixtral-8x7b", choices=mixtures)
    parser.add_argument("--layers", type=int, default=8, help="instead of the shape's; all have one cost")
    parser.add_argument("--batch", type=numbers, default="1,32,256")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="of a window")
    parser.add_argument("--warm", type=int, default=12, help="steps before the first window")
    parser.add_argument("--copy-bytes", type=int, default=4 << 30)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    device, _ = cuda.choose(args.device)
    if device == "cpu":
        backend = _core.Backend("cpu")
    else:
        backend = _core.Backend(device, plugin=str(cuda.plugin_path()), cublaslt=cuda.cublaslt_path())
    config = {**random_config.SHAPES[args.model], "num_hidden_layers": args.layers}
    begin = time.perf_counter()
    mixture = Mixture(config, backend)
    print(f"weights: {mixture.model.weight_bytes / 1e9:.2f} GB in {time.perf_counter() - begin:.1f} s")
    # Room for the run-ahead and for what the host is late by.
    longest = args.context + args.warm + 2 * args.windows * args.steps + 256
    largest = max(args.batch)
    executor = _core.ModelExecutor(
        mixture.model,
        max_model_len=longest,
        block_size=BLOCK,
        num_blocks=largest * -(-longest // BLOCK),
        max_num_batched_tokens=8192,
        max_num_seqs=largest,
    )
    engine = _core.Engine(executor, max_num_batched_tokens=8192, max_num_seqs=largest)
    copies = [copy_speed(device, args.copy_bytes)]
    rows = []
    experts, top = config["num_local_experts"], config["num_experts_per_tok"]
    for batch in args.batch:
        seconds, computed, context = measure(
            engine, batch, args.context, windows=args.windows, steps=args.steps, warm=args.warm
        )
        sent = [mixture.experts_of(tokens) for tokens in computed]
        used = statistics.mean(len(np.unique(layer)) for step in sent for layer in step)
        rows.append(
            {
                "batch": batch,
                "step_ms": 1e3 * statistics.median(seconds),
                "windows_ms": [round(1e3 * value, 4) for value in seconds],
                "context": round(context, 1),
                "steps_counted": len(computed),
                "distinct_tokens": round(statistics.mean(len(np.unique(t)) for t in computed), 1),
                "experts": round(used, 3),
                "expected": round(experts * (1 - (1 - top / experts) ** batch), 3),
                "bytes": mixture.bytes_of(batch, context, used),
                "bytes_all": mixture.bytes_of(batch, context, experts),
                "flops": mixture.flops_of(batch, context),
            }
        )
        print(f"batch {batch}: {rows[-1]['step_ms']:.3f} ms", flush=True)
    engine.shutdown()
    copies.append(copy_speed(device, args.copy_bytes))
    copy = statistics.median(copies)
    print(f"copy: {', '.join(f'{value / 1e9:.1f}' for value in copies)} GB/s read and written")
    print("experts: distinct ones of a layer, in brackets what uniform routing would use; share: of the copy")
    print("| batch | step ms | least, most | experts | GB a step | GB/s | share | of all experts | TFLOP/s |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        second = row["step_ms"] * 1e-3
        row["share"] = row["bytes"] / second / copy
        row["share_all"] = row["bytes_all"] / second / copy
        cells = (
            f"{row['batch']}",
            f"{row['step_ms']:.3f}",
            f"{min(row['windows_ms']):.3f}, {max(row['windows_ms']):.3f}",
            f"{row['experts']} ({row['expected']})",
            f"{row['bytes'] / 1e9:.3f}",
            f"{row['bytes'] / second / 1e9:.0f}",
            f"{100 * row['share']:.1f} %",
            f"{100 * row['share_all']:.1f} %",
            f"{row['flops'] / second / 1e12:.1f}",
        )
        print(f"| {' | '.join(cells)} |")
    if args.out:
        result = {
            "model": args.model,
            "layers": args.layers,
            "device": backend.description if device != "cpu" else platform.processor() or "cpu",
            "copy_bytes_per_second": copies,
            "rows": rows,
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
