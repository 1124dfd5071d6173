"""Baichuan and Baichuan 2: Llama's layers with q, k and v in one matrix (W_pack).

The 7B models rotate, the 13B ones have ALiBi; Baichuan 2 divides each row of its head by the row's length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .common import LlamaLayer, PlainModel, RmsNorm, alibi_slopes, attend, frequencies, heads, rotate


class Attention(nn.Module):
    def __init__(self, c: Any, alibi: bool) -> None:
        super().__init__()
        self.size = c.hidden_size // c.num_attention_heads
        self.W_pack = nn.Linear(c.hidden_size, 3 * c.hidden_size, bias=False)
        self.o_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)
        self.slopes = alibi_slopes(c.num_attention_heads) if alibi else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(part, self.size) for part in self.W_pack(x).chunk(3, -1))
        if self.slopes is None:
            inv_freq = frequencies(self.size, 10000.0)
            q, k = rotate(q, inv_freq), rotate(k, inv_freq)
        return self.o_proj(attend(q, k, v, slopes=self.slopes))


class Body(nn.Module):
    def __init__(self, c: Any, alibi: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(LlamaLayer(c, Attention(c, alibi)) for _ in range(c.num_hidden_layers))
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class BaichuanForCausalLM(PlainModel):
    DEFAULTS = dict(
        vocab_size=125696,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        hidden_act="silu",
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        z_loss_weight=0,
    )

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        # What tells the published configs apart: only those of 13B models have model_max_length alone, and
        # only those of Baichuan 2 have z_loss_weight.
        self.norm_head = "z_loss_weight" in fields
        self.model = Body(self.c, alibi=self.has_alibi())
        self.lm_head = nn.Linear(self.c.hidden_size, self.c.vocab_size, bias=False)

    def has_alibi(self) -> bool:
        return "max_position_embeddings" not in self.fields

    def forward_ids(self, ids: Tensor) -> Tensor:
        x, head = self.model(ids), self.lm_head.weight
        if self.norm_head:
            head = head / torch.sqrt((head * head).sum(1, keepdim=True))
        return x @ head.T


class BaiChuanForCausalLM(BaichuanForCausalLM):
    """The first 7B model's spelling."""

    DEFAULTS = {**BaichuanForCausalLM.DEFAULTS, "vocab_size": 64000}
    DEFAULTS.pop("z_loss_weight")

    def has_alibi(self) -> bool:
        return False
