"""InternLM: Llama with biases around its attention. InternLM 2: grouped heads, fused by their groups."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .common import (
    LlamaModel,
    PlainModel,
    RmsNorm,
    attend,
    dynamic_ntk_base,
    frequencies,
    heads,
    rotate,
    silu,
)


class Attention(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.c = c
        self.size = c.hidden_size // c.num_attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(c.hidden_size, c.hidden_size, bias=c.bias))

    def forward(self, x: Tensor) -> Tensor:
        rotary = self.c.rotary or {"base": 10000.0, "type": "origin"}
        base = rotary["base"]
        if rotary["type"] == "dynamic":
            factor = rotary.get("scaling_factor", 1.0)
            base = dynamic_ntk_base(base, self.size, self.c.max_position_embeddings, len(x), factor)
        inv_freq = frequencies(self.size, base)
        q, k, v = (heads(proj(x), self.size) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attend(rotate(q, inv_freq), rotate(k, inv_freq), v))


class InternLMForCausalLM(LlamaModel):
    ATTENTION = Attention
    DEFAULTS = dict(
        vocab_size=103168,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bias=True,
        rotary=None,
    )


class Attention2(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.c = c
        self.size = c.hidden_size // c.num_attention_heads
        self.kv_heads = c.num_key_value_heads or c.num_attention_heads
        width = (c.num_attention_heads + 2 * self.kv_heads) * self.size
        self.wqkv = nn.Linear(c.hidden_size, width, bias=c.bias)
        self.wo = nn.Linear(c.hidden_size, c.hidden_size, bias=c.bias)

    def forward(self, x: Tensor) -> Tensor:
        # For each key-value head: its query heads, its key, its value.
        fused = self.wqkv(x).view(len(x), self.kv_heads, -1, self.size)
        q = fused[:, :, :-2].reshape(len(x), -1, self.size).transpose(0, 1)
        k, v = fused[:, :, -2].transpose(0, 1), fused[:, :, -1].transpose(0, 1)
        scaling = self.c.rope_scaling or {}
        base, stretch = self.c.rope_theta, 1.0
        if scaling.get("type") == "dynamic":
            trained = self.c.max_position_embeddings
            base = dynamic_ntk_base(base, self.size, trained, len(x), scaling["factor"])
        elif scaling.get("type") == "linear":
            stretch = scaling["factor"]
        inv_freq = frequencies(self.size, base) / stretch
        return self.wo(attend(rotate(q, inv_freq), rotate(k, inv_freq), v))


class Mlp2(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.w1 = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.w3 = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.w2 = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


class Layer2(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.attention = Attention2(c)
        self.ffn_norm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.feed_forward = Mlp2(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class InternLM2ForCausalLM(PlainModel):
    DEFAULTS = dict(
        vocab_size=103168,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bias=True,
        rope_theta=10000,
        rope_scaling=None,
    )

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        c = self.c
        self.model = nn.ModuleDict(
            {
                "tok_embeddings": nn.Embedding(c.vocab_size, c.hidden_size),
                "layers": nn.ModuleList(Layer2(c) for _ in range(c.num_hidden_layers)),
                "norm": RmsNorm(c.hidden_size, c.rms_norm_eps),
            }
        )
        if not c.tie_word_embeddings:
            self.output = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward_ids(self, ids: Tensor) -> Tensor:
        x = self.model["tok_embeddings"](ids)
        for layer in self.model["layers"]:
            x = layer(x)
        head = self.model["tok_embeddings"] if self.c.tie_word_embeddings else self.output
        return self.model["norm"](x) @ head.weight.T
