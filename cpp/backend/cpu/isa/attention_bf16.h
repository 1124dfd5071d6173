// Attention policy on vdpbf16ps, for a bfloat16 KV cache: q and the weights are rounded to bfloat16, the sums
// are float32. Include after avx512/simd.h.
#pragma once

#include "backend/cpu/isa/attention_fma.h"

namespace taco::cpu {
namespace {

inline __m512bh pair_of(const uint16_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(v));
}
inline __m512bh pairs_at(const uint16_t* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }

// q as bfloat16 [rows][padded_dim], scaled and zero padded.
inline void load_q_bf16(AttentionWork& w) {
  const Simd::F factor = Simd::set1(q_factor(*w.args));
  for (int row = 0; row < w.rows; ++row) {
    const float* in = q_row(w, row);
    uint16_t* out = static_cast<uint16_t*>(w.q) + static_cast<int64_t>(row) * w.padded_dim;
    int d = 0;
    for (; d + 16 <= w.dim; d += 16) {
      const __m256i h = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(Simd::mul(Simd::load(in + d), factor)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), h);
    }
    for (; d < w.padded_dim; ++d) out[d] = d < w.dim ? Simd::float_to_bf16(in[d] * q_factor(*w.args)) : 0;
  }
}

inline void bf16_weights_row(uint16_t* out, const float* scores, int columns, Simd::F shift, Simd::F& sum) {
  int c = 0;
  Simd::F sum2 = Simd::zero();
  for (; c + 32 <= columns; c += 32) {
    const Simd::F a = Simd::exp2_coarse(Simd::sub(Simd::load(scores + c), shift));
    const Simd::F b = Simd::exp2_coarse(Simd::sub(Simd::load(scores + c + 16), shift));
    sum = Simd::add(sum, a);
    sum2 = Simd::add(sum2, b);
    _mm512_storeu_si512(out + c, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
  }
  if (c < columns) {
    const Simd::F a = Simd::exp2_coarse(Simd::sub(Simd::load(scores + c), shift));
    sum = Simd::add(sum, a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)));
  }
  sum = Simd::add(sum, sum2);
}

template <int MR, int NV>
inline void score_block_bf16(const uint16_t* q, int64_t q_stride, const uint16_t* const* k,
                             int64_t block_size, int dim, float* scores) {
  __m512 acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_setzero_ps();
  for (int d = 0; d < dim; d += 2) {
    __m512bh kv[NV];
    for (int v = 0; v < NV; ++v) kv[v] = pairs_at(k[v] + d * block_size);
    for (int r = 0; r < MR; ++r) {
      const __m512bh qr = pair_of(q + r * q_stride + d);
      for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], kv[v], qr);
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) _mm512_storeu_ps(scores + r * kKvTile + v * 16, acc[r][v]);
}

template <int MR, int NV>
inline void value_block_bf16(const uint16_t* weights, const uint16_t* const* v_blocks, int block_size,
                             int64_t dim, int64_t offset, int count, const float* alpha, float* out,
                             int64_t out_stride) {
  __m512 acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v)
      acc[r][v] = _mm512_mul_ps(_mm512_loadu_ps(out + r * out_stride + v * 16), _mm512_set1_ps(alpha[r]));
  for (int begin = 0; begin < count; begin += block_size) {
    const uint16_t* p = *v_blocks++ + offset * 2;
    const int n = count - begin < block_size ? count - begin : block_size;
    const uint16_t* weight = weights + begin;
    int t = 0;
    for (; t + 2 <= n; t += 2, p += 2 * dim) {
      __m512bh vv[NV];
      for (int v = 0; v < NV; ++v) vv[v] = pairs_at(p + v * 32);
      for (int r = 0; r < MR; ++r) {
        const __m512bh wr = pair_of(weight + r * kKvTile + t);
        for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], vv[v], wr);
      }
    }
    if (t < n) {  // the pair's second token is not there: what stands in its place may be a NaN
      for (int v = 0; v < NV; ++v) {
        const __m512i first = _mm512_and_si512(_mm512_loadu_si512(p + v * 32), _mm512_set1_epi32(0xffff));
        for (int r = 0; r < MR; ++r)
          acc[r][v] = _mm512_dpbf16_ps(acc[r][v], reinterpret_cast<__m512bh>(first),
                                       pair_of(weight + r * kKvTile + t));
      }
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) _mm512_storeu_ps(out + r * out_stride + v * 16, acc[r][v]);
}

struct Bf16Policy {
  static constexpr int kMaxRows = 6, kMaxVectors = 4;
  static constexpr int kRows = 24, kColumns = 16;
  static constexpr bool kBf16Weights = true;

  explicit Bf16Policy(const AttentionWork&) {}
  void load_q(AttentionWork& w) { load_q_bf16(w); }
  static void weights_row(uint16_t* out, const float* scores, int columns, Simd::F shift, Simd::F& sum) {
    bf16_weights_row(out, scores, columns, shift, sum);
  }

  void load_tile(AttentionWork& w) {
    const int block_size = w.args->block_size;
    const int32_t* blocks = w.item->blocks + w.tile_begin / block_size;
    for (int b = 0; b * block_size < w.tile_valid; ++b) {
      const uint16_t* panel = reinterpret_cast<const uint16_t*>(k_panel(w, blocks[b]));
      const int first = b * block_size / 16;
      for (int i = 0; i < block_size / 16; ++i) k[first + i] = panel + i * 32;
      v[b] = reinterpret_cast<const uint16_t*>(v_panel(w, blocks[b]));
    }
  }

  void score(AttentionWork& w, int first, int count, int columns) {
    const uint16_t* q = static_cast<const uint16_t*>(w.q) + static_cast<int64_t>(first) * w.padded_dim;
    for_blocks<kMaxRows, kMaxVectors>(count, columns / 16, [&](int row, auto mr, int vec, auto nv) {
      score_block_bf16<decltype(mr)::value, decltype(nv)::value>(q + static_cast<int64_t>(row) * w.padded_dim,
                                                                 w.padded_dim, k + vec, w.args->block_size,
                                                                 w.dim, w.scores + row * kKvTile + vec * 16);
    });
  }

  void accumulate(AttentionWork& w, int first, int count, int tokens) {
    float* out = w.out + static_cast<int64_t>(first) * w.padded_dim;
    const uint16_t* weights = reinterpret_cast<const uint16_t*>(w.weights);
    for_blocks<kMaxRows, kMaxVectors>(count, w.dim / 16, [&](int row, auto mr, int vec, auto nv) {
      value_block_bf16<decltype(mr)::value, decltype(nv)::value>(
          weights + row * kKvTile, v, w.args->block_size, w.dim, vec * 16, tokens, w.alpha + row,
          out + static_cast<int64_t>(row) * w.padded_dim + vec * 16, w.padded_dim);
    });
  }

 private:
  const uint16_t* k[kKvTile / 16];  // each vector of tokens
  const uint16_t* v[kKvTile / 16];  // each block
};

inline void run_bf16_attention(const AttentionArgs& a, const AttentionItem& it, float* scratch) {
  if (a.kv_type == KvType::kBF16 && reads_in_place(a)) return run_attention<Bf16Policy>(a, it, scratch);
  run_fma_attention<6, 4>(a, it, scratch);
}

}  // namespace
}  // namespace taco::cpu
