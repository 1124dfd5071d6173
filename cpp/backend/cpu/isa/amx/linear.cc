// Matrix products on AMX tiles.
//
// A tile of weights is 16 pairs of columns of one kBF16 panel: 1 KiB as it stands. kQ8 and kQ4 panels are
// expanded to bfloat16 panels in the second-level cache first, once for a whole block of rows: scaling
// integer tiles after every 32 columns would take longer than the multiplication itself.
#include <immintrin.h>

#include "backend/cpu/isa/linear_kernels.h"

namespace taco::cpu::amx {
namespace {

constexpr int kLanes = 16;
#include "backend/cpu/isa/linear_store_impl.h"

inline void prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void begin_tiles() {
  TileConfig config;
  // GCC 12 declares that _tile_loadconfig reads 8 of these 64 bytes; without this the rest may never be
  // written.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void end_tiles() { _tile_release(); }

void pack_tiles(const PackRowsParams& s) {
  for (int64_t top = s.first; top < s.last; top += 16) {
    uint8_t* block = static_cast<uint8_t*>(s.data) + top * s.stride * 2;
    for (int64_t i = 0; i < 16; ++i) {
      int64_t row = top + i;
      const float* in = s.in + row * s.in_stride;
      uint8_t* out = block + i * 64;
      if (row >= s.rows) {
        for (int64_t k = 0; k < s.stride; k += 32, out += 1024)
          _mm512_storeu_si512(out, _mm512_setzero_si512());
        continue;
      }
      for (int64_t k = 0; k < s.stride; k += 32, out += 1024) {
        int64_t left = s.k - k;
        __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1u;
        __m512 x0 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), in + k);
        __m512 x1 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), in + k + 16);
        _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x1, x0)));
      }
    }
  }
}

// Where the next weights are fetched from while a product runs.
struct Fetch {
  const uint8_t* at[kMaxPanels];
  int64_t lines;  // at each, per step of 32 columns
  inline void step() {
    for (int64_t i = 0; i < lines; ++i) {
      for (int p = 0; p < kMaxPanels; ++p) prefetch(at[p] + i * 64);
    }
    for (int p = 0; p < kMaxPanels; ++p) at[p] += lines * 64;
  }
};

