"""GGUF models: a config.json made of the file's metadata, and the rules for GGUF's tensor names.

GGUF names tensors alike in every architecture, and its converters have split, transposed and de-interleaved
them already, so one table serves all; what is left is the order of rows that the `llama` architecture stores
q and k in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .registry import nearest
from .rules import Cut, Misshapen, Rule, Shape, Tensor, WeightRules, stacked

if TYPE_CHECKING:
    from taco_llm._core import ModelSpec


class Metadata:
    """Metadata keys of one architecture (`llama.block_count`, ...), with errors that name them."""

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        self.values, self.architecture = values, architecture

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(f"{self.architecture}.{key}", default)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"GGUF metadata: {self.architecture}.{key} must be one integer, it is {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"GGUF metadata: {self.architecture}.{key} must be a number, it is {value!r}")
        return value


Shapes = Mapping[str, Sequence[int]]


def _rope(m: Metadata) -> dict[str, Any]:
    params: dict[str, Any] = {"rope_type": "default", "rope_theta": m.number("rope.freq_base", 10000.0)}
    kind = m.get("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        params |= {"rope_type": kind, "factor": m.number("rope.scaling.factor", 1.0)}
        if kind == "yarn":
            params["original_max_position_embeddings"] = m.integer(
                "rope.scaling.original_context_length", m.integer("context_length")
            )
    elif kind not in ("none", ""):
        raise ValueError(f"GGUF metadata: rope scaling {kind!r} is not supported (linear, yarn)")
    elif m.get("rope.scale_linear"):  # the name in the first GGUF files
        params |= {"rope_type": "linear", "factor": m.number("rope.scale_linear")}
    return params


def _context(m: Metadata) -> int:
    """The context before scaling, as config.json has it: GGUF's context_length is the scaled one for yarn
    only.
    """
    return m.integer("rope.scaling.original_context_length", m.integer("context_length"))


def _llama_like(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    heads = m.integer("attention.head_count")
    head_dim = m.integer("attention.key_length", m.integer("embedding_length") // max(heads, 1))
    if m.integer("attention.value_length", head_dim) != head_dim:
        raise ValueError("GGUF metadata: value heads of another size than key heads are not supported")
    params = _rope(m)
    params["partial_rotary_factor"] = m.integer("rope.dimension_count", head_dim) / max(head_dim, 1)
    return {
        "hidden_size": m.integer("embedding_length"),
        "num_hidden_layers": m.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": m.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": m.integer("feed_forward_length"),
        "rms_norm_eps": m.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": _context(m),
        "rope_parameters": params,
        "hidden_act": "silu",
    }


def _llama(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    config = _llama_like(m, shapes) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "attention_out_bias": "blk.0.attn_output.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }
    experts = m.integer("expert_count", 0)
    if experts:
        config |= {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": experts,
            "num_experts_per_tok": m.integer("expert_used_count"),
            "sliding_window": None,
        }
    return config


def _qwen2(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    return _llama_like(m, shapes) | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def _qwen3(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    config = _llama_like(m, shapes) | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    experts = m.integer("expert_count", 0)
    if experts:
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": m.integer("expert_feed_forward_length"),
            "num_experts": experts,
            "num_experts_per_tok": m.integer("expert_used_count"),
            "norm_topk_prob": True,  # not in the file: llama.cpp always divides
        }
    return config


def _gemma(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    return _llama_like(m, shapes) | {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "hidden_activation": "gelu_pytorch_tanh",
        "norm_weight_offset": 0.0,
    }


def _gemma2(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    config = _llama_like(m, shapes)
    # The file does not say what divides the scores: 27b (46 layers) takes hidden / heads, the others the
    # head size.
    large = config["num_hidden_layers"] == 46
    scalar = config["hidden_size"] // config["num_attention_heads"] if large else config["head_dim"]
    return config | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": m.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": m.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": m.number("final_logit_softcapping", 30.0),
        "norm_weight_offset": 0.0,
    }


def _gpt2(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": m.integer("embedding_length"),
        "n_head": m.integer("attention.head_count"),
        "n_layer": m.integer("block_count"),
        "n_inner": m.integer("feed_forward_length"),
        "n_positions": m.integer("context_length"),
        "layer_norm_epsilon": m.number("attention.layer_norm_epsilon"),
    }


def _bloom(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": m.integer("embedding_length"),
        "n_head": m.integer("attention.head_count"),
        "n_layer": m.integer("block_count"),
        "seq_length": m.integer("context_length"),
        "layer_norm_epsilon": m.number("attention.layer_norm_epsilon"),
    }


def _falcon(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    heads = m.integer("attention.head_count")
    two_norms = "blk.0.attn_norm_2.weight" in shapes
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": m.integer("embedding_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": m.integer("block_count"),
        "num_kv_heads": m.integer("attention.head_count_kv", heads),
        "new_decoder_architecture": two_norms,
        "multi_query": m.integer("attention.head_count_kv", heads) == 1,
        "max_position_embeddings": _context(m),
        "rope_parameters": _rope(m),
        "ffn_hidden_size": m.integer("feed_forward_length", 4 * m.integer("embedding_length")),
        "layer_norm_epsilon": m.number("attention.layer_norm_epsilon"),
    }


def _starcoder2(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    heads = m.integer("attention.head_count")
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "hidden_size": m.integer("embedding_length"),
        "num_hidden_layers": m.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": m.integer("attention.head_count_kv", heads),
        "intermediate_size": m.integer("feed_forward_length"),
        "norm_epsilon": m.number("attention.layer_norm_epsilon"),
        "max_position_embeddings": _context(m),
        "rope_parameters": _rope(m),
        "use_bias": "blk.0.attn_q.bias" in shapes,
    }


def _gpt_neox(m: Metadata, shapes: Shapes) -> dict[str, Any]:
    hidden, heads = m.integer("embedding_length"), m.integer("attention.head_count")
    params = _rope(m)
    params["partial_rotary_factor"] = m.integer("rope.dimension_count") / max(hidden // max(heads, 1), 1)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": m.integer("block_count"),
        "intermediate_size": m.integer("feed_forward_length"),
        "max_position_embeddings": _context(m),
        "rope_parameters": params,
        "layer_norm_eps": m.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": bool(m.get("use_parallel_residual", True)),
    }


ARCHITECTURES: dict[str, Callable[[Metadata, Shapes], dict[str, Any]]] = {
    "bloom": _bloom,
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gptneox": _gpt_neox,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3,
    "starcoder2": _starcoder2,
}


def architecture(metadata: Mapping[str, Any]) -> str:
    """`general.architecture`. ValueError naming the nearest known one."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ValueError("GGUF metadata: general.architecture is missing")
    if name not in ARCHITECTURES:
        known = sorted(ARCHITECTURES)
        raise ValueError(
            f"GGUF architecture {name!r} is not supported{nearest(name, known)}. "
            f"Supported: {', '.join(known)}"
        )
    return name


