#include "model/decoder.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace taco {

size_t kv_block_bytes(const ModelSpec& spec, int block_size, DType dtype) {
  const AttentionSpec& a = spec.layers[0].attn;
  return spec.layers.size() * 2 * a.num_kv_heads * static_cast<size_t>(block_size) * a.head_dim *
         dtype_size(dtype);
}

size_t kv_layer_bytes(const ModelSpec& spec, const KvCache& cache) {
  return kv_block_bytes(spec, cache.block_size, cache.dtype) / spec.layers.size() * cache.num_blocks;
}

KvCacheView kv_layer(const ModelSpec& spec, const KvCache& cache, size_t layer) {
  const AttentionSpec& a = spec.layers[layer].attn;
  return {.data = static_cast<char*>(cache.data) + kv_layer_bytes(spec, cache) * layer,
          .dtype = cache.dtype,
          .num_blocks = cache.num_blocks,
          .block_size = cache.block_size,
          .num_kv_heads = a.num_kv_heads,
          .head_dim = a.head_dim};
}

Decoder::Decoder(std::shared_ptr<const Model> model, int max_rows, int max_positions)
    : model_(std::move(model)),
      backend_(*model_->backend),
      max_rows_(max_rows),
      dtype_(backend_.activation_dtype(model_->dtype)) {
  const ModelSpec& s = model_->spec;
  for (const RopeSpec& r : s.ropes) {
    ropes_.emplace_back(r, model_->backend, max_positions);
    if (backend_.has_graphs()) ropes_.back().get(max_positions);  // nothing is uploaded while one is captured
  }
  for (const LayerSpec& l : s.layers) {
    const int length = l.attn.log_length;
    if (length == 0 || query_scales_.count(length)) continue;
    query_scales_.emplace(length, DeviceVector(model_->backend, log_query_scales(length, max_positions)));
  }
  if (!s.unused_tokens.empty()) {
    const size_t bytes = s.unused_tokens.size() * sizeof(int32_t);
    unused_tokens_ = device_memory(model_->backend, bytes);
    backend_.upload(unused_tokens_.get(), s.unused_tokens.data(), bytes);
  }
  for (const LayerWeights& w : model_->layers) {
    Experts& experts = experts_.emplace_back();
    for (const auto& e : w.experts_in) experts.in.push_back(e.get());
    for (const auto& e : w.experts_out) experts.out.push_back(e.get());
  }
  int64_t latents = 0, qkv = 0, heads = 0, inner = 0, experts = 0;
  bool second_norm = false, block_out = false, shared = false;
  for (const LayerSpec& l : s.layers) {
    const AttentionSpec& a = l.attn;
    qkv = std::max(qkv, int64_t{a.num_heads + 2 * a.num_kv_heads} * a.head_dim);
    if (a.kv_rank > 0) latents = std::max<int64_t>(latents, a.q_rank + a.kv_rank + a.kv_extra);
    heads = std::max(heads, int64_t{a.num_heads} * a.head_dim);
    inner = std::max<int64_t>(inner, l.ffn.num_experts == 0 ? l.ffn.intermediate : l.ffn.shared_intermediate);
    experts = std::max<int64_t>(experts, l.ffn.num_experts + l.ffn.shared_gate);
    shared |= l.ffn.shared_intermediate > 0;
    second_norm |= l.parallel && l.ffn_norm.kind != NormKind::kNone;
    block_out |= l.post_attn_norm.kind != NormKind::kNone || l.post_ffn_norm.kind != NormKind::kNone ||
                 l.residual_post_norm || l.ffn.num_experts > 0;
  }
  int64_t hidden = s.hidden, rows = max_rows;
  residual_ = buffer(rows * hidden, dtype_);
  normed_ = buffer(rows * hidden, dtype_);
  if (second_norm) normed2_ = buffer(rows * hidden, dtype_);
  if (block_out) block_out_ = buffer(rows * hidden, dtype_);
  if (latents) latents_ = buffer(rows * latents, dtype_);
  qkv_ = buffer(rows * qkv, dtype_);
  heads_ = buffer(rows * heads, dtype_);
  if (inner) inner_ = buffer(rows * inner, dtype_);
  if (experts) router_ = buffer(rows * experts, DType::kF32);
  if (shared) shared_ = buffer(rows * hidden, dtype_);
  picked_ = buffer(rows * hidden, dtype_);
  picked_block_ = buffer(rows * hidden, dtype_);
  if (model_->project_in) projected_ = buffer(rows * s.embed_dim, dtype_);
}

