"""Writes tiny transformers models as GGUF files, the way llama.cpp's converter lays them out.

Tensor names come from the gguf package's own map, so that they are not this project's idea of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCH = {
    "LlamaForCausalLM": ("llama", gguf.MODEL_ARCH.LLAMA),
    "MistralForCausalLM": ("llama", gguf.MODEL_ARCH.LLAMA),
    "MixtralForCausalLM": ("llama", gguf.MODEL_ARCH.LLAMA),
    "Qwen2ForCausalLM": ("qwen2", gguf.MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": ("qwen3", gguf.MODEL_ARCH.QWEN3),
    "Qwen3MoeForCausalLM": ("qwen3moe", gguf.MODEL_ARCH.QWEN3MOE),
    "Starcoder2ForCausalLM": ("starcoder2", gguf.MODEL_ARCH.STARCODER2),
    "GemmaForCausalLM": ("gemma", gguf.MODEL_ARCH.GEMMA),
    "Gemma2ForCausalLM": ("gemma2", gguf.MODEL_ARCH.GEMMA2),
    "GPT2LMHeadModel": ("gpt2", gguf.MODEL_ARCH.GPT2),
    "BloomForCausalLM": ("bloom", gguf.MODEL_ARCH.BLOOM),
    "FalconForCausalLM": ("falcon", gguf.MODEL_ARCH.FALCON),
    "GPTNeoXForCausalLM": ("gptneox", gguf.MODEL_ARCH.GPTNEOX),
}


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    """HF's halves of a head -> pairs side by side."""
    shape = (heads, 2, w.shape[0] // heads // 2, *w.shape[1:])
    return w.reshape(shape).swapaxes(1, 2).reshape(w.shape)


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    shape = (heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return w.reshape(shape).swapaxes(1, 2).reshape(w.shape)


def q_or_k_heads(name: str, c: Any) -> int:
    """The heads of a q or k projection, 0 for any other tensor."""
    if ".q_proj." in name:
        return int(c.num_attention_heads)
    return int(c.num_key_value_heads) if ".k_proj." in name else 0


def _convert(kind: str, name: str, w: np.ndarray, c: Any) -> np.ndarray:
    if kind == "llama":
        heads = q_or_k_heads(name, c)
        return permute(w, heads) if heads else w
    if kind in ("gemma", "gemma2") and "norm" in name:
        return w + 1
    if kind == "gpt2" and w.ndim == 2 and (".attn." in name or ".mlp." in name):
        return np.ascontiguousarray(w.T)
    if "query_key_value" in name:
        heads = c.num_attention_heads
        groups = heads
        if kind == "falcon":
            groups = c.num_kv_heads if c.new_decoder_architecture else 1 if c.multi_query else heads
        head_dim = c.hidden_size // heads
        split = w.reshape(groups, heads // groups + 2, head_dim, *w.shape[1:])
        parts = split[:, :-2], split[:, -2], split[:, -1]
        return np.concatenate([p.reshape(-1, *w.shape[1:]) for p in parts])
    return w


def tensors(model: Any) -> dict[str, tuple[str, np.ndarray]]:
    """GGUF name -> (HF name, values in GGUF's layout)."""
    c = model.config
    kind, arch = ARCH[type(model).__name__]
    names = gguf.get_tensor_name_map(arch, len(list(_layers(c))))
    out: dict[str, tuple[str, np.ndarray]] = {}
    for name, tensor in model.state_dict().items():
        w = tensor.detach().float().numpy()
        if c.tie_word_embeddings and name in ("lm_head.weight", "embed_out.weight"):
            continue
        if ".experts." in name:
            block = f"blk.{name.split('.')[2]}.ffn_"
            if name.endswith("gate_up_proj"):
                half = w.shape[1] // 2
                out[block + "gate_exps.weight"] = (name, w[:, :half])
                out[block + "up_exps.weight"] = (name, w[:, half:])
            else:
                out[block + "down_exps.weight"] = (name, w)
            continue
        stem, suffix = name.rsplit(".", 1)
        target = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
        if target is None and stem.endswith(".mlp.gate"):
            target = f"blk.{name.split('.')[2]}.ffn_gate_inp"
        assert target is not None, name
        out[f"{target}.{suffix}"] = (name, _convert(kind, name, w, c))
    return out


def _layers(c: Any) -> range:
    return range(c.num_hidden_layers)


def write_metadata(writer: gguf.GGUFWriter, model: Any) -> None:
    c = model.config
    kind = ARCH[type(model).__name__][0]
    heads, layers, hidden = c.num_attention_heads, c.num_hidden_layers, c.hidden_size
    writer.add_block_count(layers)
    writer.add_embedding_length(hidden)
    writer.add_head_count(heads)
    writer.add_context_length(getattr(c, "max_position_embeddings", None) or 128)
    inner = getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None)
    writer.add_feed_forward_length(inner or getattr(c, "ffn_hidden_size", None) or 4 * hidden)
    if kind in ("llama", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2"):
        head_dim = getattr(c, "head_dim", None) or hidden // heads
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
        rope = c.rope_parameters
        if rope["rope_type"] in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
            writer.add_rope_scaling_factor(rope["factor"])
            if rope["rope_type"] == "yarn":
                writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    else:
        names = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
        writer.add_layer_norm_eps(next(getattr(c, n) for n in names if hasattr(c, n)))
    if kind == "starcoder2":
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    if kind == "qwen3moe":
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    if kind == "falcon":
        multi = c.multi_query and not c.new_decoder_architecture
        writer.add_head_count_kv(1 if multi else c.num_kv_heads)
    if kind == "gptneox":
        share = c.rope_parameters["partial_rotary_factor"]
        writer.add_rope_dimension_count(int(hidden // heads * share))
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
        writer.add_parallel_residual(c.use_parallel_residual)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
        writer.add_sliding_window(c.sliding_window)
    if hasattr(c, "num_local_experts"):
        writer.add_expert_count(c.num_local_experts)
        writer.add_expert_used_count(c.num_experts_per_tok)


def random_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random k-quant blocks with scales that give weights of usual size (the package cannot quantise to
    them).
    """
    cols, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // cols, size), dtype=np.uint8)
    scales = {"Q4_K": {0: 4e-4, 2: 3e-3}, "Q6_K": {208: 2e-5}, "Q5_K": {0: 2e-4, 2: 3e-3}}[kind.name]
    for at, scale in scales.items():
        values = (rng.uniform(0.5, 1.0, raw.shape[:-1]) * scale).astype("<f2")
        raw[..., at : at + 2] = values[..., None].view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def write(model: Any, path: Path, kind: str = "F32", extra: dict[str, np.ndarray] | None = None) -> None:
    """Writes the model; its own weights become what the file holds after quantising to `kind`."""
    writer = gguf.GGUFWriter(path, ARCH[type(model).__name__][0])
    write_metadata(writer, model)
    quant = gguf.GGMLQuantizationType[kind]
    state = model.state_dict()
    for i, (name, (hf_name, values)) in enumerate(tensors(model).items()):
        if values.ndim < 2 or kind == "F32" or "position_embd" in name or "gate_inp" in name:
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
            continue
        if kind.endswith("_K"):
            raw = random_blocks(quant, values.shape, i)
        else:
            raw = gguf.quants.quantize(np.ascontiguousarray(values), quant)
        writer.add_tensor(name, np.ascontiguousarray(raw), raw_dtype=quant)
        stored = gguf.quants.dequantize(raw, quant).reshape(values.shape)
        heads = q_or_k_heads(hf_name, model.config)
        assert type(model).__name__ == "LlamaForCausalLM", "only Llama's layout is turned back here"
        state[hf_name].copy_(torch.from_numpy(unpermute(stored, heads) if heads else stored))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