// 32 rows by 2 panels: tiles 0..3 are the sums, 4 and 5 the rows, 6 and 7 the weights.
void product_2x2(const uint8_t* a0, const uint8_t* a1, const uint8_t* b0, const uint8_t* b1, int64_t steps,
                 bool accumulate, float* c, int64_t c_stride, Fetch& fetch) {
  const int stride = static_cast<int>(c_stride * 4);
  float* low = c + 16 * c_stride;
  if (accumulate) {
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + 16, stride);
    _tile_loadd(2, low, stride);
    _tile_loadd(3, low + 16, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < steps; ++i) {
    _tile_loadd(6, b0 + i * 1024, 64);
    _tile_loadd(4, a0 + i * 1024, 64);
    _tile_loadd(7, b1 + i * 1024, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a1 + i * 1024, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    fetch.step();
  }
  _tile_stored(0, c, stride);
  _tile_stored(1, c + 16, stride);
  _tile_stored(2, low, stride);
  _tile_stored(3, low + 16, stride);
}

// 16 rows by up to 4 panels.
template <int P>
void product_1xp(const uint8_t* a, const uint8_t* const* b, int64_t steps, bool accumulate, float* c,
                 int64_t c_stride, Fetch& fetch) {
  const int stride = static_cast<int>(c_stride * 4);
  if (accumulate) {
    _tile_loadd(0, c, stride);
    if constexpr (P > 1) _tile_loadd(1, c + 16, stride);
    if constexpr (P > 2) _tile_loadd(2, c + 32, stride);
    if constexpr (P > 3) _tile_loadd(3, c + 48, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < steps; ++i) {
    _tile_loadd(4, a + i * 1024, 64);
    _tile_loadd(5, b[0] + i * 1024, 64);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (P > 1) {
      _tile_loadd(6, b[1] + i * 1024, 64);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (P > 2) {
      _tile_loadd(7, b[2] + i * 1024, 64);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (P > 3) {
      _tile_loadd(5, b[3] + i * 1024, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
    fetch.step();
  }
  _tile_stored(0, c, stride);
  if constexpr (P > 1) _tile_stored(1, c + 16, stride);
  if constexpr (P > 2) _tile_stored(2, c + 32, stride);
  if constexpr (P > 3) _tile_stored(3, c + 48, stride);
}

void tile_product(const ProductParams& t) {
  const int64_t steps = (t.k_end - t.k_begin + 31) / 32;
  const int64_t row_tile_bytes = t.in.stride * 32;  // 16 rows
  const uint8_t* in = static_cast<const uint8_t*>(t.in.data) + t.k_begin * 32;
  const uint8_t* panel[kMaxPanels];
  for (int p = 0; p < t.panels; ++p) panel[p] = t.panel[p] + (t.k_begin - t.panel_k) * 32;
  const int64_t row_tiles = (t.rows + 15) / 16;
  const int64_t calls = row_tiles / 2 * ((t.panels + 1) / 2) + row_tiles % 2;
  Fetch fetch;
  for (int p = 0; p < kMaxPanels; ++p) fetch.at[p] = t.next[p];
  fetch.lines = (t.next_bytes / 64 + calls * steps - 1) / (calls * steps);
  for (int p = 0; p < t.panels; p += 2) {
    for (int64_t r = 0; r + 2 <= row_tiles; r += 2) {
      const uint8_t* a = in + r * row_tile_bytes;
      float* c = t.c + r * 16 * t.c_stride + p * 16;
      if (p + 1 < t.panels) {
        product_2x2(a, a + row_tile_bytes, panel[p], panel[p + 1], steps, t.accumulate, c, t.c_stride, fetch);
      } else {
        product_1xp<1>(a, panel + p, steps, t.accumulate, c, t.c_stride, fetch);
        product_1xp<1>(a + row_tile_bytes, panel + p, steps, t.accumulate, c + 16 * t.c_stride, t.c_stride,
                       fetch);
      }
    }
  }
  if (row_tiles % 2) {
    const uint8_t* a = in + (row_tiles - 1) * row_tile_bytes;
    float* c = t.c + (row_tiles - 1) * 16 * t.c_stride;
    switch (t.panels) {
      case 1:
        return product_1xp<1>(a, panel, steps, t.accumulate, c, t.c_stride, fetch);
      case 2:
        return product_1xp<2>(a, panel, steps, t.accumulate, c, t.c_stride, fetch);
      case 3:
        return product_1xp<3>(a, panel, steps, t.accumulate, c, t.c_stride, fetch);
      default:
        return product_1xp<4>(a, panel, steps, t.accumulate, c, t.c_stride, fetch);
    }
  }
}

// A field of `kBits` bits at bit `at` of every lane as a float: put at the top of the mantissa of 2^kBits, it
// reads 2^kBits + field. (The caller's multiply-add takes the 2^kBits off again.)
template <int kBits, int kAt>
inline __m512 field(__m512i v) {
  constexpr int kTo = 23 - kBits;
  constexpr int kMask = ((1 << kBits) - 1) << kTo, kOne = (127 + kBits) << 23;
  __m512i shifted = kTo > kAt ? _mm512_slli_epi32(v, kTo > kAt ? kTo - kAt : 0)
                              : _mm512_srli_epi32(v, kTo > kAt ? 0 : kAt - kTo);
  // (shifted & mask) | one
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(shifted, _mm512_set1_epi32(kMask), _mm512_set1_epi32(kOne), 0xea));
}

// Two neighbouring columns as bfloat16 pairs, rounded to nearest.
inline void store_pair(uint8_t* out, __m512 k0, __m512 k1) {
  const __m512i half = _mm512_set1_epi32(0x8000), high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(k0), half), 16);
  __m512i top = _mm512_add_epi32(_mm512_castps_si512(k1), half);
  _mm512_store_si512(out, _mm512_ternarylogic_epi32(top, high, low, 0xea));
}

template <int kBits, int kAt>
inline void expand_pair(__m512i v, __m512 d, __m512 m, uint8_t* out) {
  store_pair(out, _mm512_fmadd_ps(d, field<kBits, kAt>(v), m),
             _mm512_fmadd_ps(d, field<kBits, kAt + 8>(v), m));
}

inline __m512 load_half16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}

void expand_q4(const ExpandParams& e) {
  for (int64_t g = e.k_begin / 32, i = 0; g < (e.k_end + 31) / 32; ++g, ++i) {
    for (int p = 0; p < e.panels; ++p) {
      const uint8_t* block = e.panel[p] + g * kQ4BlockBytes;
      uint8_t* out = e.out + p * e.out_panel_bytes + i * 1024;
      if (i * kQ4BlockBytes < e.next_bytes) {
        for (int line = 0; line < 5; ++line) prefetch(e.next[p] + i * kQ4BlockBytes + line * 64);
      }
      __m512 d = load_half16(block + 256);
      __m512 m = _mm512_fnmadd_ps(d, _mm512_set1_ps(16.0f), load_half16(block + 288));
      for (int pair = 0; pair < 4; ++pair, out += 256) {
        __m512i v = _mm512_load_si512(block + pair * 64);
        expand_pair<4, 0>(v, d, m, out);
        expand_pair<4, 16>(v, d, m, out + 64);
        expand_pair<4, 4>(v, d, m, out + 128);
        expand_pair<4, 20>(v, d, m, out + 192);
      }
    }
  }
}

void expand_q8(const ExpandParams& e) {
  for (int64_t g = e.k_begin / 32, i = 0; g < (e.k_end + 31) / 32; ++g, ++i) {
    for (int p = 0; p < e.panels; ++p) {
      const uint8_t* block = e.panel[p] + g / 2 * kQ8BlockBytes;
      const uint8_t* bytes = block + g % 2 * 512;
      uint8_t* out = e.out + p * e.out_panel_bytes + i * 1024;
      if (i * (kQ8BlockBytes / 2) < e.next_bytes) {
        for (int line = 0; line < 9; ++line) prefetch(e.next[p] + i * (kQ8BlockBytes / 2) + line * 64);
      }
      __m512 d = load_half16(block + 1024 + g % 2 * 32);
      __m512 m = _mm512_mul_ps(d, _mm512_set1_ps(-384.0f));  // 256 of `field` and 128 of kQ8
      for (int quad = 0; quad < 8; ++quad, out += 128) {
        __m512i v = _mm512_load_si512(bytes + quad * 64);
        expand_pair<8, 0>(v, d, m, out);
        expand_pair<8, 16>(v, d, m, out + 64);
      }
    }
  }
}

constexpr LinearKernels kBf16 = {
    RowFormat::kBF16Tiles, pack_tiles, nullptr, tile_product, store_rows, 480, 1 << 20, 96,
    begin_tiles,           end_tiles,
};
constexpr LinearKernels kQ8 = {
    RowFormat::kBF16Tiles, pack_tiles, expand_q8, tile_product, store_rows, 480, 1 << 20, 96,
    begin_tiles,           end_tiles,
};
constexpr LinearKernels kQ4 = {
    RowFormat::kBF16Tiles, pack_tiles, expand_q4, tile_product, store_rows, 480, 1 << 20, 96,
    begin_tiles,           end_tiles,
};

}  // namespace

const LinearKernels* linear_kernels(PanelFormat format) {
  switch (format) {
    case PanelFormat::kBF16:
      return &kBf16;
    case PanelFormat::kQ8:
      return &kQ8;
    case PanelFormat::kQ4:
      return &kQ4;
    default:
      return nullptr;
  }
}

}  // namespace taco::cpu::amx
