"""Qwen (the first): Llama with biases at q, k and v; beyond the trained length its rotation's base grows with
the context (dynamic NTK) and its queries with the logarithm of their position."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .common import PlainModel, RmsNorm, attend, frequencies, heads, rotate, silu


class Attention(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.c = c
        self.size = c.kv_channels
        self.c_attn = nn.Linear(c.hidden_size, 3 * c.hidden_size)
        self.c_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=not c.no_bias)

    def forward(self, x: Tensor) -> Tensor:
        n, trained = len(x), self.c.seq_length
        q, k, v = (heads(part, self.size) for part in self.c_attn(x).chunk(3, -1))
        dim = int(self.size * self.c.rotary_pct)
        base = self.c.rotary_emb_base
        if self.c.use_dynamic_ntk:
            alpha = max(1, 2 ** math.ceil(math.log2(n / trained) + 1) - 1)
            base = base * alpha ** (dim / (dim - 2))
        inv_freq = frequencies(dim, base)
        q, k = rotate(q, inv_freq), rotate(k, inv_freq)
        if self.c.use_logn_attn:  # position i, counted from 1: log(i) to the base of the trained length
            growth = [math.log(i) / math.log(trained) if i > trained else 1.0 for i in range(1, n + 1)]
            q = q * torch.tensor(growth)[:, None]
        return self.c_proj(attend(q, k, v))


class Mlp(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        inner = c.intermediate_size // 2
        self.w1 = nn.Linear(c.hidden_size, inner, bias=not c.no_bias)
        self.w2 = nn.Linear(c.hidden_size, inner, bias=not c.no_bias)
        self.c_proj = nn.Linear(inner, c.hidden_size, bias=not c.no_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.w1(x) * silu(self.w2(x)))


class Layer(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.ln_1 = RmsNorm(c.hidden_size, c.layer_norm_epsilon)
        self.attn = Attention(c)
        self.ln_2 = RmsNorm(c.hidden_size, c.layer_norm_epsilon)
        self.mlp = Mlp(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class QWenLMHeadModel(PlainModel):
    DEFAULTS = dict(
        vocab_size=151936,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        layer_norm_epsilon=1e-6,
        max_position_embeddings=8192,
        scale_attn_weights=True,
        kv_channels=128,
        rotary_pct=1.0,
        rotary_emb_base=10000,
        use_dynamic_ntk=True,
        use_logn_attn=True,
        intermediate_size=22016,
        no_bias=True,
        tie_word_embeddings=False,
        seq_length=8192,
    )

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        c = self.c
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(c.vocab_size, c.hidden_size),
                "h": nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers)),
                "ln_f": RmsNorm(c.hidden_size, c.layer_norm_epsilon),
            }
        )
        if not c.tie_word_embeddings:
            self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward_ids(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids)
        for layer in self.transformer["h"]:
            x = layer(x)
        head = self.transformer["wte"] if self.c.tie_word_embeddings else self.lm_head
        return self.transformer["ln_f"](x) @ head.weight.T
