"""Perplexity of one checkpoint in several dtypes, and their ratio to float32.

    python bench/eval/perplexity.py MODEL --text FILE [--dtypes float32,bfloat16,fp8] [--tokens 16384] \\
        [--window 1024] [--device cpu|cuda] [--ids FILE.npy]

MODEL: a folder or a GGUF file. A quantised GGUF is measured as it is stored under "bfloat16" (unquantised
matrices in bfloat16) and dequantised exactly under "float32". "fp8" (CUDA) is bfloat16 with the products'
weights quantised to FP8. The text is cut into windows that do not overlap; the first token of each window is
not counted. --ids: the tokens, or where to write them if the file does not exist. With a text beside
them they are compared with what the tokenizer makes of it: other tokens have another perplexity.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from taco_llm import _core, cuda
from taco_llm.loading import load_model, resolve
from taco_llm.loading.checkpoint import Checkpoint
from taco_llm.tokenizer import load_tokenizer
from tqdm import tqdm


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum over rows. logits: [rows, vocab] float32; targets: [rows]."""
    peak = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak, dtype=np.float64).sum(axis=1)) + peak[:, 0]
    return float((log_sum - logits[np.arange(len(targets)), targets]).sum())


def perplexity(model: _core.Model, tokens: list[int], window: int, label: str) -> float:
    block = 16
    executor = _core.ModelExecutor(
        model,
        max_model_len=window,
        block_size=block,
        num_blocks=window // block + 1,
        max_num_batched_tokens=512,
        max_num_seqs=64,
    )
    total, count = 0.0, 0
    starts = range(0, len(tokens) - window + 1, window)
    for start in tqdm(starts, desc=label, unit="window", disable=not sys.stderr.isatty()):
        ids = tokens[start : start + window]
        logits = executor.forward(ids)
        total += negative_log_likelihood(logits[:-1], np.asarray(ids[1:]))
        count += window - 1
    return math.exp(total / count)


def read_tokens(args: argparse.Namespace, checkpoint: Checkpoint) -> list[int]:
    """The first args.tokens of the text or of the file of tokens."""
    stored = np.load(args.ids).tolist()[: args.tokens] if args.ids and args.ids.exists() else None
    if args.text is None:
        if stored is None:
            sys.exit("--text FILE is needed, or --ids with a file that exists")
        return stored
    text = args.text.read_text(encoding="utf-8")[: args.tokens * 8]
    tokens = load_tokenizer(checkpoint).encode(text, add_special_tokens=False)[: args.tokens]
    if stored is not None and stored != tokens:
        same = sum(a == b for a, b in zip(stored, tokens, strict=False))
        print(
            f"the tokenizer makes {len(tokens)} tokens, {args.ids} has {len(stored)}: {same} agree",
            flush=True,
        )
        return stored
    if args.ids and stored is None:
        np.save(args.ids, np.array(tokens, np.int32))
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--ids", type=Path, help="int32 .npy")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    args = parser.parse_args()
    device, _ = cuda.choose(args.device)
    if device == "cpu":
        backend = _core.Backend("cpu")
    else:
        backend = _core.Backend(device, plugin=str(cuda.plugin_path()), cublaslt=cuda.cublaslt_path())
    checkpoint = resolve(args.model)
    tokens = read_tokens(args, checkpoint)
    reference = None
    for dtype in args.dtypes.split(","):
        fp8 = dtype == "fp8"
        model = load_model(
            checkpoint,
            backend=backend,
            dtype="bfloat16" if fp8 else dtype,
            quantize_fp8=fp8,
            show_progress=False,
        )
        begin = time.perf_counter()
        value = perplexity(model, tokens, args.window, dtype)
        reference = reference if reference is not None else value
        row = {
            "model": args.model,
            "dtype": dtype,
            "device": backend.description if device != "cpu" else _core.cpu_info()["isa"],
            "tokens": len(tokens) // args.window * (args.window - 1),
            "window": args.window,
            "perplexity": round(value, 4),
            "ratio_to_first": round(value / reference, 5),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
