"""InternLM: Llama with biases at all projections. InternLM 2: other names, and q, k and v fused by groups."""

from __future__ import annotations

from collections.abc import Mapping

from taco_llm._core import ModelSpec

from .config import Config
from .llama_like import llama_like, weight_rules
from .rules import Rule, WeightRules, grouped_qkv


def internlm(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    rotary = c.raw("rotary")
    if rotary is not None and c.raw("rope_parameters", "rope_scaling") is None:
        # {"base": 10000, "type": "origin" or "dynamic"}; in dynamic ones the factor may be left out.
        if not isinstance(rotary, Mapping) or rotary.get("type") not in ("origin", "dynamic"):
            raise ValueError(f"config.json: rotary must have the type origin or dynamic, it is {rotary!r}")
        factor = rotary.get("scaling_factor") or 1.0
        params = {"type": "default", "rope_theta": rotary.get("base")}
        if rotary["type"] == "dynamic":
            params |= {"type": "dynamic", "factor": factor}
        c = Config({**c.data, "rope_parameters": params})
    bias = c.flag("bias", default=True)
    spec = llama_like(
        c,
        max_model_len,
        architecture="InternLMForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        vocab=103168,
    )
    return spec, weight_rules(len(spec.layers))


def internlm2(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    bias = c.flag("bias", default=True)
    spec = llama_like(
        c,
        max_model_len,
        architecture="InternLM2ForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        vocab=103168,
    )
    rules = [
        Rule("model.tok_embeddings.weight", ("embed.tokens",)),
        Rule("model.layers.{i}.attention_norm.*", ("layers.{i}.attn_norm.*",)),
        Rule(
            "model.layers.{i}.attention.wqkv.*",
            ("layers.{i}.attn.q.*", "layers.{i}.attn.k.*", "layers.{i}.attn.v.*"),
            grouped_qkv(spec.layers[0].attn.head_dim),
        ),
        Rule("model.layers.{i}.attention.wo.*", ("layers.{i}.attn.o.*",)),
        Rule("model.layers.{i}.ffn_norm.*", ("layers.{i}.ffn_norm.*",)),
        Rule("model.layers.{i}.feed_forward.w1.*", ("layers.{i}.ffn.gate.*",)),
        Rule("model.layers.{i}.feed_forward.w3.*", ("layers.{i}.ffn.up.*",)),
        Rule("model.layers.{i}.feed_forward.w2.*", ("layers.{i}.ffn.down.*",)),
        Rule("model.norm.*", ("final_norm.*",)),
        Rule("output.weight", ("head.weight",)),
    ]
    ignore = (r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq",)
    return spec, WeightRules(rules, len(spec.layers), prefix="model.", ignore=ignore)
