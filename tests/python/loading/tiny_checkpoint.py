"""A tiny Llama checkpoint, written without torch, for the loading tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}


def llama_shapes(config: dict[str, Any] = CONFIG) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": (hidden,),
            p + "self_attn.q_proj.weight": (hidden, hidden),
            p + "self_attn.k_proj.weight": (head, hidden),
            p + "self_attn.v_proj.weight": (head, hidden),
            p + "self_attn.o_proj.weight": (hidden, hidden),
            p + "post_attention_layernorm.weight": (hidden,),
            p + "mlp.gate_proj.weight": (inner, hidden),
            p + "mlp.up_proj.weight": (inner, hidden),
            p + "mlp.down_proj.weight": (hidden, inner),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def llama_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) * 0.2 for n, s in llama_shapes().items()}


DTYPES = {"<f4": "F32", "<f2": "F16", "<i8": "I64", "<f8": "F64", "<u2": "BF16"}


def safetensors_bytes(
    tensors: dict[str, np.ndarray], edit: Callable[[dict[str, Any]], None] | None = None
) -> bytes:
    """A safetensors file; `edit` may change the header before it is written."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": DTYPES[array.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    if edit:
        edit(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


class Folder:
    """A checkpoint folder that tests may spoil."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = llama_tensors()
        self.write_config()

    def write_config(self, **fields: Any) -> None:
        (self.path / "config.json").write_text(json.dumps({**CONFIG, **fields}))

    def write(
        self, edit: Callable[[dict[str, Any]], None] | None = None, name: str = "model.safetensors"
    ) -> Path:
        (self.path / name).write_bytes(safetensors_bytes(self.tensors, edit))
        return self.path / name

    def load(self, load_format: str = "auto", **options: Any) -> Any:
        from taco_llm import _core
        from taco_llm.loading import load_model, resolve

        options = {"dtype": "float32", "show_progress": False, **options}
        backend = _core.Backend("cpu", threads=1)
        return load_model(resolve(str(self.path), load_format=load_format), backend=backend, **options)


def logits(model: Any) -> np.ndarray:
    from taco_llm import _core

    executor = _core.ModelExecutor(model, max_model_len=16, num_blocks=4, kv_dtype="float32")
    return np.array(executor.forward([1, 5, 9, 3]))
