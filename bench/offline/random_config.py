"""Writes the config.json of a model shape into a folder, for --load-format dummy: no weights, no tokenizer.

    python bench/offline/random_config.py llama3-8b FOLDER
    taco_llm bench latency FOLDER --load-format dummy --skip-tokenizer-init

The shapes are those of the models whose names they bear; the context is 32,768 tokens where rotary positions
allow it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def shape(
    hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int, **other: Any
) -> dict[str, Any]:
    return {
        **LLAMA,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        **other,
    }


SHAPES = {
    "llama3-8b": shape(4096, 32, 32, 8, 14336, 128256),
    "llama3.2-1b": shape(2048, 16, 32, 8, 8192, 128256, tie_word_embeddings=True),
    "llama2-7b": shape(4096, 32, 32, 32, 11008, 32000, rope_theta=10000.0, max_position_embeddings=4096),
    "llama3-70b": shape(8192, 80, 64, 8, 28672, 128256),
    "mixtral-8x7b": shape(4096, 32, 32, 8, 14336, 32000, rope_theta=1e6, **MIXTRAL),
    "tiny": shape(256, 2, 4, 2, 512, 8192),
    "tiny-moe": shape(256, 2, 4, 2, 512, 8192, **MIXTRAL),
}


def write(name: str, folder: Path) -> Path:
    """The folder, with the config.json of the shape."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[name], indent=1) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(write(args.shape, args.folder))


if __name__ == "__main__":
    main()
