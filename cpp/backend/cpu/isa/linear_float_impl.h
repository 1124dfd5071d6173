// Products of float rows with kF32, kF16 and kBF16 panels. Included inside the namespace of an instruction
// set, after it has defined
//   struct Vec                                    16 floats
//   Vec zero(), load(const float*), broadcast(float), fmadd(a, b, c) = a * b + c; void store(float*, Vec)
//   Vec load_half(const uint8_t*)                 16 halves
//   void load_bf16_pair(const uint8_t*, Vec* k0, Vec* k1)
//   constexpr int kMaxTileRows; constexpr int tile_panels(int rows)   what its registers hold
//
// Each output element is one chain of fmadd over ascending k, whatever the tile: the same bits for any number
// of rows.

static inline void prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

// Spreads the fetching of the next weights over the tiles of a product.
struct Prefetcher {
  const uint8_t* at[kMaxPanels];
  int64_t lines;  // at each, for one tile
};

template <PanelFormat F>
struct FloatPanel {
  static constexpr int kStep = F == PanelFormat::kBF16 ? 2 : 1;  // columns a step takes
  static constexpr int kStepBytes = F == PanelFormat::kF16 ? 32 : 64;
};

template <PanelFormat F, int R, int P>
static inline void float_step(const float* const* rows, const uint8_t* const* w, int64_t k,
                              Vec (&acc)[R][P]) {
  if constexpr (F == PanelFormat::kBF16) {
    Vec w0[P], w1[P];
    for (int p = 0; p < P; ++p) load_bf16_pair(w[p], &w0[p], &w1[p]);
    for (int r = 0; r < R; ++r) {
      Vec x0 = broadcast(rows[r][k]), x1 = broadcast(rows[r][k + 1]);
      for (int p = 0; p < P; ++p) acc[r][p] = fmadd(x0, w0[p], acc[r][p]);
      for (int p = 0; p < P; ++p) acc[r][p] = fmadd(x1, w1[p], acc[r][p]);
    }
  } else {
    Vec v[P];
    for (int p = 0; p < P; ++p) {
      v[p] = F == PanelFormat::kF32 ? load(reinterpret_cast<const float*>(w[p])) : load_half(w[p]);
    }
    for (int r = 0; r < R; ++r) {
      Vec x = broadcast(rows[r][k]);
      for (int p = 0; p < P; ++p) acc[r][p] = fmadd(x, v[p], acc[r][p]);
    }
  }
}

template <PanelFormat F, int R, int P>
static void float_tile(const ProductParams& t, int64_t row, int panel, const Prefetcher& pf) {
  using Panel = FloatPanel<F>;
  const float* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = static_cast<const float*>(t.in.data) + (row + r) * t.in.stride;
  const uint8_t* w[P];
  const uint8_t* next[P];
  for (int p = 0; p < P; ++p) {
    w[p] = t.panel[panel + p] + t.k_begin / Panel::kStep * Panel::kStepBytes;
    next[p] = pf.at[panel + p];
  }
  float* c = t.c + row * t.c_stride + panel * kPanelRows;
  Vec acc[R][P];
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      acc[r][p] = t.accumulate ? load(c + r * t.c_stride + p * kPanelRows) : zero();
    }
  }
  constexpr int kUnroll = 8;
  int64_t k = t.k_begin, steps = (t.k_end - t.k_begin) / Panel::kStep;
  int64_t chunks = steps / kUnroll;
  int64_t lines = chunks ? (pf.lines + chunks - 1) / chunks : 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t line = 0; line < lines; ++line) {
      for (int p = 0; p < P; ++p) prefetch(next[p] + line * 64);
    }
    for (int p = 0; p < P; ++p) next[p] += lines * 64;
    for (int u = 0; u < kUnroll; ++u) {
      float_step<F, R, P>(rows, w, k, acc);
      k += Panel::kStep;
      for (int p = 0; p < P; ++p) w[p] += Panel::kStepBytes;
    }
  }
  for (int64_t s = chunks * kUnroll; s < steps; ++s) {
    float_step<F, R, P>(rows, w, k, acc);
    k += Panel::kStep;
    for (int p = 0; p < P; ++p) w[p] += Panel::kStepBytes;
  }
  if (Panel::kStep == 2 && k < t.k_end) {  // the last column of an odd k
    for (int p = 0; p < P; ++p) {
      Vec w0, w1;
      load_bf16_pair(w[p], &w0, &w1);
      for (int r = 0; r < R; ++r) acc[r][p] = fmadd(broadcast(rows[r][k]), w0, acc[r][p]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) store(c + r * t.c_stride + p * kPanelRows, acc[r][p]);
  }
}

template <PanelFormat F, int R>
static void float_rows(const ProductParams& t, int64_t row, const Prefetcher& pf) {
  constexpr int P = tile_panels(R);
  int panel = 0;
  for (; panel + P <= t.panels; panel += P) float_tile<F, R, P>(t, row, panel, pf);
  if constexpr (P > 2) {
    if (panel + 2 <= t.panels) {
      float_tile<F, R, 2>(t, row, panel, pf);
      panel += 2;
    }
  }
  if constexpr (P > 1) {
    for (; panel < t.panels; ++panel) float_tile<F, R, 1>(t, row, panel, pf);
  }
}

// Splits the rows evenly over as few tiles as hold them, and the fetching over these.
template <int kTileRows, typename Rows>
static inline void for_row_tiles(const ProductParams& t, const Rows& run) {
  int64_t tiles = (t.rows + kTileRows - 1) / kTileRows;
  int64_t lines = (t.next_bytes / 64 + tiles - 1) / tiles;
  Prefetcher pf;
  pf.lines = lines;
  for (int p = 0; p < kMaxPanels; ++p) pf.at[p] = t.next[p];
  int64_t row = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    int rows = static_cast<int>(t.rows / tiles + (i < t.rows % tiles ? 1 : 0));
    run(row, rows, pf);
    row += rows;
    for (int p = 0; p < kMaxPanels; ++p) pf.at[p] += lines * 64;
  }
}

template <PanelFormat F>
static void float_product(const ProductParams& t) {
  for_row_tiles<kMaxTileRows>(t, [&t](int64_t row, int rows, const Prefetcher& pf) {
    switch (rows) {
      case 1:
        return float_rows<F, 1>(t, row, pf);
      case 2:
        return float_rows<F, 2>(t, row, pf);
      case 3:
        return float_rows<F, 3>(t, row, pf);
    }
    if constexpr (kMaxTileRows > 3) {
      switch (rows) {
        case 4:
          return float_rows<F, 4>(t, row, pf);
        case 5:
          return float_rows<F, 5>(t, row, pf);
        case 6:
          return float_rows<F, 6>(t, row, pf);
      }
    }
  });
}
