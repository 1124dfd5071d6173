"""What the plain references share: norms, rotations and attention written out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class PlainModel(nn.Module):
    """A reference: `forward_ids` maps token ids [n] to logits [n, vocab], all of a sequence at once.

    DEFAULTS: the defaults of the published config class. fields: what config.json says. The class is named as
    in config.json's architectures.
    """

    DEFAULTS: dict[str, Any] = {}

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        self.fields = fields
        self.c = SimpleNamespace(**{**self.DEFAULTS, **fields})

    def forward_ids(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        """As transformers' models are called: ids [1, n]."""
        assert not use_cache and ids.shape[0] == 1
        return SimpleNamespace(logits=self.forward_ids(ids[0])[None])

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {"architectures": [type(self).__name__], "torch_dtype": "float32", **self.fields}
        (folder / "config.json").write_text(json.dumps(config))
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)


class GatedMlp(nn.Module):
    """silu(gate) * up with the names of Llama."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    """Llama's layer, with its names, around any attention."""

    def __init__(self, c: Any, attention: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(PlainModel):
    """Llama's model, with its names; ATTENTION makes a layer's attention of the config."""

    ATTENTION: Callable[[Any], nn.Module]

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        c = self.c
        layers = [LlamaLayer(c, type(self).ATTENTION(c)) for _ in range(c.num_hidden_layers)]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c.vocab_size, c.hidden_size),
                "layers": nn.ModuleList(layers),
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


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def heads(x: Tensor, size: int) -> Tensor:
    """[n, heads * size] -> [heads, n, size]."""
    return x.view(x.shape[0], -1, size).transpose(0, 1)


def frequencies(dim: int, base: float) -> Tensor:
    """[dim / 2]: how far a pair of dimensions turns from one position to the next."""
    return 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)


def dynamic_ntk_base(base: float, dim: int, original: int, length: int, factor: float) -> float:
    """The base for a context of `length` tokens where `original` were trained."""
    length = max(length, original)
    return base * (factor * length / original - (factor - 1)) ** (dim / (dim - 2))


def rotate(x: Tensor, inv_freq: Tensor, interleaved: bool = False) -> Tensor:
    """Turns the first 2 * len(inv_freq) dimensions of x [heads, n, size] by their position.

    A pair is (i, i + half), or (2i, 2i + 1) if interleaved.
    """
    angle = torch.arange(x.shape[1]).float()[:, None] * inv_freq
    cos, sin = angle.cos(), angle.sin()
    half = len(inv_freq)
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1)


def alibi_slopes(count: int) -> Tensor:
    """[count]: 2^(-8/n), 2^(-16/n), ... for n heads; where n is no power of two, those of the power below it,
    then every other one of the power above it."""
    power = 1 << (count.bit_length() - 1)
    exact = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    finer = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(count - power)]
    return torch.tensor(exact + finer)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    slopes: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Causal attention. q [heads, n, size], k and v [kv heads, n, size] -> [n, heads * size].

    slopes: of ALiBi. visible: [heads, n, n], what a query may see of what lies before it.
    """
    count, n, size = q.shape
    k, v = (x.repeat_interleave(count // x.shape[0], 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * (1 / math.sqrt(size) if scale is None else scale)
    position = torch.arange(n)
    if slopes is not None:
        scores = scores + slopes[:, None, None] * (position[None, :] - position[:, None])
    seen = (position[None, :] <= position[:, None]).expand(count, n, n)
    if visible is not None:
        seen = seen & visible
    weights = torch.softmax(scores.masked_fill(~seen, -math.inf), -1)
    return (weights @ v).transpose(0, 1).reshape(n, count * size)
