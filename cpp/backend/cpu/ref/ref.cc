#include "backend/cpu/ref/ref.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "backend/cpu/activations.h"
#include "backend/cpu/isa/kv_layout.h"
#include "base/error.h"

namespace taco::cpu::ref {
namespace {

int64_t kv_index(const KvCacheView& c, int64_t block, int value, int head, int token, int dim) {
  const bool paired = c.dtype == DType::kBF16;
  const int64_t panel = int64_t{c.block_size} * c.head_dim;
  const int64_t in_panel = value ? v_index(paired, dim, token, c.head_dim, c.block_size)
                                 : k_index(paired, dim, token, c.head_dim, c.block_size);
  return ((block * 2 + value) * c.num_kv_heads + head) * panel + in_panel;
}

void rms_norm(float* x, const float* weight, double eps, int dim) {
  double square = 0;
  for (int i = 0; i < dim; ++i) square += double{x[i]} * x[i];
  const double factor = 1.0 / std::sqrt(square / dim + eps);
  for (int i = 0; i < dim; ++i) x[i] = static_cast<float>(x[i] * factor * weight[i]);
}

void rotate(float* x, const float* cos_sin, int rotary_dim, bool interleaved) {
  const int half = rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    float &a = interleaved ? x[2 * i] : x[i], &b = interleaved ? x[2 * i + 1] : x[i + half];
    const double c = cos_sin[i], s = cos_sin[half + i], a0 = a, b0 = b;
    a = static_cast<float>(a0 * c - b0 * s);
    b = static_cast<float>(b0 * c + a0 * s);
  }
}

}  // namespace

float kv_load(const KvCacheView& c, int64_t block, int value, int head, int token, int dim) {
  const int64_t i = kv_index(c, block, value, head, token, dim);
  if (c.dtype == DType::kF32) return static_cast<const float*>(c.data)[i];
  if (c.dtype == DType::kF16) return to_float(static_cast<const f16*>(c.data)[i]);
  const float scale = value ? c.v_scale : c.k_scale;
  if (c.dtype == DType::kF8E4M3) return to_float(static_cast<const f8e4m3*>(c.data)[i]) * scale;
  if (c.dtype == DType::kF8E5M2) return to_float(static_cast<const f8e5m2*>(c.data)[i]) * scale;
  return to_float(static_cast<const bf16*>(c.data)[i]);
}

void kv_store(const KvCacheView& c, int64_t block, int value, int head, int token, int dim, float x) {
  const int64_t i = kv_index(c, block, value, head, token, dim);
  if (c.dtype == DType::kF32) {
    static_cast<float*>(c.data)[i] = x;
  } else if (c.dtype == DType::kF16) {
    static_cast<f16*>(c.data)[i] = to_f16(x);
  } else if (c.dtype == DType::kF8E4M3) {
    static_cast<f8e4m3*>(c.data)[i] = to_f8e4m3(x / (value ? c.v_scale : c.k_scale));
  } else if (c.dtype == DType::kF8E5M2) {
    static_cast<f8e5m2*>(c.data)[i] = to_f8e5m2(x / (value ? c.v_scale : c.k_scale));
  } else {
    static_cast<bf16*>(c.data)[i] = to_bf16(x);
  }
}

void norm(const NormParams& p) {
  if (p.groups > 1) {
    for (int g = 0; g < p.groups; ++g) {
      NormParams one = p;
      one.groups = 1;
      one.in = f32(p.in) + g * p.dim;
      one.out = f32(p.out) + g * p.dim;
      if (p.group_weights && p.weight) one.weight = p.weight + g * p.dim;
      if (p.group_weights && p.bias) one.bias = p.bias + g * p.dim;
      norm(one);
    }
    return;
  }
  for (int64_t row = 0; row < p.rows; ++row) {
    const float* in = f32(p.in) + row * p.in_stride;
    float* out = f32(p.out) + row * p.out_stride;
    std::vector<double> x(in, in + p.dim);
    if (p.residual) {
      float* residual = f32(p.residual) + row * p.dim;
      for (int64_t i = 0; i < p.dim; ++i) {
        x[i] = residual[i] + x[i] * p.residual_scale;
        residual[i] = static_cast<float>(x[i]);
      }
    }
    double mean = 0, factor = 1;
    if (p.kind != NormKind::kNone) {
      if (p.kind == NormKind::kLayer) mean = std::accumulate(x.begin(), x.end(), 0.0) / p.dim;
      double square = 0;
      for (double v : x) square += (v - mean) * (v - mean);
      factor = 1.0 / std::sqrt(square / p.dim + p.eps);
    }
    for (int64_t i = 0; i < p.dim; ++i) {
      double y = (x[i] - mean) * factor;
      if (p.kind != NormKind::kNone) {
        if (p.weight) y *= double{p.weight[i]} + p.weight_offset;
        if (p.bias) y += p.bias[i];
      }
      out[i] = static_cast<float>(y);
    }
  }
}

