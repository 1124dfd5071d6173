"""XVERSE: Llama under its own name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .common import GatedMlp, PlainModel, RmsNorm, attend, frequencies, heads, rotate


class Attention(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.size = c.hidden_size // c.num_attention_heads
        self.base = getattr(c, "rope_theta", 10000.0)
        kv_size = getattr(c, "num_key_value_heads", c.num_attention_heads) * self.size
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inv_freq = frequencies(self.size, self.base)
        q, k, v = (heads(proj(x), self.size) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attend(rotate(q, inv_freq), rotate(k, inv_freq), v))


class Layer(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class XverseForCausalLM(PlainModel):
    DEFAULTS = dict(
        vocab_size=100278,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        hidden_act="silu",
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        c = self.c
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c.vocab_size, c.hidden_size),
                "layers": nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers)),
                "norm": RmsNorm(c.hidden_size, c.rms_norm_eps),
            }
        )
        if not c.tie_word_embeddings:
            self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward_ids(self, ids: Tensor) -> Tensor:
        x = self.model["embed_tokens"](ids)
        for layer in self.model["layers"]:
            x = layer(x)
        head = self.model["embed_tokens"] if self.c.tie_word_embeddings else self.lm_head
        return self.model["norm"](x) @ head.weight.T