Decoder::Buffer Decoder::buffer(int64_t elements, DType dtype) const {
  return device_memory(model_->backend, static_cast<size_t>(elements) * dtype_size(dtype));
}

void Decoder::normalize(const NormSpec& spec, const NormWeights& w, const void* in, void* out, int64_t rows,
                        bool add_to_residual, const Linear* consumer) {
  int64_t dim = model_->spec.hidden;
  backend_.norm({.kind = spec.kind,
                 .in = in,
                 .residual = add_to_residual ? residual_.get() : nullptr,
                 .weight = w.weight.data(),
                 .bias = w.bias.data(),
                 .weight_offset = spec.weight_offset,
                 .eps = spec.eps,
                 .rows = rows,
                 .dim = dim,
                 .in_stride = dim,
                 .out_stride = dim,
                 .out = out,
                 .consumer = consumer,
                 .dtype = dtype_});
}

void Decoder::embed(const DecoderBatch& batch) {
  const ModelSpec& s = model_->spec;
  bool project = model_->project_in != nullptr;
  backend_.embedding({.table = model_->tokens.get(),
                      .ids = batch.ids,
                      .rows = batch.rows,
                      .scale = s.embed_scale,
                      .out = project ? projected_.get() : residual_.get(),
                      .dtype = dtype_});
  if (project) {
    backend_.linear({.weight = model_->project_in.get(),
                     .in = projected_.get(),
                     .rows = batch.rows,
                     .in_stride = s.embed_dim,
                     .out_stride = s.hidden,
                     .out = residual_.get(),
                     .dtype = dtype_});
  }
  if (s.learned_positions) {
    // Positions are looked up in a table that starts position_offset rows late.
    backend_.embedding({.table = model_->positions.get(),
                        .ids = batch.positions,
                        .rows = batch.rows,
                        .id_offset = s.position_offset,
                        .accumulate = true,
                        .out = residual_.get(),
                        .dtype = dtype_});
  }
  if (s.embed_norm.kind != NormKind::kNone) {
    normalize(s.embed_norm, model_->embed_norm, residual_.get(), residual_.get(), batch.rows);
  }
  pending_ = false;
}

void Decoder::project_qkv(size_t index, const void* in, int64_t rows) {
  const AttentionSpec& a = model_->spec.layers[index].attn;
  const LayerWeights& w = model_->layers[index];
  const int64_t hidden = model_->spec.hidden, q_dim = int64_t{a.num_heads} * a.head_dim;
  const int64_t stride = q_dim + 2 * int64_t{a.num_kv_heads} * a.head_dim;
  auto at = [&](const Buffer& b, int64_t element) {
    return static_cast<char*>(b.get()) + element * static_cast<int64_t>(dtype_size(dtype_));
  };
  auto product = [&](const std::unique_ptr<Linear>& weight, const void* x, int64_t x_stride, void* y,
                     int64_t y_stride) {
    backend_.linear({.weight = weight.get(),
                     .in = x,
                     .rows = rows,
                     .in_stride = x_stride,
                     .out_stride = y_stride,
                     .out = y,
                     .dtype = dtype_});
  };
  if (a.kv_rank == 0) return product(w.qkv, in, hidden, qkv_.get(), stride);
  const int64_t width = a.q_rank + a.kv_rank + a.kv_extra;
  auto norm = [&](const NormWeights& weights, int64_t from, int64_t dim) {
    if (a.latent_norm.kind == NormKind::kNone) return;
    backend_.norm({.kind = a.latent_norm.kind,
                   .in = at(latents_, from),
                   .weight = weights.weight.data(),
                   .bias = weights.bias.data(),
                   .weight_offset = a.latent_norm.weight_offset,
                   .eps = a.latent_norm.eps,
                   .rows = rows,
                   .dim = dim,
                   .in_stride = width,
                   .out_stride = width,
                   .out = at(latents_, from),
                   .dtype = dtype_});
  };
  product(w.latents, in, hidden, latents_.get(), width);
  if (a.q_rank > 0) {
    norm(w.q_latent_norm, 0, a.q_rank);
    product(w.q, latents_.get(), width, qkv_.get(), stride);
  } else {
    product(w.q, in, hidden, qkv_.get(), stride);
  }
  norm(w.kv_latent_norm, a.q_rank, a.kv_rank);
  product(w.kv, at(latents_, a.q_rank), width, at(qkv_, q_dim), stride);
}

