// Matrix products with AVX2, FMA and F16C.
#include <immintrin.h>

#include "backend/cpu/isa/linear_kernels.h"

namespace taco::cpu::avx2 {
namespace {

struct Vec {
  __m256 low, high;
};

inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
inline Vec broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec fmadd(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vec load_half(const uint8_t* p) {
  const __m128i* h = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
inline void load_bf16_pair(const uint8_t* p, Vec* k0, Vec* k1) {
  __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  *k0 = {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
  *k1 = {_mm256_castsi256_ps(_mm256_and_si256(low, mask)), _mm256_castsi256_ps(_mm256_and_si256(high, mask))};
}
constexpr int kMaxTileRows = 6;
constexpr int tile_panels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

#include "backend/cpu/isa/linear_float_impl.h"

constexpr int kLanes = 8;
#include "backend/cpu/isa/linear_store_impl.h"

inline float max_of(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

inline int32_t sum_of(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

void pack_int8(const PackRowsParams& s) {
  int64_t groups = s.stride / kQuantGroup;
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (int64_t r = s.first; r < s.last; ++r) {
    const float* in = s.in + r * s.in_stride;
    int8_t* q = static_cast<int8_t*>(s.data) + r * s.stride;
    for (int64_t g = 0; g < groups; ++g) {
      int64_t begin = g * kQuantGroup;
      float tail[kQuantGroup];
      const float* x = in + begin;
      if (begin + kQuantGroup > s.k) {
        for (int i = 0; i < kQuantGroup; ++i) tail[i] = begin + i < s.k ? x[i] : 0.0f;
        x = tail;
      }
      __m256 v[4], most = _mm256_setzero_ps();
      for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        most = _mm256_max_ps(most, _mm256_and_ps(v[i], magnitude));
      }
      float top = max_of(most);
      __m256 inverse = _mm256_set1_ps(top > 0 ? 127.0f / top : 0.0f);
      __m256i n[4], sum = _mm256_setzero_si256();
      for (int i = 0; i < 4; ++i) {
        n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        sum = _mm256_add_epi32(sum, n[i]);
      }
      // Packing works within 128-bit lanes; the permutation puts the columns back in order.
      __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
      bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + begin), bytes);
      int32_t total = sum_of(sum);
      s.scale[r * groups + g] = top / 127.0f;
      s.offset[r * groups + g] = -128 * total;
      s.scaled_sum[r * groups + g] = top / 127.0f * static_cast<float>(total);
    }
  }
}

inline __m256 load_half8(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m256i quad_of(const int8_t* x) {
  int32_t v;
  __builtin_memcpy(&v, x, 4);
  return _mm256_set1_epi32(v);
}

// Sums of 4 products u8 * s8 per 32-bit lane. vpmaddubsw saturates at 16 bits: `u` must be at most 128, or
// its neighbours small, which both callers see to.
inline __m256i dot_quads(__m256i sum, __m256i u, __m256i s) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}

// R rows by one panel.
template <bool kNibbles, int R>
void int8_tile(const ProductParams& t, int64_t row, int panel, const Prefetcher& pf) {
  int64_t groups = t.in.stride / kQuantGroup;
  float* c = t.c + row * t.c_stride + panel * kPanelRows;
  const int8_t* x = static_cast<const int8_t*>(t.in.data) + row * t.in.stride;
  __m256 acc[R][2];
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) {
      acc[r][h] = t.accumulate ? _mm256_loadu_ps(c + r * t.c_stride + 8 * h) : _mm256_setzero_ps();
    }
  }
  int64_t begin = t.k_begin / kQuantGroup, end = (t.k_end + kQuantGroup - 1) / kQuantGroup;
  int64_t lines = (pf.lines + end - begin - 1) / (end - begin);
  const uint8_t* next = pf.at[panel];
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t line = 0; line < lines; ++line, next += 64) prefetch(next);
    const uint8_t* block =
        kNibbles ? t.panel[panel] + g * kQ4BlockBytes : t.panel[panel] + g / 2 * kQ8BlockBytes;
    const uint8_t* bytes = kNibbles ? block : block + g % 2 * 512;
    const uint8_t* scales = kNibbles ? block + 256 : block + 1024 + g % 2 * 32;
    __m256i dot[R][2];
    for (int r = 0; r < R; ++r) dot[r][0] = dot[r][1] = _mm256_setzero_si256();
    if constexpr (kNibbles) {
      const __m256i low = _mm256_set1_epi8(15);
      for (int pair = 0; pair < 4; ++pair) {
        for (int h = 0; h < 2; ++h) {
          __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + pair * 64 + 32 * h));
          __m256i w0 = _mm256_and_si256(v, low), w1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
          for (int r = 0; r < R; ++r) {
            const int8_t* q = x + r * t.in.stride + g * kQuantGroup + pair * 8;
            dot[r][h] = dot_quads(dot[r][h], w0, quad_of(q));
            dot[r][h] = dot_quads(dot[r][h], w1, quad_of(q + 4));
          }
        }
      }
    } else {
      for (int quad = 0; quad < 8; ++quad) {
        for (int h = 0; h < 2; ++h) {
          __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + quad * 64 + 32 * h));
          __m256i w = _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(0x80)));  // signed again
          __m256i size = _mm256_abs_epi8(w);  // at most 128, as unsigned
          for (int r = 0; r < R; ++r) {
            const int8_t* q = x + r * t.in.stride + g * kQuantGroup + quad * 4;
            dot[r][h] = dot_quads(dot[r][h], size, _mm256_sign_epi8(quad_of(q), w));
          }
        }
      }
    }
    for (int h = 0; h < 2; ++h) {
      __m256 d = load_half8(scales + 16 * h);
      for (int r = 0; r < R; ++r) {
        int64_t at = (row + r) * groups + g;
        __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(t.in.scale[at]));
        acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][h]), scale, acc[r][h]);
        if constexpr (kNibbles) {
          acc[r][h] = _mm256_fmadd_ps(load_half8(scales + 32 + 16 * h), _mm256_set1_ps(t.in.scaled_sum[at]),
                                      acc[r][h]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(c + r * t.c_stride + 8 * h, acc[r][h]);
  }
}