def synthesise_config(
    metadata: Mapping[str, Any], shapes: Shapes, rope_factors: Sequence[float] | None = None
) -> dict[str, Any]:
    """A config.json of the HF architecture that a GGUF file holds.

    shapes: every tensor's name and shape (rows first). rope_factors: the values of rope_freqs.weight.
    """
    name = architecture(metadata)
    config = ARCHITECTURES[name](Metadata(metadata, name), shapes)
    if "token_embd.weight" not in shapes or len(shapes["token_embd.weight"]) != 2:
        raise ValueError("GGUF: the tensor token_embd.weight is missing or is no matrix")
    config["vocab_size"] = int(shapes["token_embd.weight"][0])
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config["dtype"] = (
        "float32" if name.startswith("gemma") else "bfloat16"
    )  # float32: the embedding's factor is exact
    if rope_factors is not None:
        config["rope_parameters"] |= {"rope_type": "factors", "factors": list(rope_factors)}
    for field, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token, int) and 0 <= token < config["vocab_size"]:
            config[field] = token
    return config


def unpermuted(head_dim: int) -> Cut:
    """Rows of q and k from llama.cpp's order (rotated pairs side by side) to HF's (half a head apart)."""

    def cut(tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        if tensor.shape != shapes[0]:
            raise Misshapen(f"{shapes[0]}")
        order = np.arange(shapes[0][0]).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
        return [tensor.rows(order)]

    return cut


def gguf_rules(metadata: Mapping[str, Any], spec: ModelSpec, names: Collection[str]) -> WeightRules:
    """The rules for a GGUF file's tensors. names: those of the file (Falcon's norms depend on them)."""
    name = architecture(metadata)
    layer = spec.layers[0]
    q_and_k = unpermuted(layer.attn.head_dim) if name == "llama" else stacked
    # Falcon with two norms: attn_norm is the feed-forward's, attn_norm_2 the attention's.
    two_norms = name == "falcon" and "blk.0.attn_norm_2.weight" in names
    b = "layers.{i}."
    rules = [
        Rule("token_embd.weight", ("embed.tokens",)),
        Rule("position_embd.weight", ("embed.positions",)),
        Rule("token_embd_norm.*", ("embed.norm.*",)),
        Rule("blk.{i}.attn_norm.*", (b + ("ffn_norm.*" if two_norms else "attn_norm.*"),)),
        Rule("blk.{i}.attn_norm_2.*", (b + "attn_norm.*",)),
        Rule("blk.{i}.attn_q.*", (b + "attn.q.*",), q_and_k),
        Rule("blk.{i}.attn_k.*", (b + "attn.k.*",), q_and_k),
        Rule("blk.{i}.attn_v.*", (b + "attn.v.*",)),
        Rule("blk.{i}.attn_q_norm.*", (b + "attn.q_norm.*",)),
        Rule("blk.{i}.attn_k_norm.*", (b + "attn.k_norm.*",)),
        Rule("blk.{i}.attn_qkv.*", (b + "attn.q.*", b + "attn.k.*", b + "attn.v.*")),
        Rule("blk.{i}.attn_output.*", (b + "attn.o.*",)),
        Rule("blk.{i}.post_attention_norm.*", (b + "post_attn_norm.*",)),
        Rule("blk.{i}.ffn_norm.*", (b + "ffn_norm.*",)),
        Rule("blk.{i}.post_ffw_norm.*", (b + "post_ffn_norm.*",)),
        Rule("blk.{i}.ffn_gate.*", (b + "ffn.gate.*",)),
        Rule("blk.{i}.ffn_up.*", (b + "ffn.up.*",)),
        Rule("blk.{i}.ffn_down.*", (b + "ffn.down.*",)),
        Rule("blk.{i}.ffn_gate_inp.weight", (b + "moe.router.weight",)),
        *(
            Rule(f"blk.{{i}}.ffn_{kind}{tail}", (b + f"moe.experts.{{e}}.{kind}.weight",))
            for kind in ("gate", "up", "down")
            for tail in ("_exps.weight", ".{e}.weight")  # stacked, and as in the first Mixtral files
        ),
        Rule("output_norm.*", ("final_norm.*",)),
        Rule("output.weight", ("head.weight",)),
    ]
    return WeightRules(
        rules,
        len(spec.layers),
        max(layer.ffn.num_experts, 0),
        ignore=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd", r"blk\.\d+\.attn\.masked_bias"),
    )
