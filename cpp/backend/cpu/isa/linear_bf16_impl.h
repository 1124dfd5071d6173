// bfloat16 rows times bfloat16 panels with vdpbf16ps. Included inside the namespace of an instruction set.

static inline void prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

static void pack_bf16(const PackRowsParams& s) {
  for (int64_t r = s.first; r < s.last; ++r) {
    const float* in = s.in + r * s.in_stride;
    uint16_t* out = static_cast<uint16_t*>(s.data) + r * s.stride;
    for (int64_t k = 0; k < s.stride; k += 32) {
      int64_t left = s.k - k;
      __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1u;
      __m512 x0 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), in + k);
      __m512 x1 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), in + k + 16);
      _mm512_storeu_si512(out + k, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x1, x0)));
    }
  }
}

template <int R, int P>
static void bf16_tile(const ProductParams& t, int64_t row, int panel, const uint8_t* const* fetch,
                      int64_t fetch_lines) {
  const uint16_t* x = static_cast<const uint16_t*>(t.in.data) + row * t.in.stride + t.k_begin;
  const uint8_t* w[P];
  const uint8_t* next[P];
  for (int p = 0; p < P; ++p) {
    w[p] = t.panel[panel + p] + t.k_begin * (2 * kPanelRows);
    next[p] = fetch[panel + p];
  }
  float* c = t.c + row * t.c_stride + panel * kPanelRows;
  __m512 acc[R][P];
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      acc[r][p] = t.accumulate ? _mm512_loadu_ps(c + r * t.c_stride + p * kPanelRows) : _mm512_setzero_ps();
    }
  }
  int64_t chunks = (t.k_end - t.k_begin + 31) / 32;
  int64_t lines = (fetch_lines + chunks - 1) / chunks;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t line = 0; line < lines; ++line) {
      for (int p = 0; p < P; ++p) prefetch(next[p] + line * 64);
    }
    for (int p = 0; p < P; ++p) next[p] += lines * 64;
#pragma GCC unroll 4
    for (int pair = 0; pair < 16; ++pair) {
      __m512bh v[P];
      for (int p = 0; p < P; ++p) v[p] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w[p] + pair * 64));
      for (int r = 0; r < R; ++r) {
        int32_t two;
        __builtin_memcpy(&two, x + r * t.in.stride + pair * 2, 4);
        __m512bh b = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
        for (int p = 0; p < P; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], b, v[p]);
      }
    }
    x += 32;
    for (int p = 0; p < P; ++p) w[p] += 1024;
  }
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) _mm512_storeu_ps(c + r * t.c_stride + p * kPanelRows, acc[r][p]);
  }
}

template <int R>
static void bf16_rows(const ProductParams& t, int64_t row, const uint8_t* const* fetch, int64_t lines) {
  int panel = 0;
  for (; panel + 4 <= t.panels; panel += 4) bf16_tile<R, 4>(t, row, panel, fetch, lines);
  if (panel + 2 <= t.panels) {
    bf16_tile<R, 2>(t, row, panel, fetch, lines);
    panel += 2;
  }
  if (panel < t.panels) bf16_tile<R, 1>(t, row, panel, fetch, lines);
}

static void bf16_product(const ProductParams& t) {
  constexpr int kTileRows = 6;
  int64_t tiles = (t.rows + kTileRows - 1) / kTileRows, row = 0;
  int64_t lines = (t.next_bytes / 64 + tiles - 1) / tiles;
  const uint8_t* fetch[kMaxPanels];
  for (int p = 0; p < kMaxPanels; ++p) fetch[p] = t.next[p];
  for (int64_t i = 0; i < tiles; ++i) {
    int rows = static_cast<int>(t.rows / tiles + (i < t.rows % tiles ? 1 : 0));
    switch (rows) {
      case 1:
        bf16_rows<1>(t, row, fetch, lines);
        break;
      case 2:
        bf16_rows<2>(t, row, fetch, lines);
        break;
      case 3:
        bf16_rows<3>(t, row, fetch, lines);
        break;
      case 4:
        bf16_rows<4>(t, row, fetch, lines);
        break;
      case 5:
        bf16_rows<5>(t, row, fetch, lines);
        break;
      default:
        bf16_rows<6>(t, row, fetch, lines);
    }
    row += rows;
    for (int p = 0; p < kMaxPanels; ++p) fetch[p] += lines * 64;
  }
}
