// Matrix products with AVX-512 F, BW, DQ, VL and VNNI.
#include <immintrin.h>

#include "backend/cpu/isa/linear_kernels.h"

namespace taco::cpu::avx512 {
namespace {

using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec fmadd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec load_half(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void load_bf16_pair(const uint8_t* p, Vec* k0, Vec* k1) {
  __m512i v = _mm512_loadu_si512(p);
  *k0 = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
  *k1 = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
constexpr int kMaxTileRows = 6;
constexpr int tile_panels(int) { return 4; }

#include "backend/cpu/isa/linear_float_impl.h"

constexpr int kLanes = 16;
#include "backend/cpu/isa/linear_store_impl.h"

void pack_int8(const PackRowsParams& s) {
  int64_t groups = s.stride / kQuantGroup;
  for (int64_t r = s.first; r < s.last; ++r) {
    const float* in = s.in + r * s.in_stride;
    int8_t* q = static_cast<int8_t*>(s.data) + r * s.stride;
    for (int64_t g = 0; g < groups; ++g) {
      int64_t begin = g * kQuantGroup, left = s.k - begin;
      __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1u;
      __m512 x0 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), in + begin);
      __m512 x1 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), in + begin + 16);
      float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x0), _mm512_abs_ps(x1)));
      __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
      __m512i n0 = _mm512_cvtps_epi32(_mm512_mul_ps(x0, inverse));
      __m512i n1 = _mm512_cvtps_epi32(_mm512_mul_ps(x1, inverse));
      int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(n0, n1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + begin), _mm512_cvtsepi32_epi8(n0));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + begin + 16), _mm512_cvtsepi32_epi8(n1));
      s.scale[r * groups + g] = top / 127.0f;
      s.offset[r * groups + g] = -128 * sum;
      s.scaled_sum[r * groups + g] = top / 127.0f * static_cast<float>(sum);
    }
  }
}

inline __m512 load_half16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m512i quad_of(const int8_t* x) {
  int32_t v;
  __builtin_memcpy(&v, x, 4);
  return _mm512_set1_epi32(v);
}

