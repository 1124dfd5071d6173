// Attention policy on AMX tiles, for a bfloat16 KV cache. Include after avx512/simd.h.
//
// 32 rows by 32 columns at a time: tiles 0..3 are the sums, 4 and 5 rows of q (or of the weights), 6 and 7
// columns of K (or of V). A panel of K is made of tiles already (kv_layout.h); V's are copied together, since
// a tile takes 32 tokens.
#pragma once

#include "backend/cpu/isa/attention_bf16.h"

namespace taco::cpu {
namespace {

// The tile intrinsics do not tell the compiler which memory they read.
inline void memory_barrier() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct AmxPolicy {
  static constexpr int kRows = 32, kColumns = 32;
  static constexpr bool kBf16Weights = true;

  // Tiles are as high as there are rows: a decode step's products then take a few cycles instead of 16.
  explicit AmxPolicy(const AttentionWork& w) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) {
      config.column_bytes[t] = 64;
      config.rows[t] = static_cast<uint8_t>(t < 6 && w.rows < 16 ? w.rows : 16);
    }
    memory_barrier();
    _tile_loadconfig(&config);
    in_place = w.args->block_size % 16 == 0 && w.dim % 32 == 0;
    k_stride = in_place ? w.args->block_size * 4 : 64;
  }

  void load_q(AttentionWork& w) {
    load_q_bf16(w);
    // The rows that fill up the last tiles.
    const int64_t used = static_cast<int64_t>(w.rows) * w.padded_dim;
    const int64_t all = (w.rows + 31) / 32 * 32 * static_cast<int64_t>(w.padded_dim);
    __builtin_memset(static_cast<uint16_t*>(w.q) + used, 0, (all - used) * 2);
  }
  static void weights_row(uint16_t* out, const float* scores, int columns, Simd::F shift, Simd::F& sum) {
    bf16_weights_row(out, scores, columns, shift, sum);
  }

  void load_tile(AttentionWork& w) {
    const int block_size = w.args->block_size, dim = w.dim;
    const int32_t* blocks = w.item->blocks + w.tile_begin / block_size;
    const int num_blocks = (w.tile_valid + block_size - 1) / block_size;
    const int64_t panel_bytes = static_cast<int64_t>(block_size) * dim * 2;

    // K: where each group of 16 tokens starts. One more stands after the last, for columns go in twos.
    const int groups = (w.tile_valid + 31) / 32 * 2;
    if (in_place) {
      for (int g = 0; g < groups; ++g) {
        const int token = g * 16;
        k[g] = token < w.tile_valid
                   ? k_panel(w, blocks[token / block_size]) + token % block_size * 4
                   : static_cast<const char*>(w.k_tile);  // anything: these columns are masked
      }
    } else {
      char* tile = static_cast<char*>(w.k_tile);
      const int64_t group_bytes = static_cast<int64_t>(w.padded_dim) * 32;
      for (int g = 0; g < groups; ++g) k[g] = tile + g * group_bytes;
      __builtin_memset(tile, 0, groups * group_bytes);
      const int run = block_size < 16 ? block_size : 16;  // tokens that stand together in both
      for (int t = 0; t < w.tile_valid; t += run) {
        const char* in = k_panel(w, blocks[t / block_size]) + t % block_size * 4;
        char* out = tile + t / 16 * group_bytes + t % 16 * 4;
        for (int d = 0; d < dim / 2; ++d) __builtin_memcpy(out + d * 64, in + d * block_size * 4, run * 4);
      }
    }

    // V as [kKvTile / 2][dim][2]; what is beyond the last token is 0, whatever stands in the cache.
    char* out = static_cast<char*>(w.v_tile);
    for (int b = 0; b < num_blocks; ++b)
      copy_lines(out + b * panel_bytes, v_panel(w, blocks[b]), panel_bytes);
    const int64_t row_bytes = static_cast<int64_t>(dim) * 4;  // of a pair of tokens
    if (w.tile_valid % 2 != 0) {
      uint32_t* last = reinterpret_cast<uint32_t*>(out + w.tile_valid / 2 * row_bytes);
      for (int d = 0; d < dim; ++d) last[d] &= 0xffffu;
    }
    const int pairs = (w.tile_valid + 1) / 2, needed = (w.tile_valid + 31) / 32 * 16;
    if (pairs < needed) __builtin_memset(out + pairs * row_bytes, 0, (needed - pairs) * row_bytes);
  }

