"""FP8 checkpoints on a device, in the layouts that are in use, against plain models of the same numbers.

    python tests/python/loading/device_fp8.py [cuda|cpu] [RESULT.json]

Makes random models of Llama's and Mixtral's shape (fixed seeds, a few MB each), writes them as AutoFP8,
llm-compressor and the block-scaled releases do, loads them and compares the logits of one sequence, computed
whole, in small chunks and token by token, with two models in numpy:

* exact: float32, weights = numbers x scales. On the CPU, in float32, the engine must agree within 1e-4 of the
  largest logit: the loader's part.
* rounded: what the device is said to compute. Weights once more in e4m3 with one scale for each matrix,
  activations in e4m3 scaled by the maximum of their row, everything between in 16 bits.

On a device the engine is in no place bit for bit the rounded model: a sum in another order moves a 16-bit
number, and now and then one over an edge of e4m3. How far that carries is taken from two rounded models that
differ in the 16-bit type alone. Of relative distances (norms of differences over the norm of the exact
logits), the engine's from the rounded model may be 1.5 times that, and its distance from the exact one at
most 1.2 times the rounded model's own. Where the rounding moves a token to another expert, its logits are
others: of mixtures the median token's distance counts, of all and of those computed one by one. Exit status 1
otherwise.

Needs numpy alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoint import DTYPES, safetensors_bytes

Array = np.ndarray
BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
MIXTURE = {
    "architectures": ["MixtralForCausalLM"],
    "num_hidden_layers": 2,
    "intermediate_size": 512,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
LENGTH = 96
SINGLE = 24  # of them one by one
CPU_TOLERANCE = 1e-4


def compressed(strategy: str, activations: str, dynamic: bool) -> dict[str, Any]:
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**numbers, "strategy": strategy, "dynamic": False},
                "input_activations": {**numbers, "strategy": activations, "dynamic": dynamic},
            }
        },
        "ignore": ["lm_head"],
    }


@dataclass(frozen=True)
class Layout:
    scales: str  # of a weight: tensor, channel or block
    quantization: dict[str, Any]
    scale_type: str = "<f4"  # or "<u2": bfloat16
    static: bool = False  # input_scale beside each weight
    config: dict[str, Any] = field(default_factory=dict)
    wide: tuple[str, ...] = ()  # ends of the names that stay in 16 bits


LAYOUTS = {
    "autofp8-static": Layout("tensor", {"quant_method": "fp8", "activation_scheme": "static"}, static=True),
    "fp8-dynamic": Layout("tensor", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "compressed-static": Layout(
        "tensor", compressed("tensor", "tensor", False), scale_type="<u2", static=True
    ),
    "compressed-channel": Layout("channel", compressed("channel", "token", True), scale_type="<u2"),
    "block-128": Layout(
        "block", {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    ),
    "some-layers-wide": Layout(
        "tensor",
        {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj"],
        },
        static=True,
        wide=("layers.1.mlp.down_proj.weight", "layers.2.self_attn.o_proj.weight"),
    ),
    "mixture-static": Layout(
        "tensor", {"quant_method": "fp8", "activation_scheme": "static"}, static=True, config=MIXTURE
    ),
}
# In one layer the roundings have not spread over everything yet, so that the rounded model says more.
LAYOUTS |= {
    f"{name}-shallow": replace(layout, config={**layout.config, "num_hidden_layers": 1})
    for name, layout in LAYOUTS.items()
    if not layout.wide
}


def round16(values: Array, kind: str) -> Array:
    """float32 numbers of float32, float16 or bfloat16."""
    values = np.asarray(values, np.float32)
    if kind == "float32":
        return values
    if kind == "float16":
        return values.astype(np.float16).astype(np.float32)
    return (bfloat16(values).astype(np.uint32) << 16).view(np.float32)


def bfloat16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def round_e4m3(values: Array) -> Array:
    size = np.abs(values)
    exponent = np.maximum(np.floor(np.log2(np.maximum(size, 1e-30))), -6)
    step = np.exp2(exponent - 3)
    return np.sign(values) * np.minimum(np.round(size / step) * step, 448)


def codes_of(values: Array) -> Array:
    """Bytes of numbers of e4m3."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    table = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * np.exp2(exponent - 7.0))
    found = np.searchsorted(table, np.abs(values))
    assert (table[found] == np.abs(values)).all()
    return (found + np.where(values < 0, 128, 0)).astype(np.uint8)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = (hidden,)
        out[p + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            out[f"{p}self_attn.{name}_proj.weight"] = (rows, hidden)
        if "num_local_experts" in config:
            out[p + "block_sparse_moe.gate.weight"] = (config["num_local_experts"], hidden)
            for e in range(config["num_local_experts"]):
                for name, shape in (
                    ("w1", (inner, hidden)),
                    ("w2", (hidden, inner)),
                    ("w3", (inner, hidden)),
                ):
                    out[f"{p}block_sparse_moe.experts.{e}.{name}.weight"] = shape
        else:
            for name, shape in (
                ("gate", (inner, hidden)),
                ("up", (inner, hidden)),
                ("down", (hidden, inner)),
            ):
                out[f"{p}mlp.{name}_proj.weight"] = shape
    return out | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def make(layout: Layout, seed: int, folder: Path) -> tuple[dict[str, Any], dict[str, Array], set[str]]:
    """Writes the checkpoint; (config, what its weights are in float32, the names that are in FP8)."""
    config = {**BASE, **layout.config}
    draw = np.random.default_rng(seed)
    stored: dict[str, Array] = {}
    exact: dict[str, Array] = {}
    narrow: set[str] = set()
    for name, shape in shapes(config).items():
        if len(shape) == 1:
            values = round16(1 + 0.1 * draw.standard_normal(shape), "bfloat16")
        else:
            values = draw.standard_normal(shape) * (1 if "embed" in name else shape[1] ** -0.5)
        linear = ("proj" in name or ".experts." in name) and not name.endswith(layout.wide or ("-",))
        if not linear:
            exact[name] = round16(values, "bfloat16")
            stored[name] = bfloat16(exact[name])
            continue
        rows, cols = shape
        if layout.scales == "tensor":
            scale = np.full((1, 1), np.abs(values).max() / 448)
        elif layout.scales == "channel":
            values *= np.exp(0.5 * draw.standard_normal((rows, 1)))  # so that the rows' scales do differ
            scale = np.abs(values).max(1, keepdims=True) / 448
        else:
            values *= np.kron(
                np.exp(0.5 * draw.standard_normal((rows // 128, cols // 128))), np.ones((128, 128))
            )
            scale = np.abs(values).reshape(rows // 128, 128, cols // 128, 128).max((1, 3)) / 448
        scale = scale.astype(np.float32)
        if layout.scale_type == "<u2":
            scale = round16(scale, "bfloat16")
        full = np.kron(scale, np.ones((128, 128), np.float32)) if layout.scales == "block" else scale
        numbers = round_e4m3(values / full).astype(np.float32)
        exact[name] = numbers * full
        narrow.add(name)
        stored[name] = codes_of(numbers)
        kept = scale.reshape(1) if layout.scales == "tensor" else scale
        end = "_scale_inv" if layout.scales == "block" else "_scale"
        stored[name + end] = bfloat16(kept) if layout.scale_type == "<u2" else kept
        if layout.static:
            stored[name.removesuffix("weight") + "input_scale"] = np.array([4 / 448], np.float32)
    folder.mkdir()
    DTYPES["|u1"] = "F8_E4M3"
    (folder / "model.safetensors").write_bytes(safetensors_bytes(stored))
    config["quantization_config"] = layout.quantization
    (folder / "config.json").write_text(json.dumps(config))
    return config, exact, narrow


class Plain:
    """Logits of one sequence in numpy. between: the type of what products, norms and sums leave.

    narrow: names whose products are in FP8; empty: the exact model.
    """

    def __init__(
        self, config: dict[str, Any], weights: dict[str, Array], between: str, narrow: set[str]
    ) -> None:
        self.config, self.weights, self.narrow = config, weights, narrow
        self.round: Callable[[Array], Array] = lambda x: round16(x, between)
        self.made: dict[tuple[str, ...], tuple[Array, float]] = {}

    def product(self, x: Array, *names: str) -> Array:
        """x [tokens, in] times the matrices stacked."""
        matrix = np.concatenate([self.weights[name] for name in names])
        if not set(names) <= self.narrow:
            return self.round(x @ self.round(matrix).T)
        matrix = self.round(matrix)
        scale = np.float32(np.abs(matrix).max() / 448)
        row = np.maximum(np.abs(x).max(1, keepdims=True) / 448, 1e-30).astype(np.float32)
        return self.round((round_e4m3(x / row) @ round_e4m3(matrix / scale).T) * row * scale)

    def norm(self, x: Array, name: str) -> Array:
        size = np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + self.config["rms_norm_eps"])
        return self.round(x / size * self.weights[name])

    def rotated(self, x: Array) -> Array:
        """[tokens, heads, size], halves."""
        size = x.shape[2]
        angle = np.arange(len(x))[:, None] * self.config["rope_theta"] ** (-np.arange(0, size, 2) / size)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return self.round(np.concatenate([a * cos - b * sin, b * cos + a * sin], 2))

    def attention(self, x: Array, p: str) -> Array:
        config, tokens = self.config, len(x)
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        size = config["hidden_size"] // heads
        qkv = self.product(x, *(f"{p}self_attn.{n}_proj.weight" for n in "qkv"))
        q, k, v = np.split(qkv, [heads * size, (heads + groups) * size], 1)
        q = self.rotated(q.reshape(tokens, heads, size))
        k = np.repeat(self.rotated(k.reshape(tokens, groups, size)), heads // groups, 1)
        v = np.repeat(v.reshape(tokens, groups, size), heads // groups, 1)
        score = np.einsum("qhd,khd->hqk", q, k) / size**0.5
        score = np.where(np.tri(tokens, dtype=bool), score, -np.inf)
        share = np.exp(score - score.max(2, keepdims=True))
        share /= share.sum(2, keepdims=True)
        out = self.round(np.einsum("hqk,khd->qhd", share, v).reshape(tokens, -1))
        return self.product(out, p + "self_attn.o_proj.weight")

    def gated(self, x: Array, gate: str, up: str, down: str) -> Array:
        a, b = np.split(self.product(x, gate, up), 2, 1)
        return self.product(self.round(a / (1 + np.exp(-a)) * b), down)

    def mixture(self, x: Array, p: str) -> Array:
        router = x @ self.weights[p + "gate.weight"].T
        top = np.argsort(-router, 1)[:, : self.config["num_experts_per_tok"]]
        share = np.exp(np.take_along_axis(router, top, 1) - router.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        out = np.zeros_like(x)
        for e in range(self.config["num_local_experts"]):
            rows, place = np.nonzero(top == e)
            if len(rows):
                names = (f"{p}experts.{e}.{n}.weight" for n in ("w1", "w3", "w2"))
                out[rows] += share[rows, place][:, None] * self.gated(x[rows], *names)
        return self.round(out)

    def logits(self, ids: Array) -> Array:
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(self.config["num_hidden_layers"]):
            p = f"model.layers.{i}."
            x = self.round(x + self.attention(self.norm(x, p + "input_layernorm.weight"), p))
            y = self.norm(x, p + "post_attention_layernorm.weight")
            if "num_local_experts" in self.config:
                x = self.round(x + self.mixture(y, p + "block_sparse_moe."))
            else:
                x = self.round(
                    x + self.gated(y, *(f"{p}mlp.{n}_proj.weight" for n in ("gate", "up", "down")))
                )
        return self.norm(x, "model.norm.weight") @ self.weights["lm_head.weight"].T


def engine_logits(model: Any, ids: Array) -> dict[str, Array]:
    from taco_llm import _core

    single = [LENGTH - SINGLE] + [1] * SINGLE
    chunks = {"whole": [LENGTH], "chunks": [13, 4, 7] * (LENGTH // 24), "tokens": single}
    out = {}
    for name, sizes in chunks.items():
        executor = _core.ModelExecutor(
            model, max_model_len=LENGTH, num_blocks=LENGTH // 16 + 2, max_num_seqs=4
        )
        out[name] = np.array(executor.forward(ids.tolist(), sizes))
    return out


def check(name: str, layout: Layout, seed: int, folder: Path, backend: Any, dtype: str) -> dict[str, Any]:
    from taco_llm.loading import load_model, resolve

    config, weights, narrow = make(layout, seed, folder)
    ids = np.random.default_rng(seed).integers(0, config["vocab_size"], LENGTH)
    exact = Plain(config, weights, "float32", set()).logits(ids)
    model = load_model(resolve(str(folder)), backend=backend, dtype=dtype, show_progress=False)
    row: dict[str, Any] = {"layout": name, "dtype": dtype, "weight_bytes": model.weight_bytes}
    results = engine_logits(model, ids)
    if dtype == "float32":
        worst = max(np.abs(out - exact).max() / np.abs(exact).max() for out in results.values())
        row |= {"worst": float(worst), "passed": bool(worst < CPU_TOLERANCE)}
        return row

    def distance(a: Array, b: Array) -> float:
        if "num_local_experts" not in config:
            return float(np.linalg.norm(a - b) / np.linalg.norm(exact))
        rows = np.linalg.norm(a - b, axis=1) / np.linalg.norm(exact, axis=1)
        return float(max(np.median(rows), np.median(rows[-SINGLE:])))

    rounded = Plain(config, weights, dtype, narrow).logits(ids)
    other = Plain(config, weights, {"bfloat16": "float16", "float16": "bfloat16"}[dtype], narrow).logits(ids)
    own, spread = distance(rounded, exact), distance(rounded, other)
    far = {key: distance(out, exact) for key, out in results.items()}
    near = {key: distance(out, rounded) for key, out in results.items()}
    same = np.mean([(out.argmax(1) == rounded.argmax(1)).mean() for out in results.values()])
    # The matrices that the checkpoint has in FP8 take a byte for each number, what is not is 2.
    expected = sum(array.size * (1 if key in narrow else 2) for key, array in weights.items())
    fits = abs(model.weight_bytes / expected - 1) < 0.05
    good = max(far.values()) < 1.2 * own and max(near.values()) < 1.5 * spread and fits
    return row | {
        "expected_bytes": expected,
        "rounded_from_exact": own,
        "rounded_models_apart": spread,
        "engine_from_exact": far,
        "engine_from_rounded": near,
        "same_best_token": float(same),
        "passed": bool(good and np.isfinite(list(far.values())).all()),
    }


def show(row: dict[str, Any]) -> str:
    text = f"{row['layout']:<26} {row['dtype']:<9}"
    if "worst" in row:
        text += f" worst {row['worst']:.1e}"
    else:
        far, near = max(row["engine_from_exact"].values()), max(row["engine_from_rounded"].values())
        own, spread = row["rounded_from_exact"], row["rounded_models_apart"]
        text += f" from exact {far:.4f} (the rounded model {own:.4f}), from the rounded {near:.4f} "
        text += f"(another is {spread:.4f}), best tokens {100 * row['same_best_token']:.0f} % equal, "
        text += f"{row['weight_bytes'] / row['expected_bytes']:.3f} of the bytes expected"
    return text + ("" if row["passed"] else "  FAILED")


def main() -> int:
    if len(sys.argv) > 3 or (len(sys.argv) > 1 and not sys.argv[1].startswith(("cpu", "cuda"))):
        print(__doc__, file=sys.stderr)
        return 2
    from taco_llm import _core, cuda

    device, _ = cuda.choose(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    if device == "cpu":
        backend = _core.Backend("cpu", threads=1)
    else:
        backend = _core.Backend(device, plugin=str(cuda.plugin_path()), cublaslt=cuda.cublaslt_path())
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed, (name, layout) in enumerate(LAYOUTS.items()):
            for dtype in ("float32",) if device == "cpu" else ("bfloat16", "float16"):
                folder = Path(scratch) / f"{name}-{dtype}"
                try:
                    rows.append(check(name, layout, seed, folder, backend, dtype))
                except Exception as error:
                    rows.append({"layout": name, "dtype": dtype, "passed": False, "worst": float("nan")})
                    print(f"{name}: {type(error).__name__}: {error}")
                print(show(rows[-1]), flush=True)
    passed = sum(row["passed"] for row in rows)
    print(f"{passed} of {len(rows)} pass on {backend.description if device != 'cpu' else 'the CPU'}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if passed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