void Decoder::attention(size_t index, const void* in, const DecoderBatch& batch, const KvCache& cache,
                        void* out, Epilogue epilogue) {
  const ModelSpec& s = model_->spec;
  const AttentionSpec& a = s.layers[index].attn;
  const LayerWeights& w = model_->layers[index];
  int64_t q_dim = int64_t{a.num_heads} * a.head_dim;
  int64_t stride = q_dim + 2 * int64_t{a.num_kv_heads} * a.head_dim;
  KvCacheView view = kv_layer(s, cache, index);
  project_qkv(index, in, batch.rows);
  // An RMS norm with the same weights for all heads is part of the rotation's kernel.
  const bool fused_norm = a.qk_norm.kind == NormKind::kRms && a.qk_norm_scope == QkNormScope::kHead &&
                          a.qk_norm.weight && !a.qk_norm.bias;
  if (a.qk_norm.kind != NormKind::kNone && !fused_norm) {
    auto norm_heads = [&](const NormWeights& weights, int64_t at, int heads) {
      const bool together = a.qk_norm_scope == QkNormScope::kAllHeads;
      void* x = static_cast<char*>(qkv_.get()) + at * dtype_size(dtype_);
      backend_.norm({.kind = a.qk_norm.kind,
                     .in = x,
                     .weight = weights.weight.data(),
                     .bias = weights.bias.data(),
                     .eps = a.qk_norm.eps,
                     .rows = batch.rows,
                     .dim = together ? int64_t{heads} * a.head_dim : a.head_dim,
                     .in_stride = stride,
                     .out_stride = stride,
                     .out = x,
                     .groups = together ? 1 : heads,
                     .group_weights = a.qk_norm_scope == QkNormScope::kEachHead,
                     .dtype = dtype_});
    };
    norm_heads(w.q_norm, 0, a.num_heads);
    norm_heads(w.k_norm, q_dim, a.num_kv_heads);
  }
  if (*before_cache_) (*before_cache_)(index);
  const RopeSpec* rope = a.rope >= 0 ? &s.ropes[a.rope] : nullptr;
  backend_.rope_and_cache({.qkv = qkv_.get(),
                           .rows = batch.rows,
                           .stride = stride,
                           .num_heads = a.num_heads,
                           .num_kv_heads = a.num_kv_heads,
                           .head_dim = a.head_dim,
                           .positions = batch.positions,
                           .cos_sin = rope ? ropes_[a.rope].get(batch.max_kv_len) : nullptr,
                           .rotary_dim = rope ? rope->rotary_dim : 0,
                           .interleaved = rope && rope->interleaved,
                           .slots = batch.slots,
                           .q_norm = fused_norm ? w.q_norm.weight.data() : nullptr,
                           .k_norm = fused_norm ? w.k_norm.weight.data() : nullptr,
                           .qk_norm_eps = a.qk_norm.eps,
                           .q_scale = a.log_length ? query_scales_.at(a.log_length).data() : nullptr,
                           .cache = view,
                           .dtype = dtype_});
  backend_.attention({.q = qkv_.get(),
                      .q_stride = stride,
                      .num_heads = a.num_heads,
                      .cache = view,
                      .num_seqs = batch.num_seqs,
                      .q_start = batch.q_start,
                      .kv_len = batch.kv_len,
                      .block_tables = batch.block_tables,
                      .max_blocks = batch.max_blocks,
                      .scale = a.scale != 0 ? a.scale : 1.0f / std::sqrt(static_cast<float>(a.head_dim)),
                      .softcap = a.softcap,
                      .window = a.window,
                      .pattern = {.block = a.pattern.block,
                                  .local_blocks = a.pattern.local_blocks,
                                  .stride = a.pattern.stride,
                                  .head_step = a.pattern.head_step},
                      .alibi_slopes = w.alibi_slopes.data(),
                      .sinks = w.sinks.data(),
                      .out = heads_.get(),
                      .out_stride = q_dim,
                      .tree_mask = batch.tree_mask,
                      .positions = batch.positions,
                      .consumer = w.attn_out.get(),
                      .dtype = dtype_});
  backend_.linear({.weight = w.attn_out.get(),
                   .in = heads_.get(),
                   .rows = batch.rows,
                   .in_stride = q_dim,
                   .out_stride = s.hidden,
                   .epilogue = epilogue,
                   .out_scale = s.layers[index].residual_scale,
                   .out = out,
                   .dtype = dtype_});
}