void rope_and_cache(const RopeAndCacheParams& p) {
  const int dim = p.head_dim;
  for (int64_t row = 0; row < p.rows; ++row) {
    float* heads = f32(p.qkv) + row * p.stride;
    for (int h = 0; h < p.num_heads + p.num_kv_heads; ++h) {
      float* x = heads + int64_t{h} * dim;
      const float* weight = h < p.num_heads ? p.q_norm : p.k_norm;
      if (weight) rms_norm(x, weight, p.qk_norm_eps, dim);
      if (p.cos_sin)
        rotate(x, p.cos_sin + int64_t{p.positions[row]} * p.rotary_dim, p.rotary_dim, p.interleaved);
      for (int d = 0; p.q_scale && h < p.num_heads && d < dim; ++d) x[d] *= p.q_scale[p.positions[row]];
    }
    const int64_t slot = p.slots[row];
    if (slot < 0) continue;
    const float *k = heads + int64_t{p.num_heads} * dim, *v = k + int64_t{p.num_kv_heads} * dim;
    for (int h = 0; h < p.num_kv_heads; ++h) {
      for (int d = 0; d < dim; ++d) {
        const int64_t block = slot / p.cache.block_size;
        const int token = static_cast<int>(slot % p.cache.block_size);
        kv_store(p.cache, block, 0, h, token, d, k[int64_t{h} * dim + d]);
        kv_store(p.cache, block, 1, h, token, d, v[int64_t{h} * dim + d]);
      }
    }
  }
}

void attention(const AttentionParams& p) {
  const int dim = p.cache.head_dim, group = p.num_heads / p.cache.num_kv_heads,
            block_size = p.cache.block_size;
  std::vector<double> scores, sum(dim);
  std::vector<float> k, v;
  for (int s = 0; s < p.num_seqs; ++s) {
    const int q_len = p.q_start[s + 1] - p.q_start[s];
    if (q_len == 0) continue;
    const int32_t* blocks = p.block_tables + s * p.max_blocks;
    for (int h = 0; h < p.num_heads; ++h) {
      if (h % group == 0) {
        k.clear();
        v.clear();
        for (int t = 0; t < p.kv_len[s]; ++t) {
          for (int d = 0; d < dim; ++d) {
            k.push_back(kv_load(p.cache, blocks[t / block_size], 0, h / group, t % block_size, d));
            v.push_back(kv_load(p.cache, blocks[t / block_size], 1, h / group, t % block_size, d));
          }
        }
      }
      for (int j = 0; j < q_len; ++j) {
        const int oldest = p.kv_len[s] - q_len;  // of the step's slots
        const int position = p.tree_mask ? p.positions[p.q_start[s] + j] : oldest + j;
        const uint64_t nodes = p.tree_mask ? p.tree_mask[p.q_start[s] + j] : 0;
        // Where the token in slot t stands, or -1 if the row does not see it.
        auto seen_at = [&](int t) {
          int at = t;
          if (p.tree_mask && t >= oldest) {
            at = nodes >> (t - oldest) & 1 ? p.positions[p.q_start[s] + t - oldest] : -1;
          } else if (!p.tree_mask && t > position) {
            at = -1;
          }
          if (p.pattern.block > 0 && at >= 0 && !sees_key(p.pattern, h, position, at)) return -1;
          return p.window > 0 && at <= position - p.window ? -1 : at;
        };
        const float* q = f32(p.q) + (p.q_start[s] + j) * p.q_stride + int64_t{h} * dim;
        float* out = f32(p.out) + (p.q_start[s] + j) * p.out_stride + int64_t{h} * dim;
        const double sink = p.sinks ? p.sinks[h] : -std::numeric_limits<double>::infinity();
        double max = sink, denominator = 0;
        scores.clear();
        for (int t = 0; t < p.kv_len[s]; ++t) {
          const int at = seen_at(t);
          scores.push_back(-std::numeric_limits<double>::infinity());
          if (at < 0) continue;
          double score = 0;
          for (int d = 0; d < dim; ++d) score += double{q[d]} * k[int64_t{t} * dim + d];
          score *= p.scale;
          if (p.softcap > 0) score = p.softcap * std::tanh(score / p.softcap);
          if (p.alibi_slopes) score += double{p.alibi_slopes[h]} * (at - position);
          scores.back() = score;
          max = std::max(max, score);
        }
        if (p.sinks) denominator = std::exp(sink - max);
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int t = 0; t < p.kv_len[s]; ++t) {
          if (seen_at(t) < 0) continue;
          const double weight = std::exp(scores[t] - max);
          denominator += weight;
          for (int d = 0; d < dim; ++d) sum[d] += weight * v[int64_t{t} * dim + d];
        }
        for (int d = 0; d < dim; ++d) out[d] = static_cast<float>(sum[d] / denominator);
      }
    }
  }
}

void gather_rows(const GatherRowsParams& p) {
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t i = 0; i < p.dim; ++i)
      f32(p.out)[row * p.dim + i] = f32(p.in)[p.index[row] * p.in_stride + i];
}

void scale_logits(const ScaleLogitsParams& p) {
  for (int64_t i = 0; i < p.count; ++i) {
    double x = double{p.logits[i]} * p.scale;
    if (p.softcap > 0) x = p.softcap * std::tanh(x / p.softcap);
    p.logits[i] = static_cast<float>(x);
  }
}

