#include "model/model_spec.h"

#include "base/error.h"

namespace taco {
namespace {

void validate_layer(const ModelSpec& spec, const LayerSpec& layer, size_t index) {
  auto where = [&] { return str_cat("layer ", index, ": "); };
  const AttentionSpec& a = layer.attn;
  TACO_REQUIRE(a.num_heads > 0 && a.num_kv_heads > 0 && a.head_dim > 0, where(),
               "num_heads, num_kv_heads and head_dim must be positive");
  TACO_REQUIRE(a.num_heads % a.num_kv_heads == 0, where(), "num_heads ", a.num_heads,
               " is not a multiple of num_kv_heads ", a.num_kv_heads);
  TACO_REQUIRE(a.kv_rank >= 0 && a.kv_extra >= 0 && a.q_rank >= 0, where(),
               "kv_rank, kv_extra and q_rank must not be negative");
  TACO_REQUIRE(a.kv_rank > 0 || (a.kv_extra == 0 && a.q_rank == 0), where(),
               "kv_extra and q_rank need a kv_rank");
  TACO_REQUIRE(a.kv_rank == 0 || a.latent_norm.kind != NormKind::kNone, where(),
               "latents need a latent_norm");
  TACO_REQUIRE(a.window >= 0, where(), "window must not be negative");
  TACO_REQUIRE(a.softcap >= 0, where(), "softcap must not be negative");
  TACO_REQUIRE(a.rope >= -1 && a.rope < static_cast<int>(spec.ropes.size()), where(), "rope ", a.rope,
               " is not an index into ropes (", spec.ropes.size(), ")");
  TACO_REQUIRE(a.rope < 0 || spec.ropes[a.rope].rotary_dim <= a.head_dim, where(),
               "rotary_dim is larger than head_dim");
  TACO_REQUIRE(a.alibi_slopes.empty() || a.alibi_slopes.size() == static_cast<size_t>(a.num_heads), where(),
               "alibi_slopes must have one entry per head");
  const KeyPatternSpec& k = a.pattern;
  TACO_REQUIRE(k.block >= 0 && (k.block == 0 || (k.local_blocks > 0 && k.stride > 0 && k.head_step >= 0)),
               where(), "pattern needs local_blocks and stride of at least 1 and a head_step of at least 0");
  TACO_REQUIRE(a.log_length == 0 || a.log_length > 1, where(), "log_length must be 0 or above 1");
  const FfnSpec& f = layer.ffn;
  TACO_REQUIRE(f.intermediate > 0, where(), "ffn.intermediate must be positive");
  TACO_REQUIRE(f.num_experts >= 0, where(), "num_experts must not be negative");
  TACO_REQUIRE(f.num_experts == 0 || (f.top_k > 0 && f.top_k <= f.num_experts), where(), "top_k ", f.top_k,
               " must lie in [1, num_experts = ", f.num_experts, "]");
  TACO_REQUIRE(f.gate_limit >= 0, where(), "gate_limit must not be negative");
  TACO_REQUIRE(f.gated || (f.gate_limit == 0 && f.up_offset == 0), where(),
               "gate_limit and up_offset need a gated feed-forward");
  TACO_REQUIRE(f.shared_intermediate >= 0 && f.router_jitter >= 0, where(),
               "shared_intermediate and router_jitter must not be negative");
  TACO_REQUIRE(f.num_experts > 0 || f.shared_intermediate == 0, where(),
               "shared_intermediate without experts");
  TACO_REQUIRE(f.shared_intermediate > 0 || !f.shared_gate, where(), "shared_gate without a shared expert");
  TACO_REQUIRE(!f.shared_gate || !f.router_bias, where(),
               "a router with a bias beside a gate of the shared expert is not built");
  TACO_REQUIRE(!(layer.parallel && layer.residual_post_norm), where(),
               "parallel and residual_post_norm exclude each other");
}

}  // namespace

void validate(const ModelSpec& spec) {
  TACO_REQUIRE(spec.vocab_size > 0, "vocab_size must be positive");
  TACO_REQUIRE(spec.hidden > 0, "hidden must be positive");
  TACO_REQUIRE(spec.max_positions > 0, "max_positions must be positive");
  TACO_REQUIRE(spec.embed_dim >= 0 && spec.position_offset >= 0,
               "embed_dim and position_offset must not be negative");
  TACO_REQUIRE(!spec.layers.empty(), "a model needs at least one layer");
  for (int id : spec.unused_tokens)
    TACO_REQUIRE(id >= 0 && id < spec.vocab_size, "unused_tokens: ", id, " is not below vocab_size");
  for (size_t i = 0; i < spec.ropes.size(); ++i) {
    const RopeSpec& r = spec.ropes[i];
    TACO_REQUIRE(r.rotary_dim > 0 && r.rotary_dim % 2 == 0, "rope ", i,
                 ": rotary_dim must be positive and even");
    TACO_REQUIRE(r.inv_freq.size() == static_cast<size_t>(r.rotary_dim / 2), "rope ", i,
                 ": inv_freq must have rotary_dim / 2 = ", r.rotary_dim / 2, " entries, it has ",
                 r.inv_freq.size());
  }
  const AttentionSpec& first = spec.layers[0].attn;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    validate_layer(spec, spec.layers[i], i);
    const AttentionSpec& a = spec.layers[i].attn;
    TACO_REQUIRE(a.num_kv_heads == first.num_kv_heads && a.head_dim == first.head_dim, "layer ", i,
                 ": all layers must have the same num_kv_heads and head_dim");
  }
}

}  // namespace taco