// R rows by P panels: an integer sum per group of 32 columns, scaled into the float sum. kQ8's bytes are 128
// too high; the integer sum starts at -128 times the row's sum to make up for it.
template <bool kNibbles, int R, int P>
void int8_tile(const ProductParams& t, int64_t row, int panel, const Prefetcher& pf) {
  int64_t groups = t.in.stride / kQuantGroup;
  float* c = t.c + row * t.c_stride + panel * kPanelRows;
  int64_t begin = t.k_begin / kQuantGroup, end = (t.k_end + kQuantGroup - 1) / kQuantGroup;
  const int8_t* x = static_cast<const int8_t*>(t.in.data) + row * t.in.stride + begin * kQuantGroup;
  const float* x_scale = t.in.scale + row * groups;
  const float* x_sum = t.in.scaled_sum + row * groups;
  const int32_t* x_offset = t.in.offset + row * groups;
  const uint8_t* next[P];
  for (int p = 0; p < P; ++p) next[p] = pf.at[panel + p];
  int64_t lines = (pf.lines + end - begin - 1) / (end - begin);
  __m512 acc[R][P];
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      acc[r][p] = t.accumulate ? _mm512_loadu_ps(c + r * t.c_stride + p * kPanelRows) : _mm512_setzero_ps();
    }
  }
  for (int64_t g = begin; g < end; ++g, x += kQuantGroup) {
    for (int64_t line = 0; line < lines; ++line) {
      for (int p = 0; p < P; ++p) prefetch(next[p] + line * 64);
    }
    for (int p = 0; p < P; ++p) next[p] += lines * 64;
    const uint8_t* bytes[P];
    const uint8_t* scales[P];
    for (int p = 0; p < P; ++p) {
      const uint8_t* base = t.panel[panel + p];
      bytes[p] = kNibbles ? base + g * kQ4BlockBytes : base + g / 2 * kQ8BlockBytes + g % 2 * 512;
      scales[p] = kNibbles ? bytes[p] + 256 : base + g / 2 * kQ8BlockBytes + 1024 + g % 2 * 32;
    }
    __m512i dot[R][P];
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) {
        dot[r][p] = kNibbles ? _mm512_setzero_si512() : _mm512_set1_epi32(x_offset[r * groups + g]);
      }
    }
    if constexpr (kNibbles) {
      const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; ++pair) {
        __m512i w0[P], w1[P];
        for (int p = 0; p < P; ++p) {
          __m512i v = _mm512_loadu_si512(bytes[p] + pair * 64);
          w0[p] = _mm512_and_si512(v, low);
          w1[p] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
        }
        for (int r = 0; r < R; ++r) {
          __m512i q0 = quad_of(x + r * t.in.stride + pair * 8),
                  q1 = quad_of(x + r * t.in.stride + pair * 8 + 4);
          for (int p = 0; p < P; ++p) dot[r][p] = _mm512_dpbusd_epi32(dot[r][p], w0[p], q0);
          for (int p = 0; p < P; ++p) dot[r][p] = _mm512_dpbusd_epi32(dot[r][p], w1[p], q1);
        }
      }
    } else {
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; ++quad) {
        __m512i w[P];
        for (int p = 0; p < P; ++p) w[p] = _mm512_loadu_si512(bytes[p] + quad * 64);
        for (int r = 0; r < R; ++r) {
          __m512i q = quad_of(x + r * t.in.stride + quad * 4);
          for (int p = 0; p < P; ++p) dot[r][p] = _mm512_dpbusd_epi32(dot[r][p], w[p], q);
        }
      }
    }
    __m512 d[P], m[P];
    for (int p = 0; p < P; ++p) {
      d[p] = load_half16(scales[p]);
      if constexpr (kNibbles) m[p] = load_half16(scales[p] + 32);
    }
    for (int r = 0; r < R; ++r) {
      __m512 scale = _mm512_set1_ps(x_scale[r * groups + g]);
      for (int p = 0; p < P; ++p) {
        acc[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][p]), _mm512_mul_ps(d[p], scale), acc[r][p]);
      }
      if constexpr (kNibbles) {
        __m512 sum = _mm512_set1_ps(x_sum[r * groups + g]);
        for (int p = 0; p < P; ++p) acc[r][p] = _mm512_fmadd_ps(m[p], sum, acc[r][p]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) _mm512_storeu_ps(c + r * t.c_stride + p * kPanelRows, acc[r][p]);
  }
}

template <bool kNibbles, int R, int P>
void int8_rows(const ProductParams& t, int64_t row, const Prefetcher& pf) {
  int panel = 0;
  for (; panel + P <= t.panels; panel += P) int8_tile<kNibbles, R, P>(t, row, panel, pf);
  if constexpr (P > 2) {
    if (panel + 2 <= t.panels) {
      int8_tile<kNibbles, R, 2>(t, row, panel, pf);
      panel += 2;
    }
  }
  for (; panel < t.panels; ++panel) int8_tile<kNibbles, R, 1>(t, row, panel, pf);
}

template <bool kNibbles>
void int8_product(const ProductParams& t) {
  for_row_tiles<6>(t, [&t](int64_t row, int rows, const Prefetcher& pf) {
    switch (rows) {
      case 1:
        return int8_rows<kNibbles, 1, 4>(t, row, pf);
      case 2:
        return int8_rows<kNibbles, 2, 4>(t, row, pf);
      case 3:
        return int8_rows<kNibbles, 3, 2>(t, row, pf);
      case 4:
        return int8_rows<kNibbles, 4, 2>(t, row, pf);
      case 5:
        return int8_rows<kNibbles, 5, 2>(t, row, pf);
      default:
        return int8_rows<kNibbles, 6, 2>(t, row, pf);
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

}  // namespace taco::cpu::avx512