  void score(AttentionWork& w, int first, int count, int columns) {
    const int64_t q_stride = static_cast<int64_t>(w.padded_dim) * 2;
    const char* q = static_cast<const char*>(w.q) + first * q_stride;
    constexpr int64_t kScoreStride = kKvTile * sizeof(float);
    const int steps = w.padded_dim / 32;
    memory_barrier();
    for (int c = 0; c < columns; c += 32) {
      const char *k0 = k[c / 16], *k1 = k[c / 16 + 1];
      float* out = w.scores + c;
      _tile_zero(0);
      _tile_zero(1);
      if (count > 16) {
        _tile_zero(2);
        _tile_zero(3);
        for (int s = 0; s < steps; ++s) {
          _tile_loadd(4, q + s * 64, q_stride);
          _tile_loadd(6, k0 + s * 16 * k_stride, k_stride);
          _tile_loadd(7, k1 + s * 16 * k_stride, k_stride);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, q + 16 * q_stride + s * 64, q_stride);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, out + 16 * kKvTile, kScoreStride);
        _tile_stored(3, out + 16 * kKvTile + 16, kScoreStride);
      } else {
        for (int s = 0; s < steps; ++s) {
          _tile_loadd(4, q + s * 64, q_stride);
          _tile_loadd(6, k0 + s * 16 * k_stride, k_stride);
          _tile_loadd(7, k1 + s * 16 * k_stride, k_stride);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
        }
      }
      _tile_stored(0, out, kScoreStride);
      _tile_stored(1, out + 16, kScoreStride);
    }
    memory_barrier();
  }

  void accumulate(AttentionWork& w, int first, int count, int tokens) {
    const int64_t out_stride = static_cast<int64_t>(w.padded_dim) * 4,
                  v_stride = static_cast<int64_t>(w.dim) * 4;
    constexpr int64_t kWeightStride = kKvTile * 2;
    float* rows = w.out + static_cast<int64_t>(first) * w.padded_dim;
    for (int r = 0; r < count; ++r) {
      if (w.alpha[r] == 1.0f) continue;
      float* row = rows + static_cast<int64_t>(r) * w.padded_dim;
      const Simd::F alpha = Simd::set1(w.alpha[r]);
      for (int d = 0; d < w.dim; d += 16) Simd::store(row + d, Simd::mul(Simd::load(row + d), alpha));
    }
    const char* weights = reinterpret_cast<const char*>(w.weights);
    const char* v = static_cast<const char*>(w.v_tile);
    const int steps = (tokens + 31) / 32, lower = 16 * w.padded_dim;
    memory_barrier();
    int d = 0;
    for (; d + 32 <= w.dim; d += 32) {
      float* out = rows + d;
      _tile_loadd(0, out, out_stride);
      _tile_loadd(1, out + 16, out_stride);
      if (count > 16) {
        _tile_loadd(2, out + lower, out_stride);
        _tile_loadd(3, out + lower + 16, out_stride);
        for (int s = 0; s < steps; ++s) {
          _tile_loadd(4, weights + s * 64, kWeightStride);
          _tile_loadd(6, v + s * 16 * v_stride + d * 4, v_stride);
          _tile_loadd(7, v + s * 16 * v_stride + d * 4 + 64, v_stride);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, weights + 16 * kWeightStride + s * 64, kWeightStride);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, out + lower, out_stride);
        _tile_stored(3, out + lower + 16, out_stride);
      } else {
        for (int s = 0; s < steps; ++s) {
          _tile_loadd(4, weights + s * 64, kWeightStride);
          _tile_loadd(6, v + s * 16 * v_stride + d * 4, v_stride);
          _tile_loadd(7, v + s * 16 * v_stride + d * 4 + 64, v_stride);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
        }
      }
      _tile_stored(0, out, out_stride);
      _tile_stored(1, out + 16, out_stride);
    }
    if (d < w.dim) {  // the last 16 dims of heads of 80 or 112
      float* out = rows + d;
      _tile_loadd(0, out, out_stride);
      if (count > 16) _tile_loadd(2, out + lower, out_stride);
      for (int s = 0; s < steps; ++s) {
        _tile_loadd(4, weights + s * 64, kWeightStride);
        _tile_loadd(6, v + s * 16 * v_stride + d * 4, v_stride);
        _tile_dpbf16ps(0, 4, 6);
        if (count > 16) {
          _tile_loadd(5, weights + 16 * kWeightStride + s * 64, kWeightStride);
          _tile_dpbf16ps(2, 5, 6);
        }
      }
      _tile_stored(0, out, out_stride);
      if (count > 16) _tile_stored(2, out + lower, out_stride);
    }
    memory_barrier();
  }

 private:
  static void copy_lines(char* out, const char* in, int64_t bytes) {  // a multiple of 64
    for (int64_t i = 0; i < bytes; i += 64) _mm512_storeu_si512(out + i, _mm512_loadu_si512(in + i));
  }

  const char* k[kKvTile / 16];
  bool in_place;
  int64_t k_stride;
};

inline void run_amx_attention(const AttentionArgs& a, const AttentionItem& it, float* scratch) {
  const bool fits = a.kv_type == KvType::kBF16 && a.head_dim % 16 == 0 &&
                    (a.block_size == 8 || a.block_size == 16 || a.block_size == 32);
  if (fits) return run_attention<AmxPolicy>(a, it, scratch);
  run_fma_attention<6, 4>(a, it, scratch);
}

inline void release_tiles() { _tile_release(); }

}  // namespace
}  // namespace taco::cpu
