"""Phi-3-small: in most layers a query sees the blocks of keys next to it and, of the older ones, a column of
every so many blocks, another one for each head. muP scales the embedding, the scores and the logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .common import PlainModel, attend, frequencies, rotate


def visible_keys(c: Any, n: int) -> Tensor:
    """[heads, n, n]: what the block pattern lets a query see (the causal rule aside)."""
    block = torch.arange(n) // c.blocksparse_block_size
    near = block[:, None] - block[None, :] < c.blocksparse_num_local_blocks
    patterns = []
    for head in range(c.num_attention_heads):
        shift = head * max(1, int(c.blocksparse_vert_stride / c.num_attention_heads))
        if c.blocksparse_homo_head_pattern:
            shift = 0
        column = (block + shift + 1) % c.blocksparse_vert_stride == 0
        patterns.append(near | column[None, :])
    return torch.stack(patterns)


class SelfAttention(nn.Module):
    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        self.c = c
        self.size = c.hidden_size // c.num_attention_heads
        width = (c.num_attention_heads + 2 * c.num_key_value_heads) * self.size
        self.query_key_value = nn.Linear(c.hidden_size, width)
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        every = c.dense_attention_every_n_layers
        self.sparse = not (every and (layer + 1) % every == 0)

    def inv_freq(self, length: int) -> tuple[Tensor, float]:
        """And what cosines and sines are multiplied by."""
        c = self.c
        inv_freq = frequencies(self.size, c.rope_embedding_base)
        if c.rope_scaling is None:
            return inv_freq / c.rope_position_scale, 1.0
        kind = "long" if length > c.rope_scaling["original_max_position_embeddings"] else "short"
        return inv_freq / torch.tensor(c.rope_scaling[kind + "_factor"]), c.rope_scaling[kind + "_mscale"]

    def forward(self, x: Tensor) -> Tensor:
        c, n = self.c, len(x)
        # For each key-value head: its query heads, its key, its value.
        fused = self.query_key_value(x).view(n, c.num_key_value_heads, -1, self.size)
        q = fused[:, :, :-2].reshape(n, -1, self.size).transpose(0, 1)
        k, v = fused[:, :, -2].transpose(0, 1), fused[:, :, -1].transpose(0, 1)
        # The scaling rule for long contexts goes by the context that the model is made for.
        inv_freq, magnitude = self.inv_freq(c.max_position_embeddings)
        q, k = rotate(q, inv_freq) * magnitude, rotate(k, inv_freq) * magnitude
        scale = c.mup_attn_multiplier / self.size if c.mup_use_scaling else 1 / math.sqrt(self.size)
        visible = visible_keys(c, n) if self.sparse else None
        return self.dense(attend(q, k, v, scale=scale, visible=visible))


class Mlp(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.limit = c.gegelu_limit
        self.up_proj = nn.Linear(c.hidden_size, 2 * c.ff_intermediate_size)
        self.down_proj = nn.Linear(c.ff_intermediate_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.up_proj(x).view(len(x), -1, 2)
        gate, linear = pairs[..., 0], pairs[..., 1]
        if self.limit is not None:
            gate, linear = gate.clamp(max=self.limit), linear.clamp(-self.limit, self.limit)
        return self.down_proj(gate * torch.sigmoid(1.702 * gate) * (linear + 1))


class Layer(nn.Module):
    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon)
        self.self_attn = SelfAttention(c, layer)
        self.post_attention_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon)
        self.mlp = Mlp(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Phi3SmallForCausalLM(PlainModel):
    DEFAULTS = dict(
        vocab_size=100352,
        max_position_embeddings=8192,
        rope_embedding_base=1000000,
        rope_position_scale=1.0,
        rope_scaling=None,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        hidden_act="gegelu",
        gegelu_limit=20.0,
        gegelu_pad_to_256=True,
        ff_dim_multiplier=None,
        ff_intermediate_size=14336,
        blocksparse_homo_head_pattern=False,
        blocksparse_block_size=64,
        blocksparse_num_local_blocks=16,
        blocksparse_vert_stride=8,
        blocksparse_triton_kernel_block_size=64,
        dense_attention_every_n_layers=2,
        layer_norm_epsilon=1e-5,
        mup_use_scaling=True,
        mup_width_multiplier=8.0,
        mup_embedding_multiplier=10.0,
        mup_attn_multiplier=1.0,
        tie_word_embeddings=True,
    )

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        c = self.c
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c.vocab_size, c.hidden_size),
                "layers": nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers)),
                "final_layernorm": nn.LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon),
            }
        )
        if not c.tie_word_embeddings:
            self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward_ids(self, ids: Tensor) -> Tensor:
        c = self.c
        x = self.model["embed_tokens"](ids)
        if c.mup_embedding_multiplier:
            x = x * c.mup_embedding_multiplier
        for layer in self.model["layers"]:
            x = layer(x)
        head = self.model["embed_tokens"] if c.tie_word_embeddings else self.lm_head
        logits = self.model["final_layernorm"](x) @ head.weight.T
        if c.mup_width_multiplier:
            logits = logits / c.mup_width_multiplier
        logits[:, getattr(c, "dummy_token_indices", [])] = -math.inf
        return logits
