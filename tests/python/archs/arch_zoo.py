"""Tiny random models of every supported architecture: the fixtures of the parity tests.

A new architecture adds its cases here. Needs torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from plain_zoo import CASES as PLAIN_CASES
from plain_zoo import PlainCase
from transformers import AutoModelForCausalLM

VOCAB = 101
PROMPT = 37  # longer than every window below, no multiple of any block size
NEW_TOKENS = 32

LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


@dataclass(frozen=True)
class Case:
    """A config class of transformers with its arguments; save: how the checkpoint is written."""

    config: str
    fields: dict[str, Any]
    attention: str = "eager"
    save: str = "safetensors"

    @property
    def architecture(self) -> str:
        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[getattr(transformers, self.config)].__name__

    def defaults(self) -> dict[str, Any]:
        """What the config class fills in."""
        return json.loads(json.dumps(getattr(transformers, self.config)().to_dict()))

    def build(self) -> Any:
        return AutoModelForCausalLM.from_config(self.make_config(), attn_implementation=self.attention)

    def make_config(self) -> Any:
        return getattr(transformers, self.config)(
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, **self.fields}
        )


def llama(save: str = "safetensors", **fields: Any) -> Case:
    return Case("LlamaConfig", {**LLAMA, **fields}, save=save)


def scaled(rope_type: str, **fields: Any) -> Case:
    return llama(rope_parameters={"rope_type": rope_type, "rope_theta": 10000.0, **fields})


def mistral(**fields: Any) -> Case:
    return Case("MistralConfig", {**LLAMA, **fields})


def qwen2(**fields: Any) -> Case:
    return Case("Qwen2Config", {**LLAMA, **fields})


def mixtral(save: str = "safetensors", **fields: Any) -> Case:
    return Case(
        "MixtralConfig", {**LLAMA, "num_hidden_layers": 2, "num_local_experts": 4, **fields}, save=save
    )


def gemma2(**fields: Any) -> Case:
    base = {**LLAMA, "num_hidden_layers": 4, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9}
    return Case("Gemma2Config", {**base, **fields})


def gemma(**fields: Any) -> Case:
    return Case("GemmaConfig", {**LLAMA, "head_dim": 16, **fields})


def opt(**fields: Any) -> Case:
    base = dict(
        vocab_size=VOCAB,
        hidden_size=48,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=48,
        max_position_embeddings=96,
    )
    return Case("OPTConfig", {**base, **fields})


def gpt2(**fields: Any) -> Case:
    base = dict(vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_positions=96)
    return Case("GPT2Config", {**base, **fields})


def gpt_neox(**fields: Any) -> Case:
    base = dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
    )
    return Case("GPTNeoXConfig", {**base, **fields})


def bloom(**fields: Any) -> Case:
    return Case("BloomConfig", {**dict(vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=4), **fields})


def falcon(attention: str = "eager", **fields: Any) -> Case:
    base = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    return Case("FalconConfig", {**base, **fields}, attention=attention)


def gpt_bigcode(**fields: Any) -> Case:
    base = dict(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=96)
    return Case("GPTBigCodeConfig", {**base, **fields})


def gptj(**fields: Any) -> Case:
    base = dict(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=96, rotary_dim=8)
    return Case("GPTJConfig", {**base, **fields})


def nemotron(**fields: Any) -> Case:
    return Case("NemotronConfig", {**LLAMA, **fields})


def starcoder2(**fields: Any) -> Case:
    return Case("Starcoder2Config", {**LLAMA, **fields})


def phi(**fields: Any) -> Case:
    return Case("PhiConfig", {**LLAMA, "num_key_value_heads": None, "head_dim": 8, **fields})


def phi3(**fields: Any) -> Case:
    return Case("Phi3Config", {**LLAMA, "num_hidden_layers": 2, **fields})


def longrope(dim: int, original: int, **fields: Any) -> dict[str, Any]:
    """Phi-3's fields of a rotation of `dim` dims: long where the prompt is longer than `original`."""
    factors = dict(
        short_factor=[1.0 + 0.1 * i for i in range(dim // 2)], long_factor=[1.5 + i for i in range(dim // 2)]
    )
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors, **fields}
    return dict(rope_parameters=rope, original_max_position_embeddings=original)


def stablelm(**fields: Any) -> Case:
    return Case("StableLmConfig", {**LLAMA, "hidden_size": 96, "num_hidden_layers": 2, **fields})


def qwen2_moe(save: str = "safetensors", **fields: Any) -> Case:
    base = dict(
        num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24, shared_expert_intermediate_size=40
    )
    return Case("Qwen2MoeConfig", {**LLAMA, "num_hidden_layers": 2, **base, **fields}, save=save)


def phimoe(save: str = "safetensors", **fields: Any) -> Case:
    base = dict(num_local_experts=4, num_hidden_layers=2, router_jitter_noise=0.2)
    return Case("PhimoeConfig", {**LLAMA, **base, **fields}, save=save)


def qwen3(**fields: Any) -> Case:
    return Case("Qwen3Config", {**LLAMA, "head_dim": 16, **fields})


def qwen3_moe(save: str = "safetensors", **fields: Any) -> Case:
    base = dict(num_experts=8, num_experts_per_tok=4, moe_intermediate_size=24, head_dim=16)
    return Case("Qwen3MoeConfig", {**LLAMA, "num_hidden_layers": 2, **base, **fields}, save=save)


def gemma3(**fields: Any) -> Case:
    base = {**LLAMA, "num_hidden_layers": 4, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9}
    return Case("Gemma3TextConfig", {**base, **fields})


def olmo2(**fields: Any) -> Case:
    return Case("Olmo2Config", {**LLAMA, **fields})


def smollm3(**fields: Any) -> Case:
    return Case("SmolLM3Config", {**LLAMA, "num_hidden_layers": 4, **fields})


def gpt_oss(save: str = "stacked", **fields: Any) -> Case:
    base = dict(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=16,
        num_local_experts=6,
        num_experts_per_tok=3,
        sliding_window=9,
    )
    return Case("GptOssConfig", {**LLAMA, **base, **fields}, save=save)


def deepseek_v2(save: str = "safetensors", **fields: Any) -> Case:
    base = dict(
        num_hidden_layers=2,
        num_key_value_heads=None,
        q_lora_rank=None,
        kv_lora_rank=20,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=6,
        n_shared_experts=2,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
    )
    return Case("DeepseekV2Config", {**LLAMA, **base, **fields}, save=save)


CASES: dict[str, Case | PlainCase] = {
    **PLAIN_CASES,
    "llama-grouped": llama(),
    "llama-multihead-tied": llama(num_key_value_heads=6, tie_word_embeddings=True),
    "llama-multiquery-biases": llama(num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": llama(head_dim=24, hidden_act="gelu"),
    "llama-rope-linear": scaled("linear", factor=2.5),
    "llama-rope-dynamic": scaled("dynamic", factor=4.0),
    "llama-rope-yarn": scaled("yarn", factor=4.0, original_max_position_embeddings=32),
    "llama-rope-yarn-mscale": scaled(
        "yarn",
        factor=8.0,
        original_max_position_embeddings=16,
        mscale=0.7,
        mscale_all_dim=1.1,
        beta_fast=16.0,
    ),
    "llama-rope-llama3": scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama-bin": llama(save="bin"),
    "llama-sharded": llama(save="sharded"),
    "mistral-window": mistral(sliding_window=11),
    "mistral-no-window": mistral(sliding_window=None, num_key_value_heads=1, tie_word_embeddings=True),
    "mistral-multihead-wide": mistral(num_key_value_heads=6, head_dim=16, sliding_window=30),
    "qwen2-multihead": qwen2(num_key_value_heads=6, rope_theta=1e6, hidden_act="gelu"),
    "qwen2": qwen2(tie_word_embeddings=True),
    "qwen2-window": qwen2(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "mixtral-top2": mixtral(sliding_window=None),
    "mixtral-top1": mixtral(num_experts_per_tok=1, sliding_window=None),
    "mixtral-top3-window": mixtral(num_local_experts=8, num_experts_per_tok=3, sliding_window=10),
    "mixtral-stacked": mixtral(save="stacked", sliding_window=None),
    "gemma2": gemma2(),
    "gemma2-multiquery-untied": gemma2(num_key_value_heads=1, tie_word_embeddings=False, sliding_window=20),
    "gemma2-no-caps": gemma2(
        attn_logit_softcapping=None, final_logit_softcapping=None, num_key_value_heads=6, attention_bias=True
    ),
    "gemma-multiquery": gemma(num_key_value_heads=1),
    "gemma-multihead-untied": gemma(num_key_value_heads=6, head_dim=8, tie_word_embeddings=False),
    "gemma-biases": gemma(attention_bias=True, hidden_act="gelu"),
    "opt": opt(),
    "opt-350m": opt(do_layer_norm_before=False, word_embed_proj_dim=32),
    "opt-no-bias": opt(enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
    "opt-untied": opt(tie_word_embeddings=False, _remove_final_layer_norm=True),
    "gpt2": gpt2(),
    "gpt2-inverse-layer": gpt2(scale_attn_by_inverse_layer_idx=True, n_inner=80, tie_word_embeddings=False),
    "gpt2-unscaled": gpt2(scale_attn_weights=False, activation_function="relu"),
    "gpt-neox": gpt_neox(),
    "gpt-neox-sequential": gpt_neox(
        use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 1.0},
    ),
    "gpt-neox-no-bias": gpt_neox(attention_bias=False, tie_word_embeddings=True, hidden_act="gelu_new"),
    "bloom": bloom(),
    "bloom-odd-heads": bloom(n_head=6),
    "bloom-untied": bloom(n_head=3, tie_word_embeddings=False),
    "falcon-7b": falcon(),
    "falcon-40b": falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon-11b": falcon(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    # transformers' eager path adds ALiBi twice (in the mask and in the layer); its sdpa path is right.
    "falcon-1b": falcon("sdpa", alibi=True, bias=True, parallel_attn=False, multi_query=False),
    "falcon-sequential": falcon(parallel_attn=False, bias=True, tie_word_embeddings=False),
    "gpt-bigcode": gpt_bigcode(),
    "gpt-bigcode-multihead": gpt_bigcode(multi_query=False, n_inner=80, tie_word_embeddings=False),
    "gpt-bigcode-unscaled": gpt_bigcode(scale_attn_weights=False, activation_function="gelu", n_head=3),
    "gptj": gptj(),
    "gptj-odd-share": gptj(rotary_dim=10, n_inner=80, activation_function="gelu"),
    "gptj-whole-heads": gptj(n_head=3, rotary_dim=16),
    "gptj-tied": gptj(tie_word_embeddings=True, n_layer=3),
    "nemotron": nemotron(),
    "nemotron-biases": nemotron(attention_bias=True, mlp_bias=True, num_key_value_heads=6, hidden_act="gelu"),
    "nemotron-quarter-tied": nemotron(
        head_dim=16, partial_rotary_factor=0.25, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "starcoder2": starcoder2(),
    "starcoder2-window": starcoder2(sliding_window=9, num_key_value_heads=1),
    "starcoder2-no-bias": starcoder2(use_bias=False, tie_word_embeddings=False, num_key_value_heads=6),
    "phi": phi(),
    "phi-2": phi(hidden_size=60, head_dim=10, partial_rotary_factor=0.4, num_hidden_layers=2),
    "phi-qk-norm": phi(qk_layernorm=True, num_key_value_heads=3),
    "phi-grouped": phi(num_key_value_heads=2, partial_rotary_factor=1.0, tie_word_embeddings=True),
    "phi3-window": phi3(sliding_window=9, num_key_value_heads=6),
    "phi3-longrope-long": phi3(**longrope(8, 16)),
    "phi3-longrope-short": phi3(**longrope(8, 128, attention_factor=1.2), num_key_value_heads=1),
    "phi4-partial-tied": phi3(
        **longrope(6, 32, partial_rotary_factor=0.75), tie_word_embeddings=True, num_key_value_heads=3
    ),
    "stablelm": stablelm(),
    "stablelm-2-12b": stablelm(use_parallel_residual=True, qk_layernorm=True),
    "stablelm-qk-norm-sequential": stablelm(qk_layernorm=True, num_key_value_heads=1, use_qkv_bias=True),
    "stablelm-parallel-tied": stablelm(
        use_parallel_residual=True, use_qkv_bias=True, partial_rotary_factor=1.0, tie_word_embeddings=True
    ),
    "qwen2-moe": qwen2_moe(),
    "qwen2-moe-stacked": qwen2_moe("stacked", norm_topk_prob=True, num_key_value_heads=6, qkv_bias=False),
    "qwen2-moe-some-dense": qwen2_moe(
        num_hidden_layers=4,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        num_experts_per_tok=1,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=3,
    ),
    "phimoe": phimoe(lm_head_bias=True, attention_bias=True),
    "phimoe-narrow-stacked": phimoe("stacked", router_jitter_noise=0.01, num_local_experts=8),
    "phimoe-window-tied": phimoe(sliding_window=9, tie_word_embeddings=True, num_key_value_heads=1),
    "phimoe-longrope-short": phimoe(**longrope(8, 128, short_mscale=1.1, long_mscale=1.3)),
    # transformers takes the short factors beyond the original context, too (the model's own code does not):
    # equal ones here, so that only the long magnitude differs.
    "phimoe-longrope-long": phimoe(
        **longrope(
            8,
            16,
            short_mscale=1.1,
            long_mscale=1.3,
            short_factor=[1.0, 1.5, 2.0, 4.0],
            long_factor=[1.0, 1.5, 2.0, 4.0],
        )
    ),
    "qwen3": qwen3(),
    "qwen3-tied-biases": qwen3(tie_word_embeddings=True, attention_bias=True, num_key_value_heads=6),
    "qwen3-window-yarn": qwen3(
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=7,
        max_window_layers=1,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    # The 1B and 3B of Llama 3.2: tied, heads of a stated size, llama3 scaling.
    "llama-3.2": llama(
        tie_word_embeddings=True,
        head_dim=16,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen3-moe": qwen3_moe(norm_topk_prob=True),
    "qwen3-moe-unnormalised-tied": qwen3_moe(num_experts_per_tok=1, tie_word_embeddings=True),
    "qwen3-moe-some-dense": qwen3_moe(
        "stacked", num_hidden_layers=3, mlp_only_layers=[1], num_key_value_heads=1, attention_bias=True
    ),
    "gemma3": gemma3(sliding_window_pattern=3),
    "gemma3-scaled": gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        num_key_value_heads=1,
        tie_word_embeddings=False,
    ),
    "gemma3-capped-biases": gemma3(
        final_logit_softcapping=20.0, attention_bias=True, num_key_value_heads=6, sliding_window_pattern=2
    ),
    "olmo2": olmo2(num_key_value_heads=None),
    "olmo2-grouped-biases": olmo2(attention_bias=True),
    "olmo2-multiquery-tied": olmo2(num_key_value_heads=1, tie_word_embeddings=True, hidden_act="gelu"),
    "smollm3": smollm3(),
    "smollm3-listed": smollm3(no_rope_layers=[0, 1, 1, 0], tie_word_embeddings=False, num_key_value_heads=6),
    "smollm3-window-biases": smollm3(
        use_sliding_window=True,
        sliding_window=9,
        no_rope_layer_interval=2,
        attention_bias=True,
        mlp_bias=True,
        num_key_value_heads=1,
    ),
    "gpt-oss": gpt_oss(swiglu_limit=1.5),
    "gpt-oss-mxfp4": gpt_oss("mxfp4", num_key_value_heads=1),
    "gpt-oss-yarn-tied": gpt_oss(
        tie_word_embeddings=True,
        attention_bias=False,
        num_key_value_heads=4,
        num_experts_per_tok=1,
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
    ),
    "deepseek-v2-lite": deepseek_v2(),
    "deepseek-v2-yarn": deepseek_v2(
        "stacked",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 32,
        },
        first_k_dense_replace=0,
    ),
    "deepseek-v2-low-rank-q": deepseek_v2(
        q_lora_rank=28,
        attention_bias=True,
        v_head_dim=24,
        routed_scaling_factor=2.5,
        tie_word_embeddings=True,
    ),
    "deepseek-v2-narrow-values": deepseek_v2(
        v_head_dim=6, qk_rope_head_dim=4, n_shared_experts=1, num_experts_per_tok=1, num_hidden_layers=3
    ),
}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights that all matter: HF starts with zero biases, unit norms and logits that are nearly flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # In eighths: folders of such models pack well (device_parity.py).
            noise = (torch.randn(p.shape, generator=generator) * 8).round() / 8
            if p.dim() >= 2:
                p.copy_(noise * (1.5 / p.shape[-1] ** 0.5))
            elif name.endswith("bias"):
                p.copy_(noise * 0.2)
            else:
                p.add_(noise * 0.2)


def make_model(case: Case | PlainCase, seed: int = 0) -> Any:
    model = case.build().float().eval()
    randomize(model, seed)
    return model


def _save_stacked(model: Any, folder: Path) -> None:
    """Expert weights stacked, as transformers 5 has them in memory."""
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.state_dict().items()}  # a tied head: a copy
    assert any(k.endswith("experts.gate_up_proj") for k in state)
    save_file(state, folder / "model.safetensors")


def _save_bin(model: Any, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def _save_mxfp4(model: Any, folder: Path) -> None:
    """Experts as released: random four-bit values and scales, which the model gets as well."""
    import json

    from safetensors.torch import save_file

    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    generator = torch.Generator().manual_seed(1)
    state = {k: v.clone() for k, v in model.state_dict().items()}  # a tied head: a copy
    for name in [n for n in state if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, width, rows = state.pop(name).shape
        codes = torch.randint(0, 16, (experts, rows, width // 32, 32), generator=generator)
        scales = torch.randint(122, 126, (experts, rows, width // 32), generator=generator)
        weight = values[codes] * torch.exp2(scales.float() - 127)[..., None]
        with torch.no_grad():
            model.get_parameter(name).copy_(weight.reshape(experts, rows, width).transpose(1, 2))
        state[name + "_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        state[name + "_scales"] = scales.to(torch.uint8)
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")


def save(case: Case | PlainCase, model: Any, folder: Path) -> None:
    if isinstance(case, PlainCase):
        model.save(folder)
        return
    model.config.architectures = [type(model).__name__]
    writers: dict[str, Callable[[], Any]] = {
        "safetensors": lambda: model.save_pretrained(folder),
        "sharded": lambda: model.save_pretrained(folder, max_shard_size="40KB"),
        "bin": lambda: _save_bin(model, folder),
        "stacked": lambda: _save_stacked(model, folder),
        "mxfp4": lambda: _save_mxfp4(model, folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    writers[case.save]()


def prompt(seed: int = 0, length: int = PROMPT) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, VOCAB, length)]


def logits(model: Any, ids: list[int]) -> np.ndarray:
    """float32 [len(ids), vocab], computed in one go without a cache."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """`count` tokens after ids, each from a fresh forward pass."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(logits(model, ids)[-1].argmax()))
    return ids
