"""StableLM: layer norms, a quarter of each head rotated; StableLM 2 12B: parallel, with norms of q and k."""

from __future__ import annotations

from taco_llm._core import ModelSpec, NormSpec

from .config import Config
from .llama_like import llama_like, weight_rules
from .rules import Rule, WeightRules


def stablelm(c: Config, max_model_len: int | None) -> tuple[ModelSpec, WeightRules]:
    eps = c.number("layer_norm_eps", "norm_eps", default=1e-5)
    norm = NormSpec(kind="layer", eps=eps, bias=True)
    parallel = c.flag("use_parallel_residual", default=False)
    head_norms = c.flag("qk_layernorm", default=False)
    spec = llama_like(
        c,
        max_model_len,
        architecture="StableLmForCausalLM",
        hidden=2560,
        intermediate=6912,
        num_kv_heads=32,
        max_positions=4096,
        vocab=50304,
        partial=c.number("rope_pct", default=0.25),
        norm=norm,
        qkv_bias=c.flag("use_qkv_bias", default=False),
        attn=dict(
            qk_norm=NormSpec(kind="layer", eps=eps) if head_norms else NormSpec(), qk_norm_scope="each_head"
        ),
        layer=dict(parallel=True, ffn_norm=NormSpec()) if parallel else {},
    )
    attn = spec.layers[0].attn
    rules = [
        Rule(
            f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{h}.weight",
            (f"layers.{{i}}.attn.{x}_norm.{h}.weight",),
        )
        for x, heads in (("q", attn.num_heads), ("k", attn.num_kv_heads))
        for h in range(heads if head_norms else 0)
    ]
    return spec, weight_rules(len(spec.layers), rules)