template <bool kNibbles>
void int8_product(const ProductParams& t) {
  for_row_tiles<3>(t, [&t](int64_t row, int rows, const Prefetcher& pf) {
    for (int panel = 0; panel < t.panels; ++panel) {
      switch (rows) {
        case 1:
          int8_tile<kNibbles, 1>(t, row, panel, pf);
          break;
        case 2:
          int8_tile<kNibbles, 2>(t, row, panel, pf);
          break;
        default:
          int8_tile<kNibbles, 3>(t, row, panel, pf);
      }
    }
  });
}

constexpr LinearKernels kernels_of(RowFormat rows, void (*pack)(const PackRowsParams&),
                                   void (*product)(const ProductParams&)) {
  return {rows, pack, nullptr, product, store_rows, 288, 512 << 10, 48, nullptr, nullptr};
}

constexpr LinearKernels kKernels[] = {
    kernels_of(RowFormat::kF32, nullptr, float_product<PanelFormat::kF32>),
    kernels_of(RowFormat::kF32, nullptr, float_product<PanelFormat::kF16>),
    kernels_of(RowFormat::kF32, nullptr, float_product<PanelFormat::kBF16>),
    kernels_of(RowFormat::kInt8, pack_int8, int8_product<false>),
    kernels_of(RowFormat::kInt8, pack_int8, int8_product<true>),
};

}  // namespace

const LinearKernels* linear_kernels(PanelFormat format) { return &kKernels[static_cast<int>(format)]; }

}  // namespace taco::cpu::avx2
