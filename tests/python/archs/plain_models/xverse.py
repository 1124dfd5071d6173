"""XVERSE: Llama under its own name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .common import LlamaModel, attend, frequencies, heads, rotate


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


class XverseForCausalLM(LlamaModel):
    ATTENTION = Attention
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
