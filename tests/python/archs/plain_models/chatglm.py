"""ChatGLM 2 and 3 (and GLM-4 under the same name): half of each head rotates, in interleaved pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .common import PlainModel, RmsNorm, attend, frequencies, heads, rotate, silu


def make_norm(c: Any) -> nn.Module:
    if c.rmsnorm:
        return RmsNorm(c.hidden_size, c.layernorm_epsilon)
    return nn.LayerNorm(c.hidden_size, eps=c.layernorm_epsilon)


class SelfAttention(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.c = c
        self.count = c.num_attention_heads
        self.groups = c.multi_query_group_num if c.multi_query_attention else self.count
        width = (self.count + 2 * self.groups) * c.kv_channels
        self.query_key_value = nn.Linear(c.hidden_size, width, bias=c.add_bias_linear or c.add_qkv_bias)
        self.dense = nn.Linear(self.count * c.kv_channels, c.hidden_size, bias=c.add_bias_linear)

    def forward(self, x: Tensor) -> Tensor:
        size = self.c.kv_channels
        fused = self.query_key_value(x)
        if self.c.multi_query_attention:  # all queries, then all keys, then all values
            parts = fused.split([self.count * size, self.groups * size, self.groups * size], -1)
            q, k, v = (heads(part, size) for part in parts)
        else:  # head by head: its query, its key, its value
            q, k, v = fused.view(len(x), self.count, 3, size).permute(2, 1, 0, 3)
        ratio = getattr(self.c, "rope_ratio", 1.0)
        if "chatglm2" in getattr(self.c, "_name_or_path", ""):  # positions divided by it
            inv_freq = frequencies(size // 2, 10000.0) / ratio
        else:
            inv_freq = frequencies(size // 2, 10000.0 * ratio)
        q, k = rotate(q, inv_freq, interleaved=True), rotate(k, inv_freq, interleaved=True)
        return self.dense(attend(q, k, v))


class Mlp(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(c.hidden_size, 2 * c.ffn_hidden_size, bias=c.add_bias_linear)
        self.dense_4h_to_h = nn.Linear(c.ffn_hidden_size, c.hidden_size, bias=c.add_bias_linear)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, -1)
        return self.dense_4h_to_h(silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.input_layernorm = make_norm(c)
        self.self_attention = SelfAttention(c)
        self.post_attention_layernorm = make_norm(c)
        self.mlp = Mlp(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class ChatGLMModel(PlainModel):
    DEFAULTS = dict(
        num_layers=28,
        padded_vocab_size=65024,
        hidden_size=4096,
        ffn_hidden_size=13696,
        kv_channels=128,
        num_attention_heads=32,
        seq_length=2048,
        layernorm_epsilon=1e-5,
        rmsnorm=True,
        apply_residual_connection_post_layernorm=False,
        post_layer_norm=True,
        add_bias_linear=False,
        add_qkv_bias=False,
        multi_query_attention=False,
        multi_query_group_num=1,
        apply_query_key_layer_scaling=True,
        attention_softmax_in_fp32=True,
        fp32_residual_connection=False,
        quantization_bit=0,
        tie_word_embeddings=False,
    )

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        c = self.c
        encoder: dict[str, nn.Module] = {"layers": nn.ModuleList(Layer(c) for _ in range(c.num_layers))}
        if c.post_layer_norm:
            encoder["final_layernorm"] = make_norm(c)
        tokens = nn.ModuleDict({"word_embeddings": nn.Embedding(c.padded_vocab_size, c.hidden_size)})
        parts = {"embedding": tokens, "encoder": nn.ModuleDict(encoder)}
        if not c.tie_word_embeddings:
            parts["output_layer"] = nn.Linear(c.hidden_size, c.padded_vocab_size, bias=False)
        self.transformer = nn.ModuleDict(parts)

    def forward_ids(self, ids: Tensor) -> Tensor:
        embedding = self.transformer["embedding"]["word_embeddings"]
        encoder = self.transformer["encoder"]
        x = embedding(ids)
        for layer in encoder["layers"]:
            x = layer(x)
        if self.c.post_layer_norm:
            x = encoder["final_layernorm"](x)
        head = embedding if self.c.tie_word_embeddings else self.transformer["output_layer"]
        return x @ head.weight.T
