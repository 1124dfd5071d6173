// Norms, rotation and the KV write, over the `Simd` of the instruction set that includes this.
#pragma once

#include "backend/cpu/isa/vector_kernels.h"

namespace taco::cpu {
namespace {

using F = Simd::F;
constexpr int W = Simd::W;

inline float sqrt_of(float x) { return __builtin_sqrtf(x); }

void norm_rows(const NormArgs& a, int64_t first, int64_t last) {
  const int64_t dim = a.dim, full = dim / W * W;
  for (int64_t row = first; row < last; ++row) {
    const float* in = a.in + row * a.in_stride;
    float* out = a.out + row * a.out_stride;
    if (a.residual) {
      float* residual = a.residual + row * dim;
      F scale = Simd::set1(a.residual_scale);
      for (int64_t i = 0; i < full; i += W)
        Simd::store(residual + i, Simd::fma(Simd::load(in + i), scale, Simd::load(residual + i)));
      for (int64_t i = full; i < dim; ++i) residual[i] += in[i] * a.residual_scale;
      in = residual;
    }
    float mean = 0.0f;
    if (!a.rms) {
      F s0 = Simd::zero(), s1 = Simd::zero();
      int64_t i = 0;
      for (; i + 2 * W <= full; i += 2 * W) {
        s0 = Simd::add(s0, Simd::load(in + i));
        s1 = Simd::add(s1, Simd::load(in + i + W));
      }
      for (; i < full; i += W) s0 = Simd::add(s0, Simd::load(in + i));
      float sum = Simd::reduce_add(Simd::add(s0, s1));
      for (; i < dim; ++i) sum += in[i];
      mean = sum / static_cast<float>(dim);
    }
    F m = Simd::set1(mean), q0 = Simd::zero(), q1 = Simd::zero();
    int64_t i = 0;
    for (; i + 2 * W <= full; i += 2 * W) {
      F x0 = Simd::sub(Simd::load(in + i), m), x1 = Simd::sub(Simd::load(in + i + W), m);
      q0 = Simd::fma(x0, x0, q0);
      q1 = Simd::fma(x1, x1, q1);
    }
    for (; i < full; i += W) {
      F x = Simd::sub(Simd::load(in + i), m);
      q0 = Simd::fma(x, x, q0);
    }
    float square = Simd::reduce_add(Simd::add(q0, q1));
    for (; i < dim; ++i) square += (in[i] - mean) * (in[i] - mean);
    const float factor = 1.0f / sqrt_of(square / static_cast<float>(dim) + a.eps);
    F f = Simd::set1(factor), offset = Simd::set1(a.weight_offset);
    for (i = 0; i < full; i += W) {
      F x = Simd::mul(Simd::sub(Simd::load(in + i), m), f);
      if (a.weight) x = Simd::mul(x, Simd::add(Simd::load(a.weight + i), offset));
      if (a.bias) x = Simd::add(x, Simd::load(a.bias + i));
      Simd::store(out + i, x);
    }
    for (; i < dim; ++i) {
      float x = (in[i] - mean) * factor;
      if (a.weight) x *= a.weight[i] + a.weight_offset;
      if (a.bias) x += a.bias[i];
      out[i] = x;
    }
  }
}

inline void norm_head(float* x, const float* weight, float eps, int dim) {
  NormArgs a{true, x, nullptr, 1.0f, weight, nullptr, 0.0f, eps, dim, dim, dim, x};
  norm_rows(a, 0, 1);
}

inline void rotate(float* x, const float* cos_sin, int rotary_dim, bool interleaved) {
  const int half = rotary_dim / 2;
  const float *c = cos_sin, *s = cos_sin + half;
  if (interleaved) {
    for (int i = 0; i < half; ++i) {
      float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * c[i] - b * s[i];
      x[2 * i + 1] = b * c[i] + a * s[i];
    }
    return;
  }
  int i = 0;
  for (; i + W <= half; i += W) {
    F a = Simd::load(x + i), b = Simd::load(x + half + i), cv = Simd::load(c + i), sv = Simd::load(s + i);
    Simd::store(x + i, Simd::sub(Simd::mul(a, cv), Simd::mul(b, sv)));
    Simd::store(x + half + i, Simd::fma(b, cv, Simd::mul(a, sv)));
  }
  for (; i < half; ++i) {
    float a = x[i], b = x[half + i];
    x[i] = a * c[i] - b * s[i];
    x[half + i] = b * c[i] + a * s[i];
  }
}

// Writes token `offset` of a K panel.
inline void write_k(void* panel, KvType type, const float* k, int dim, int block_size, int offset) {
  if (type == KvType::kF32) {
    float* out = static_cast<float*>(panel) + offset;
    for (int i = 0; i < dim; ++i) out[static_cast<int64_t>(i) * block_size] = k[i];
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(panel);
  for (int first = 0; first < dim; first += 64) {
    uint16_t h[64];
    const int n = dim - first < 64 ? dim - first : 64;
    int i = 0;
    if (type == KvType::kF16) {
      for (; i + W <= n; i += W) Simd::store_f16(h + i, Simd::load(k + first + i));
      for (; i < n; ++i) h[i] = Simd::float_to_f16(k[first + i]);
      for (i = 0; i < n; ++i) out[static_cast<int64_t>(first + i) * block_size + offset] = h[i];
    } else {
      for (; i + W <= n; i += W) Simd::store_bf16(h + i, Simd::load(k + first + i));
      for (; i < n; ++i) h[i] = Simd::float_to_bf16(k[first + i]);
      for (i = 0; i + 2 <= n; i += 2)
        __builtin_memcpy(out + k_index(true, first + i, offset, dim, block_size), h + i, 4);
      if (i < n) out[k_index(true, first + i, offset, dim, block_size)] = h[i];
    }
  }
}

inline void write_v(void* panel, KvType type, const float* v, int dim, int block_size, int offset) {
  int i = 0;
  if (type == KvType::kF32) {
    __builtin_memcpy(static_cast<float*>(panel) + static_cast<int64_t>(offset) * dim, v, dim * sizeof(float));
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(panel);
  if (type == KvType::kF16) {
    out += static_cast<int64_t>(offset) * dim;
    for (; i + W <= dim; i += W) Simd::store_f16(out + i, Simd::load(v + i));
    for (; i < dim; ++i) out[i] = Simd::float_to_f16(v[i]);
    return;
  }
  out += v_index(true, 0, offset, dim, block_size);
  if (offset >= (block_size & ~1)) {  // the unpaired token of an odd block
    for (; i < dim; ++i) out[i] = Simd::float_to_bf16(v[i]);
    return;
  }
  for (; i + W <= dim; i += W) Simd::store_bf16_every_other(out + 2 * i, Simd::load(v + i));
  for (; i < dim; ++i) out[2 * i] = Simd::float_to_bf16(v[i]);
}

void rope_and_cache_rows(const RopeArgs& a, int64_t first, int64_t last) {
  const int dim = a.head_dim;
  const int64_t panel = static_cast<int64_t>(a.block_size) * dim * (a.kv_type == KvType::kF32 ? 4 : 2);
  for (int64_t row = first; row < last; ++row) {
    float* q = a.qkv + row * a.stride;
    float* k = q + static_cast<int64_t>(a.num_heads) * dim;
    float* v = k + static_cast<int64_t>(a.num_kv_heads) * dim;
    const float* cs = a.cos_sin ? a.cos_sin + static_cast<int64_t>(a.positions[row]) * a.rotary_dim : nullptr;
    for (int h = 0; h < a.num_heads; ++h) {
      if (a.q_norm) norm_head(q + static_cast<int64_t>(h) * dim, a.q_norm, a.qk_norm_eps, dim);
      if (cs) rotate(q + static_cast<int64_t>(h) * dim, cs, a.rotary_dim, a.interleaved);
    }
    if (a.q_scale) {
      const float factor = a.q_scale[a.positions[row]];
      for (int i = 0; i < a.num_heads * dim; ++i) q[i] *= factor;
    }
    for (int h = 0; h < a.num_kv_heads; ++h) {
      if (a.k_norm) norm_head(k + static_cast<int64_t>(h) * dim, a.k_norm, a.qk_norm_eps, dim);
      if (cs) rotate(k + static_cast<int64_t>(h) * dim, cs, a.rotary_dim, a.interleaved);
    }
    const int64_t slot = a.slots[row];
    if (slot < 0) continue;
    const int64_t block = slot / a.block_size;
    const int offset = static_cast<int>(slot - block * a.block_size);
    char* data = static_cast<char*>(a.cache) + block * 2 * a.num_kv_heads * panel;
    for (int h = 0; h < a.num_kv_heads; ++h) {
      const int64_t head = static_cast<int64_t>(h) * dim;
      write_k(data + h * panel, a.kv_type, k + head, dim, a.block_size, offset);
      write_v(data + (a.num_kv_heads + h) * panel, a.kv_type, v + head, dim, a.block_size, offset);
    }
  }
}

void scale_add_n(float* out, const float* in, float factor, int64_t n) {
  int64_t i = 0;
  F f = Simd::set1(factor);
  for (; i + W <= n; i += W) Simd::store(out + i, Simd::fma(Simd::load(in + i), f, Simd::load(out + i)));
  for (; i < n; ++i) out[i] += in[i] * factor;
}

void exp2_n(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += W) {
    float part[W] = {};
    const int64_t count = n - i < W ? n - i : W;
    for (int64_t j = 0; j < count; ++j) part[j] = x[i + j];
    Simd::store(part, Simd::exp2(Simd::load(part)));
    for (int64_t j = 0; j < count; ++j) x[i + j] = part[j];
  }
}

void scale_logits_n(float* x, int64_t n, float scale, float softcap) {
  int64_t i = 0;
  if (softcap <= 0.0f) {
    for (; i + W <= n; i += W) Simd::store(x + i, Simd::mul(Simd::load(x + i), Simd::set1(scale)));
    for (; i < n; ++i) x[i] *= scale;
    return;
  }
  const F in = Simd::set1(scale * 2.88539008177792681472f / softcap), cap = Simd::set1(softcap);
  auto soft = [&](F v) {  // tanh(v) = 1 - 2 / (e^2v + 1)
    F e = Simd::add(Simd::exp2(Simd::mul(v, in)), Simd::set1(1.0f));
    return Simd::mul(cap, Simd::sub(Simd::set1(1.0f), Simd::div(Simd::set1(2.0f), e)));
  };
  for (; i + W <= n; i += W) Simd::store(x + i, soft(Simd::load(x + i)));
  if (i < n) {
    float rest[W] = {};
    for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
    Simd::store(rest, soft(Simd::load(rest)));
    for (int64_t j = i; j < n; ++j) x[j] = rest[j - i];
  }
}

}  // namespace
}  // namespace taco::cpu