void copy_slots(const CopySlotsParams& p) {
  for (int layer = 0; layer < p.layers; ++layer) {
    KvCacheView c = p.cache;
    c.data = static_cast<char*>(c.data) + layer * p.layer_bytes;
    for (int i = 0; i < p.group_start[p.num_groups]; ++i)
      for (int value = 0; value < 2; ++value)
        for (int h = 0; h < c.num_kv_heads; ++h)
          for (int d = 0; d < c.head_dim; ++d) {
            const int64_t from = p.pairs[2 * i], to = p.pairs[2 * i + 1];
            kv_store(c, to / c.block_size, value, h, static_cast<int>(to % c.block_size), d,
                     kv_load(c, from / c.block_size, value, h, static_cast<int>(from % c.block_size), d));
          }
  }
}

void mask_logits(const MaskLogitsParams& p) {
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t i = 0; i < p.count; ++i)
      p.logits[row * p.vocab + p.ids[i]] = -std::numeric_limits<float>::infinity();
}

void copy_blocks(const CopyBlocksParams& p) {
  const KvCacheView& c = p.cache;
  for (int i = 0; i < p.num_pairs; ++i)
    for (int value = 0; value < 2; ++value)
      for (int h = 0; h < c.num_kv_heads; ++h)
        for (int t = 0; t < c.block_size; ++t)
          for (int d = 0; d < c.head_dim; ++d)
            kv_store(c, p.pairs[2 * i + 1], value, h, t, d, kv_load(c, p.pairs[2 * i], value, h, t, d));
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluQuick:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kRelu2:
      return std::max(x, 0.0) * std::max(x, 0.0);
  }
  fail(ErrorCode::kInternal, "unknown activation");
}

double gate(Activation activation, const Gating& gating, double gate, double up) {
  if (gating.limit > 0) {
    const double limit = gating.limit;
    gate = std::min(gate, limit);
    up = std::clamp(up, -limit, limit);
  }
  return activate(activation, gate) * (up + gating.up_offset);
}

void moe(const MoeParams& p, const std::vector<DenseExpert>& experts) {
  const int64_t stride = p.router_stride ? p.router_stride : p.num_experts;
  for (int64_t row = 0; row < p.rows; ++row) {
    const float *x = f32(p.in) + row * p.hidden, *logits = p.router_logits + row * stride;
    std::vector<double> scores(p.num_experts);
    if (p.routing == MoeRouting::kSigmoidTopK) {
      for (int e = 0; e < p.num_experts; ++e) scores[e] = 1 / (1 + std::exp(-double{logits[e]}));
    } else {
      double sum = 0;
      const double max = *std::max_element(logits, logits + p.num_experts);
      for (int e = 0; e < p.num_experts; ++e) sum += scores[e] = std::exp(logits[e] - max);
      for (double& v : scores) v /= sum;
    }
    std::vector<int> order(p.num_experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    if (p.routing == MoeRouting::kSparseMixer) {
      std::vector<double> left(logits, logits + p.num_experts);
      for (int k = 0; k < p.top_k; ++k) {
        const double own = logits[order[k]];
        double sum = 0;
        for (double other : left) {
          if (!((own - other) / std::max(std::fabs(other), own) > 2 * p.jitter)) sum += std::exp(other - own);
        }
        scores[order[k]] = 1 / sum;
        left[order[k]] = -std::numeric_limits<double>::infinity();
      }
    }
    order.resize(p.top_k);
    double kept = 1;
    if (p.renormalize || p.routing == MoeRouting::kTopKSoftmax) {
      kept = 0;
      for (int e : order) kept += scores[e];
    }
    std::vector<double> out(p.hidden);
    for (int e : order) {
      std::vector<double> inner(p.intermediate);
      auto dot = [&](int64_t i) {
        double s = experts[e].gate_up_bias.empty() ? 0 : experts[e].gate_up_bias[i];
        for (int64_t k = 0; k < p.hidden; ++k) s += double{experts[e].gate_up[i * p.hidden + k]} * x[k];
        return s;
      };
      for (int64_t i = 0; i < p.intermediate; ++i)
        inner[i] = p.gated ? gate(p.activation, p.gating, dot(i), dot(p.intermediate + i))
                           : activate(p.activation, dot(i));
      for (int64_t i = 0; i < p.hidden; ++i) {
        double s = experts[e].down_bias.empty() ? 0 : experts[e].down_bias[i];
        for (int64_t k = 0; k < p.intermediate; ++k)
          s += double{experts[e].down[i * p.intermediate + k]} * inner[k];
        out[i] += scores[e] / kept * p.weight_scale * s;
      }
    }
    if (p.shared) {
      const double factor = p.shared_gate ? 1 / (1 + std::exp(-double{p.shared_gate[row * stride]})) : 1;
      for (int64_t i = 0; i < p.hidden; ++i) out[i] += factor * f32(p.shared)[row * p.hidden + i];
    }
    for (int64_t i = 0; i < p.hidden; ++i) f32(p.out)[row * p.hidden + i] = static_cast<float>(out[i]);
  }
}

}  // namespace taco::cpu::ref