void Decoder::ffn(size_t index, const void* in, int64_t rows, void* out, Epilogue epilogue) {
  const ModelSpec& s = model_->spec;
  const LayerSpec& layer = s.layers[index];
  const FfnSpec& f = layer.ffn;
  const LayerWeights& w = model_->layers[index];
  const int64_t width = f.num_experts > 0 ? f.shared_intermediate : f.intermediate;
  backend_.linear({.weight = w.ffn_in.get(),
                   .in = in,
                   .rows = rows,
                   .in_stride = s.hidden,
                   .out_stride = width,
                   .epilogue = f.gated ? Epilogue::kGated : Epilogue::kActivation,
                   .activation = f.activation,
                   .gating = {f.gate_limit, f.up_offset},
                   .out = inner_.get(),
                   .consumer = w.ffn_out.get(),
                   .dtype = dtype_});
  backend_.linear({.weight = w.ffn_out.get(),
                   .in = inner_.get(),
                   .rows = rows,
                   .in_stride = width,
                   .out_stride = s.hidden,
                   .epilogue = epilogue,
                   .out_scale = layer.residual_scale,
                   .out = out,
                   .dtype = dtype_});
}

void Decoder::moe(size_t index, const void* in, int64_t rows, void* out) {
  const ModelSpec& s = model_->spec;
  const FfnSpec& f = s.layers[index].ffn;
  const LayerWeights& w = model_->layers[index];
  const int64_t stride = f.num_experts + f.shared_gate;
  const auto* logits = static_cast<const float*>(router_.get());
  backend_.linear({.weight = w.router.get(),
                   .in = in,
                   .rows = rows,
                   .in_stride = s.hidden,
                   .out_stride = stride,
                   .out = router_.get(),
                   .float_out = true,
                   .dtype = dtype_});
  if (f.shared_intermediate > 0) ffn(index, in, rows, shared_.get(), Epilogue::kStore);
  backend_.moe({.in = in,
                .router_logits = logits,
                .rows = rows,
                .hidden = s.hidden,
                .intermediate = f.intermediate,
                .num_experts = f.num_experts,
                .top_k = f.top_k,
                .routing = f.routing,
                .renormalize = f.renormalize,
                .router_stride = stride,
                .jitter = f.router_jitter,
                .weight_scale = f.expert_scale,
                .gate_up = experts_[index].in.data(),
                .down = experts_[index].out.data(),
                .gated = f.gated,
                .activation = f.activation,
                .gating = {f.gate_limit, f.up_offset},
                .shared = f.shared_intermediate > 0 ? shared_.get() : nullptr,
                .shared_gate = f.shared_gate ? logits + f.num_experts : nullptr,
                .out = out,
                .dtype = dtype_});
}

void Decoder::layer(size_t index, const DecoderBatch& batch, const KvCache& cache) {
  const ModelSpec& s = model_->spec;
  const LayerSpec& l = s.layers[index];
  const LayerWeights& w = model_->layers[index];
  int64_t rows = batch.rows;
  void* residual = residual_.get();
  void* normed = normed_.get();
  void* block = block_out_.get();
  bool mixture = l.ffn.num_experts > 0;

  // residual += block_out_ * residual_scale, where no norm follows that could do it in passing.
  auto add_pending = [&](float scale) {
    backend_.norm({.kind = NormKind::kNone,
                   .in = block,
                   .residual = residual,
                   .residual_scale = scale,
                   .eps = 0,
                   .rows = rows,
                   .dim = s.hidden,
                   .in_stride = s.hidden,
                   .out_stride = s.hidden,
                   .out = normed,
                   .dtype = dtype_});
    pending_ = false;
  };

  if (l.residual_post_norm) {
    attention(index, residual, batch, cache, block, Epilogue::kStore);
    normalize(l.attn_norm, w.attn_norm, block, normed, rows, true);
    std::swap(residual_, normed_);
    if (mixture) {
      moe(index, residual_.get(), rows, block);
    } else {
      ffn(index, residual_.get(), rows, block, Epilogue::kStore);
    }
    normalize(l.ffn_norm, w.ffn_norm, block, normed_.get(), rows, true);
    std::swap(residual_, normed_);
    return;
  }

  const void* attn_in = residual;
  if (l.attn_norm.kind != NormKind::kNone) {
    const Linear* consumer = w.qkv ? w.qkv.get() : w.latents.get();
    normalize(l.attn_norm, w.attn_norm, pending_ ? block : residual, normed, rows, pending_, consumer);
    pending_ = false;
    attn_in = normed;
  } else if (pending_) {
    add_pending(1.0f);
  }

  if (l.parallel) {
    const void* ffn_in = attn_in;
    if (l.ffn_norm.kind != NormKind::kNone) {
      normalize(l.ffn_norm, w.ffn_norm, residual, normed2_.get(), rows, false, w.ffn_in.get());
      ffn_in = normed2_.get();
    }
    attention(index, attn_in, batch, cache, residual, Epilogue::kAccumulate);
    if (mixture) {
      moe(index, ffn_in, rows, block);
      add_pending(l.residual_scale);
    } else {
      ffn(index, ffn_in, rows, residual, Epilogue::kAccumulate);
    }
    return;
  }

  if (l.post_attn_norm.kind != NormKind::kNone) {
    attention(index, attn_in, batch, cache, block, Epilogue::kStore);
    normalize(l.post_attn_norm, w.post_attn_norm, block, block, rows);
    if (l.residual_scale != 1.0f) {
      add_pending(l.residual_scale);
    } else {
      pending_ = true;
    }
  } else {
    attention(index, attn_in, batch, cache, residual, Epilogue::kAccumulate);
  }

  const void* ffn_in = residual;
  if (l.ffn_norm.kind != NormKind::kNone) {
    normalize(l.ffn_norm, w.ffn_norm, pending_ ? block : residual, normed, rows, pending_, w.ffn_in.get());
    pending_ = false;
    ffn_in = normed;
  } else if (pending_) {
    add_pending(1.0f);
  }
  bool post_norm = l.post_ffn_norm.kind != NormKind::kNone;
  if (!mixture && !post_norm) {
    ffn(index, ffn_in, rows, residual, Epilogue::kAccumulate);
    return;
  }
  if (mixture) {
    moe(index, ffn_in, rows, block);
  } else {
    ffn(index, ffn_in, rows, block, Epilogue::kStore);
  }
  if (post_norm) normalize(l.post_ffn_norm, w.post_ffn_norm, block, block, rows);
  if (l.residual_scale != 1.0f) {
    add_pending(l.residual_scale);
  } else {
    pending_ = true;
  }
}

