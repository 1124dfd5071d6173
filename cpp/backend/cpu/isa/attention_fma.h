// Attention policies on float32 multiply-adds, for a KV cache of any type.
#pragma once

#include "backend/cpu/isa/attention_impl.h"

namespace taco::cpu {
namespace {

// How neighbouring rows (dims of K, tokens of V) of a panel become vectors. `stride`: elements between rows
// of a panel that is not paired; a pair of rows takes 2 * stride either way.
struct LoadF32 {
  using E = float;
  static constexpr int kPair = 1;
  static void two(const E* p, int64_t stride, Simd::F& a, Simd::F& b) {
    a = Simd::load(p);
    b = Simd::load(p + stride);
  }
  static Simd::F one(const E* p) { return Simd::load(p); }
};
struct LoadF16 {
  using E = uint16_t;
  static constexpr int kPair = 1;
  static void two(const E* p, int64_t stride, Simd::F& a, Simd::F& b) {
    a = Simd::load_f16(p);
    b = Simd::load_f16(p + stride);
  }
  static Simd::F one(const E* p) { return Simd::load_f16(p); }
};
struct LoadBf16 {
  using E = uint16_t;
  static constexpr int kPair = 2;
  static void two(const E* p, int64_t, Simd::F& a, Simd::F& b) { Simd::load_bf16_pairs(p, a, b); }
  static Simd::F one(const E* p) {
    Simd::F a, b;
    Simd::load_bf16_pairs(p, a, b);
    return a;
  }
};

// scores[MR][NV vectors] of rows q, against NV vectors of tokens.
template <typename L, int MR, int NV>
inline void score_block(const float* q, int64_t q_stride, const typename L::E* const* k, int64_t k_stride,
                        int dim, float* scores) {
  Simd::F acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = Simd::zero();
  const typename L::E* p[NV];
  for (int v = 0; v < NV; ++v) p[v] = k[v];
  int d = 0;
  for (; d + 2 <= dim; d += 2) {
    for (int v = 0; v < NV; ++v) {
      Simd::F a, b;
      L::two(p[v], k_stride, a, b);
      p[v] += 2 * k_stride;
      for (int r = 0; r < MR; ++r) {
        acc[r][v] = Simd::fma(Simd::set1(q[r * q_stride + d]), a, acc[r][v]);
        acc[r][v] = Simd::fma(Simd::set1(q[r * q_stride + d + 1]), b, acc[r][v]);
      }
    }
  }
  if (d < dim) {
    for (int v = 0; v < NV; ++v) {
      Simd::F a = L::one(p[v]);
      for (int r = 0; r < MR; ++r) acc[r][v] = Simd::fma(Simd::set1(q[r * q_stride + d]), a, acc[r][v]);
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) Simd::store(scores + r * kKvTile + v * Simd::W, acc[r][v]);
}

// out[MR][NV vectors] = out * alpha + weights * V over tokens [0, count), which stand in blocks.
template <typename L, int MR, int NV>
inline void value_block(const float* weights, const typename L::E* const* v_blocks, int block_size,
                        int64_t v_stride, int64_t v_offset, int count, const float* alpha, float* out,
                        int64_t out_stride) {
  constexpr int W = Simd::W;
  Simd::F acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v)
      acc[r][v] = Simd::mul(Simd::load(out + r * out_stride + v * W), Simd::set1(alpha[r]));
  for (int begin = 0; begin < count; begin += block_size) {
    const typename L::E* p = *v_blocks++ + v_offset * L::kPair;
    const int n = count - begin < block_size ? count - begin : block_size;
    const float* weight = weights + begin;
    int t = 0;
    for (; t + 2 <= n; t += 2, p += 2 * v_stride) {
      for (int v = 0; v < NV; ++v) {
        Simd::F a, b;
        L::two(p + v * W * L::kPair, v_stride, a, b);
        for (int r = 0; r < MR; ++r) {
          acc[r][v] = Simd::fma(Simd::set1(weight[r * kKvTile + t]), a, acc[r][v]);
          acc[r][v] = Simd::fma(Simd::set1(weight[r * kKvTile + t + 1]), b, acc[r][v]);
        }
      }
    }
    if (t < n) {
      for (int v = 0; v < NV; ++v) {
        Simd::F a = L::one(p + v * W * L::kPair);
        for (int r = 0; r < MR; ++r) acc[r][v] = Simd::fma(Simd::set1(weight[r * kKvTile + t]), a, acc[r][v]);
      }
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) Simd::store(out + r * out_stride + v * W, acc[r][v]);
}

// Calls body(row, MR, vector, NV) with both counts known to the compiler, over rows x vectors.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <int kMaxRows, int kMaxVectors, typename Body>
inline void for_blocks(int rows, int vectors, Body&& body) {
  auto with_rows = [&](auto mr, int row) {
    int v = 0;
    for (; v + kMaxVectors <= vectors; v += kMaxVectors) body(row, mr, v, Count<kMaxVectors>{});
    if constexpr (kMaxVectors > 3)
      if (vectors - v == 3) return body(row, mr, v, Count<3>{});
    if constexpr (kMaxVectors > 2)
      if (vectors - v == 2) return body(row, mr, v, Count<2>{});
    if (vectors - v == 1) body(row, mr, v, Count<1>{});
  };
  int row = 0;
  for (; row + kMaxRows <= rows; row += kMaxRows) with_rows(Count<kMaxRows>{}, row);
  if constexpr (kMaxRows > 5)
    if (rows - row == 5) return with_rows(Count<5>{}, row);
  if constexpr (kMaxRows > 4)
    if (rows - row == 4) return with_rows(Count<4>{}, row);
  if constexpr (kMaxRows > 3)
    if (rows - row == 3) return with_rows(Count<3>{}, row);
  if (rows - row == 2) return with_rows(Count<2>{}, row);
  if (rows - row == 1) with_rows(Count<1>{}, row);
}

// kRepack: the tile is first converted to float32 (odd head sizes and block sizes); else it is read where it
// is.
template <typename L, bool kRepack, int kMaxRows, int kMaxVectors>
struct FmaPolicy {
  using E = typename L::E;
  static constexpr int kRows = kMaxRows * (24 / kMaxRows);
  static constexpr int kColumns = Simd::W;
  static constexpr bool kBf16Weights = false;
  static_assert(kRows <= kAttentionRowBlock);

  explicit FmaPolicy(const AttentionWork& w)
      : v_block_size(kRepack ? kKvTile : w.args->block_size),
        k_stride(kRepack ? kKvTile : w.args->block_size),
        v_stride(kRepack ? w.padded_dim : w.dim) {}

  void load_q(AttentionWork& w) {
    const float factor = q_factor(*w.args);
    for (int row = 0; row < w.rows; ++row) {
      const float* in = q_row(w, row);
      float* out = static_cast<float*>(w.q) + static_cast<int64_t>(row) * w.padded_dim;
      for (int d = 0; d < w.dim; ++d) out[d] = in[d] * factor;
    }
  }

  void load_tile(AttentionWork& w) {
    constexpr int W = Simd::W;
    const int block_size = w.args->block_size;
    const int vectors = (w.tile_valid + W - 1) / W;
    if constexpr (kRepack) {
      repack(w);
      for (int v = 0; v < vectors; ++v) k[v] = static_cast<const E*>(w.k_tile) + v * W;
      this->v[0] = static_cast<const E*>(w.v_tile);
    } else {
      const int32_t* blocks = w.item->blocks + w.tile_begin / block_size;
      for (int b = 0; b * block_size < w.tile_valid; ++b) {
        const E* panel = reinterpret_cast<const E*>(k_panel(w, blocks[b]));
        const int first = b * block_size / W;
        for (int i = 0; i < block_size / W; ++i) k[first + i] = panel + i * W * L::kPair;
        v[b] = reinterpret_cast<const E*>(v_panel(w, blocks[b]));
      }
    }
  }

  void score(AttentionWork& w, int first, int count, int columns) {
    const float* q = static_cast<const float*>(w.q) + static_cast<int64_t>(first) * w.padded_dim;
    for_blocks<kMaxRows, kMaxVectors>(count, columns / Simd::W, [&](int row, auto mr, int vec, auto nv) {
      score_block<L, decltype(mr)::value, decltype(nv)::value>(q + static_cast<int64_t>(row) * w.padded_dim,
                                                               w.padded_dim, k + vec, k_stride, w.dim,
                                                               w.scores + row * kKvTile + vec * Simd::W);
    });
  }

  void accumulate(AttentionWork& w, int first, int count, int tokens) {
    float* out = w.out + static_cast<int64_t>(first) * w.padded_dim;
    const int vectors = static_cast<int>(v_stride) / Simd::W;
    for_blocks<kMaxRows, kMaxVectors>(count, vectors, [&](int row, auto mr, int vec, auto nv) {
      value_block<L, decltype(mr)::value, decltype(nv)::value>(
          w.weights + row * kKvTile, v, v_block_size, v_stride, vec * Simd::W, tokens, w.alpha + row,
          out + static_cast<int64_t>(row) * w.padded_dim + vec * Simd::W, w.padded_dim);
    });
  }

 private:
  // K as [dim][kKvTile], V as [kKvTile][padded_dim], both float32. Tokens that no row sees are not read.
  static void repack(AttentionWork& w) {
    const AttentionArgs& a = *w.args;
    float *kt = static_cast<float*>(w.k_tile), *vt = static_cast<float*>(w.v_tile);
    const int bs = a.block_size, dim = w.dim;
    const bool paired = a.kv_type == KvType::kBF16;
    for (int t = 0; t < w.tile_valid;) {
      const int position = w.tile_begin + t, offset = position % bs;
      int n = bs - offset;
      if (n > w.tile_valid - t) n = w.tile_valid - t;
      const char *kp = k_panel(w, w.item->blocks[position / bs]),
                 *vp = v_panel(w, w.item->blocks[position / bs]);
      for (int d = 0; d < dim; ++d)
        for (int i = 0; i < n; ++i)
          kt[d * kKvTile + t + i] = element(a.kv_type, kp, k_index(paired, d, offset + i, dim, bs));
      for (int i = 0; i < n; ++i) {
        float* row = vt + static_cast<int64_t>(t + i) * w.padded_dim;
        for (int d = 0; d < dim; ++d)
          row[d] = element(a.kv_type, vp, v_index(paired, d, offset + i, dim, bs));
        for (int d = dim; d < w.padded_dim; ++d) row[d] = 0.0f;
      }
      t += n;
    }
  }
  static float element(KvType type, const char* panel, int64_t index) {
    if (type == KvType::kF32) return reinterpret_cast<const float*>(panel)[index];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(panel)[index];
    return type == KvType::kF16 ? Simd::f16_to_float(bits) : Simd::bf16_to_float(bits);
  }

  const E* k[kKvTile / Simd::W];  // each vector of tokens
  const E* v[kKvTile];            // each block
  int v_block_size;
  int64_t k_stride, v_stride;
};

// True if tiles can be read where they are, without a conversion first.
inline bool reads_in_place(const AttentionArgs& a) {
  return a.block_size % Simd::W == 0 && a.block_size % 2 == 0 && kKvTile % a.block_size == 0 &&
         a.head_dim % Simd::W == 0 && a.head_dim % 2 == 0;
}

template <int kMaxRows, int kMaxVectors>
void run_fma_attention(const AttentionArgs& a, const AttentionItem& it, float* scratch) {
  if (!reads_in_place(a))
    return run_attention<FmaPolicy<LoadF32, true, kMaxRows, kMaxVectors>>(a, it, scratch);
  switch (a.kv_type) {
    case KvType::kF32:
      return run_attention<FmaPolicy<LoadF32, false, kMaxRows, kMaxVectors>>(a, it, scratch);
    case KvType::kF16:
      return run_attention<FmaPolicy<LoadF16, false, kMaxRows, kMaxVectors>>(a, it, scratch);
    case KvType::kBF16:
      return run_attention<FmaPolicy<LoadBf16, false, kMaxRows, kMaxVectors>>(a, it, scratch);
  }
}

}  // namespace
}  // namespace taco::cpu