void Decoder::forward(const DecoderBatch& batch, const KvCache& cache, const LayerHook& before_cache) {
  TACO_CHECK(batch.rows > 0 && batch.rows <= max_rows_, "rows ", batch.rows, ", room for ", max_rows_);
  before_cache_ = &before_cache;
  embed(batch);
  for (size_t i = 0; i < model_->layers.size(); ++i) layer(i, batch, cache);
}

void Decoder::logits(const int32_t* index, int64_t count, float* out) {
  const ModelSpec& s = model_->spec;
  int64_t hidden = s.hidden;
  auto gather = [&](const Buffer& from, const Buffer& to) {
    backend_.gather_rows({.in = from.get(),
                          .index = index,
                          .rows = count,
                          .dim = hidden,
                          .in_stride = hidden,
                          .out = to.get(),
                          .dtype = dtype_});
  };
  gather(residual_, picked_);
  if (pending_) gather(block_out_, picked_block_);
  void* in = picked_.get();
  if (s.final_norm.kind != NormKind::kNone || pending_) {
    backend_.norm({.kind = s.final_norm.kind,
                   .in = pending_ ? picked_block_.get() : picked_.get(),
                   .residual = pending_ ? picked_.get() : nullptr,
                   .weight = model_->final_norm.weight.data(),
                   .bias = model_->final_norm.bias.data(),
                   .weight_offset = s.final_norm.weight_offset,
                   .eps = s.final_norm.eps,
                   .rows = count,
                   .dim = hidden,
                   .in_stride = hidden,
                   .out_stride = hidden,
                   .out = picked_block_.get(),
                   .dtype = dtype_});
    in = picked_block_.get();
  }
  int64_t width = hidden;
  if (model_->project_out) {
    width = s.embed_dim;
    backend_.linear({.weight = model_->project_out.get(),
                     .in = in,
                     .rows = count,
                     .in_stride = hidden,
                     .out_stride = width,
                     .out = projected_.get(),
                     .dtype = dtype_});
    in = projected_.get();
  }
  backend_.linear({.weight = model_->head.get(),
                   .in = in,
                   .rows = count,
                   .in_stride = width,
                   .out_stride = s.vocab_size,
                   .out = out,
                   .float_out = true,
                   .dtype = dtype_});
  if (s.logit_scale != 1.0f || s.logit_softcap != 0.0f) {
    backend_.scale_logits(
        {.logits = out, .count = count * s.vocab_size, .scale = s.logit_scale, .softcap = s.logit_softcap});
  }
  if (unused_tokens_) {
    backend_.mask_logits({.logits = out,
                          .rows = count,
                          .vocab = s.vocab_size,
                          .ids = static_cast<const int32_t*>(unused_tokens_.get()),
                          .count = static_cast<int64_t>(s.unused_tokens.size())});
  }
}

}  // namespace taco
