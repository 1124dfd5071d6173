// Paged flash attention over the `Simd` of the instruction set that includes this.
//
// run_attention walks the context in tiles and keeps the online softmax; a Policy scores a tile and adds up
// its values. Nothing that a row's result is made from depends on the other rows of the item: scores are
// summed over the dims in order, weights over the tokens in order, and columns that a row does not see add
// exactly 0.
#pragma once

#include "backend/cpu/isa/vector_kernels.h"

namespace taco::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kMinusInf = -__builtin_inff();

// One item's scratch. Scores are kept in units of log 2, so that the softmax is a power of 2.
struct AttentionWork {
  const AttentionArgs* args;
  const AttentionItem* item;
  int group, rows, dim;
  int padded_dim;                // dim rounded up to 32: the stride of q, out and total
  void* q;                       // [max_rows][padded_dim], scaled, in the policy's type, zero padded
  float *out, *total;            // [max_rows][padded_dim]: of this split, of the splits before it
  float *max, *sum;              // [max_rows], [max_rows][16]: of this split; sum by lane
  float *total_max, *total_sum;  // [max_rows]
  float* scores;                 // [kAttentionRowBlock][kKvTile]
  float* weights;                // as scores, in the policy's type; may be the same memory
  float* alpha;                  // [kAttentionRowBlock]
  void *k_tile, *v_tile;         // [kKvTile * padded_dim] floats each

  // The tile at hand.
  int tile_begin;  // position of its first token
  int tile_valid;  // tokens of it that any row sees
};

inline AttentionWork attention_work(const AttentionArgs& a, const AttentionItem& it, float* scratch) {
  AttentionWork w;
  w.args = &a;
  w.item = &it;
  w.group = a.num_heads / a.num_kv_heads;
  w.rows = it.tokens * w.group;
  w.dim = a.head_dim;
  w.padded_dim = (a.head_dim + 31) / 32 * 32;
  auto take = [&](int64_t floats) {
    float* p = scratch;
    scratch += (floats + 15) / 16 * 16;
    return p;
  };
  const int64_t matrix = static_cast<int64_t>(a.max_rows) * w.padded_dim;
  w.q = take(matrix);
  w.out = take(matrix);
  w.total = take(matrix);
  w.max = take(a.max_rows);
  w.total_max = take(a.max_rows);
  w.total_sum = take(a.max_rows);
  w.sum = take(static_cast<int64_t>(a.max_rows) * 16);
  w.scores = take(kAttentionRowBlock * kKvTile);
  w.weights = take(kAttentionRowBlock * kKvTile);
  w.alpha = take(kAttentionRowBlock);
  w.k_tile = take(static_cast<int64_t>(kKvTile) * w.padded_dim);
  w.v_tile = take(static_cast<int64_t>(kKvTile) * w.padded_dim);
  return w;
}

inline const char* k_panel(const AttentionWork& w, int64_t block) {
  const AttentionArgs& a = *w.args;
  const int64_t panel = static_cast<int64_t>(a.block_size) * a.head_dim * (a.kv_type == KvType::kF32 ? 4 : 2);
  return static_cast<const char*>(a.cache) + (block * 2 * a.num_kv_heads + w.item->kv_head) * panel;
}
inline const char* v_panel(const AttentionWork& w, int64_t block) {
  const AttentionArgs& a = *w.args;
  const int64_t panel = static_cast<int64_t>(a.block_size) * a.head_dim * (a.kv_type == KvType::kF32 ? 4 : 2);
  return static_cast<const char*>(a.cache) +
         (block * 2 * a.num_kv_heads + a.num_kv_heads + w.item->kv_head) * panel;
}

inline float q_factor(const AttentionArgs& a) { return a.softcap > 0.0f ? a.scale : a.scale * kLog2E; }

inline const float* q_row(const AttentionWork& w, int row) {
  const int token = row / w.group, head = w.item->kv_head * w.group + row % w.group;
  return w.args->q + (w.item->row + token) * w.args->q_stride + static_cast<int64_t>(head) * w.dim;
}

// Softcap and ALiBi on the scores [0, columns) of a row that stands at `position` and has its K in `slot`.
inline void adjust_scores(const AttentionWork& w, float* s, int columns, int head, int position, int slot) {
  const AttentionArgs& a = *w.args;
  if (a.softcap > 0.0f) {  // tanh(x) = 1 - 2 / (e^2x + 1)
    const Simd::F in = Simd::set1(2.0f * kLog2E / a.softcap), cap = Simd::set1(a.softcap * kLog2E);
    const Simd::F one = Simd::set1(1.0f), two = Simd::set1(2.0f);
    for (int c = 0; c < columns; c += Simd::W) {
      Simd::F e = Simd::exp2(Simd::mul(Simd::load(s + c), in));
      Simd::store(s + c, Simd::mul(cap, Simd::sub(one, Simd::div(two, Simd::add(e, one)))));
    }
  }
  if (a.alibi_slopes) {
    const float slope = a.alibi_slopes[head];
    const int nodes = a.tree_mask ? w.item->root - w.tile_begin : columns;  // the first column of a draft
    for (int c = 0; c < columns && c < nodes; ++c)
      s[c] += slope * static_cast<float>(w.tile_begin + c - position) * kLog2E;
    for (int c = nodes < 0 ? 0 : nodes; c < columns && w.tile_begin + c <= slot; ++c) {
      const int at = a.positions[w.item->first_row + c - nodes];
      s[c] += slope * static_cast<float>(at - position) * kLog2E;
    }
  }
}

// Of the drafts before a row's own slot, those that are not on its path (or outside its window) are not seen.
inline void hide_drafts(const AttentionWork& w, float* s, int64_t row, int slot) {
  const AttentionArgs& a = *w.args;
  const uint64_t path = a.tree_mask[row];
  for (int at = w.item->root > w.tile_begin ? w.item->root : w.tile_begin; at <= slot; ++at) {
    if (at - w.tile_begin >= kKvTile) break;
    const int node = at - w.item->root;
    bool seen = path >> node & 1;
    if (a.window > 0) seen = seen && a.positions[w.item->first_row + node] > a.positions[row] - a.window;
    if (!seen) s[at - w.tile_begin] = kMinusInf;
  }
}

// Hides the keys [lo, hi) of a row's scores that its head's pattern leaves out.
inline void hide_keys(const AttentionWork& w, float* s, int lo, int hi, int head, int position) {
  const KeyPattern& p = w.args->pattern;
  int drafts = w.args->tree_mask ? w.item->root - w.tile_begin : hi;  // the first column of a draft
  drafts = drafts < lo ? lo : drafts;
  int c = lo;
  while (c < hi && c < drafts) {
    const int key = w.tile_begin + c, end = (key / p.block + 1) * p.block - w.tile_begin;
    const bool seen = sees_key(p, head, position, key);
    for (; c < hi && c < drafts && c < end; ++c) {
      if (!seen) s[c] = kMinusInf;
    }
  }
  for (; c < hi; ++c) {
    const int at = w.args->positions[w.item->first_row + w.tile_begin + c - w.item->root];
    if (!sees_key(p, head, position, at)) s[c] = kMinusInf;
  }
}

// Whether any of the rows [first, first + count) sees a key among the first `columns` of the tile: what
// nobody sees would change nothing and is left out.
inline bool rows_see_tile(const AttentionWork& w, int first, int count, int columns) {
  const AttentionArgs& a = *w.args;
  const KeyPattern& p = a.pattern;
  const int end = w.tile_begin + columns;
  if (p.block == 0 || (a.tree_mask && end > w.item->root)) return true;
  for (int row = first; row < first + count; ++row) {
    const int token = row / w.group, head = w.item->kv_head * w.group + row % w.group;
    const int position = a.tree_mask ? a.positions[w.item->row + token] : w.item->position + token;
    for (int key = w.tile_begin; key < end && key <= position; key = (key / p.block + 1) * p.block)
      if (sees_key(p, head, position, key)) return true;
  }
  return false;
}

// From scores to weights for rows [first, first + count); updates max and sum and leaves in alpha what the
// rows' sums so far are to be multiplied by. `columns`: a multiple of the policy's kColumns.
template <typename Policy>
inline void softmax_rows(AttentionWork& w, int first, int count, int columns) {
  const AttentionArgs& a = *w.args;
  constexpr int W = Simd::W;
  const bool adjust = a.softcap > 0.0f || a.alibi_slopes;
  float shift[kAttentionRowBlock];
  int token = first / w.group, in_group = first % w.group;
  for (int r = 0; r < count; ++r, ++in_group) {
    if (in_group == w.group) {
      in_group = 0;
      ++token;
    }
    const int row = first + r, slot = w.item->position + token;
    const int position = a.tree_mask ? a.positions[w.item->row + token] : slot;
    float* s = w.scores + r * kKvTile;
    if (adjust) adjust_scores(w, s, columns, w.item->kv_head * w.group + in_group, position, slot);
    int hi = slot + 1 - w.tile_begin, lo = a.window > 0 ? position + 1 - w.tile_begin - a.window : 0;
    hi = hi < 0 ? 0 : hi > columns ? columns : hi;
    lo = lo < 0 ? 0 : lo;
    if (lo > 0 || hi < columns) {
      for (int c = 0; c < columns; c += W) {
        if (c < lo || c + W > hi) Simd::store(s + c, Simd::keep_range(Simd::load(s + c), lo - c, hi - c));
      }
    }
    if (a.tree_mask) hide_drafts(w, s, w.item->row + token, slot);
    if (a.pattern.block > 0) hide_keys(w, s, lo, hi, w.item->kv_head * w.group + in_group, position);
    Simd::F m0 = Simd::load(s), m1 = m0;
    for (int c = W; c + 2 * W <= columns; c += 2 * W) {
      m0 = Simd::max(m0, Simd::load(s + c));
      m1 = Simd::max(m1, Simd::load(s + c + W));
    }
    if ((columns / W) % 2 == 0) m0 = Simd::max(m0, Simd::load(s + columns - W));
    const float old = w.max[row], found = Simd::reduce_max(Simd::max(m0, m1));
    const float now = old > found ? old : found;
    w.max[row] = now;
    shift[r] = now == kMinusInf ? 0.0f : now;
    w.alpha[r] = old - shift[r];
  }
  for (int r = 0; r < count; r += W) Simd::store(w.alpha + r, Simd::exp2(Simd::load(w.alpha + r)));
  for (int r = 0; r < count; ++r) {
    const float* s = w.scores + r * kKvTile;
    const Simd::F shifts = Simd::set1(shift[r]);
    Simd::F sum = Simd::zero();
    if constexpr (Policy::kBf16Weights) {
      Policy::weights_row(reinterpret_cast<uint16_t*>(w.weights) + r * kKvTile, s, columns, shifts, sum);
    } else {
      for (int c = 0; c < columns; c += W) {
        Simd::F p = Simd::exp2(Simd::sub(Simd::load(s + c), shifts));
        sum = Simd::add(sum, p);
        Simd::store(w.weights + r * kKvTile + c, p);
      }
    }
    float* lanes = w.sum + (first + r) * 16;
    Simd::store(lanes, Simd::fma(Simd::load(lanes), Simd::set1(w.alpha[r]), sum));
  }
}

// total += part, both (sums, maxima, denominators) of `rows` rows.
inline void merge_rows(AttentionWork& w, const float* part, int64_t part_stride, const float* part_max,
                       const float* part_sum) {
  constexpr int W = Simd::W;
  float mine[W], theirs[W];
  for (int first = 0; first < w.rows; first += W) {
    const int count = w.rows - first < W ? w.rows - first : W;
    for (int r = 0; r < W; ++r) {
      const float m = r < count ? w.total_max[first + r] : 0.0f, n = r < count ? part_max[first + r] : 0.0f;
      const float now = m > n ? m : n, shift = now == kMinusInf ? 0.0f : now;
      mine[r] = m - shift;
      theirs[r] = n - shift;
      if (r < count) w.total_max[first + r] = now;
    }
    Simd::store(mine, Simd::exp2(Simd::load(mine)));
    Simd::store(theirs, Simd::exp2(Simd::load(theirs)));
    for (int r = 0; r < count; ++r) {
      const int row = first + r;
      w.total_sum[row] = w.total_sum[row] * mine[r] + part_sum[row] * theirs[r];
      float* total = w.total + static_cast<int64_t>(row) * w.padded_dim;
      const float* add = part + row * part_stride;
      const Simd::F f = Simd::set1(mine[r]), g = Simd::set1(theirs[r]);
      int i = 0;
      for (; i + W <= w.dim; i += W)
        Simd::store(total + i, Simd::fma(Simd::load(add + i), g, Simd::mul(Simd::load(total + i), f)));
      for (; i < w.dim; ++i) total[i] = total[i] * mine[r] + add[i] * theirs[r];
    }
  }
}

// Divides by the denominator, the sink's share in it included, and writes the rows.
inline void write_rows(const AttentionWork& w) {
  const AttentionArgs& a = *w.args;
  for (int row = 0; row < w.rows; ++row) {
    const int token = row / w.group, head = w.item->kv_head * w.group + row % w.group;
    const float* total = w.total + static_cast<int64_t>(row) * w.padded_dim;
    float* out = a.out + (w.item->row + token) * a.out_stride + static_cast<int64_t>(head) * w.dim;
    float sum = w.total_sum[row], factor = 1.0f;
    if (a.sinks) {
      const float sink = a.sinks[head] * kLog2E, m = w.total_max[row], now = m > sink ? m : sink;
      float e[Simd::W] = {m - now, sink - now};
      Simd::store(e, Simd::exp2(Simd::load(e)));
      sum = sum * e[0] + e[1];
      factor = e[0];
    }
    factor = factor / sum;
    const Simd::F f = Simd::set1(factor);
    int i = 0;
    for (; i + Simd::W <= w.dim; i += Simd::W) Simd::store(out + i, Simd::mul(Simd::load(total + i), f));
    for (; i < w.dim; ++i) out[i] = total[i] * factor;
  }
}

inline void clear(float* p, int64_t n) { __builtin_memset(p, 0, n * sizeof(float)); }
inline void fill(float* p, int64_t n, float v) {
  for (int64_t i = 0; i < n; ++i) p[i] = v;
}

template <typename Policy>
void run_attention(const AttentionArgs& a, const AttentionItem& it, float* scratch) {
  AttentionWork w = attention_work(a, it, scratch);
  Policy policy(w);
  policy.load_q(w);
  const int end = it.position + it.tokens;  // what the last row sees
  int begin = 0;                            // from what the first row sees
  if (a.window > 0 && it.lowest - a.window + 1 > 0) begin = it.lowest - a.window + 1;
  const int64_t matrix = static_cast<int64_t>(w.rows) * w.padded_dim;

  bool first_split = true;
  for (int split = it.split_begin; split < it.split_end; ++split) {
    const int split_begin = split * kKvSplit;
    const int split_end = end < split_begin + kKvSplit ? end : split_begin + kKvSplit;
    if (split_end <= begin || split_end <= split_begin) continue;
    clear(w.out, matrix);
    fill(w.max, w.rows, kMinusInf);
    clear(w.sum, static_cast<int64_t>(w.rows) * 16);
    int tile = begin / kKvTile * kKvTile;
    for (tile = tile > split_begin ? tile : split_begin; tile < split_end; tile += kKvTile) {
      w.tile_begin = tile;
      w.tile_valid = end - tile < kKvTile ? end - tile : kKvTile;
      if (!rows_see_tile(w, 0, w.rows, w.tile_valid)) continue;
      policy.load_tile(w);
      for (int first = 0; first < w.rows; first += Policy::kRows) {
        const int count = w.rows - first < Policy::kRows ? w.rows - first : Policy::kRows;
        const int first_position = a.tree_mask ? it.lowest : it.position + first / w.group;
        int hi = it.position + (first + count - 1) / w.group + 1 - tile;
        hi = hi < w.tile_valid ? hi : w.tile_valid;
        if (hi <= 0) continue;
        if (!rows_see_tile(w, first, count, hi)) continue;
        if (a.window > 0 && first_position - a.window + 1 - tile >= hi) continue;
        const int columns = (hi + Policy::kColumns - 1) / Policy::kColumns * Policy::kColumns;
        policy.score(w, first, count, columns);
        softmax_rows<Policy>(w, first, count, columns);
        policy.accumulate(w, first, count, hi);
      }
    }
    float sums[kAttentionRowBlock];
    for (int first = 0; first < w.rows; first += kAttentionRowBlock) {
      const int count = w.rows - first < kAttentionRowBlock ? w.rows - first : kAttentionRowBlock;
      for (int r = 0; r < count; ++r) sums[r] = Simd::reduce_add(Simd::load(w.sum + (first + r) * 16));
      for (int r = 0; r < count; ++r) w.sum[first + r] = sums[r];  // behind what is still to be read
    }
    if (it.partial) {
      for (int row = 0; row < w.rows; ++row)
        __builtin_memcpy(it.partial + static_cast<int64_t>(row) * w.dim,
                         w.out + static_cast<int64_t>(row) * w.padded_dim, w.dim * sizeof(float));
      float* statistics = it.partial + static_cast<int64_t>(w.rows) * w.dim;
      __builtin_memcpy(statistics, w.max, w.rows * sizeof(float));
      __builtin_memcpy(statistics + w.rows, w.sum, w.rows * sizeof(float));
    } else if (first_split) {  // what merging with nothing gives
      float* swap = w.total;
      w.total = w.out;
      w.out = swap;
      __builtin_memcpy(w.total_max, w.max, w.rows * sizeof(float));
      __builtin_memcpy(w.total_sum, w.sum, w.rows * sizeof(float));
    } else {
      merge_rows(w, w.out, w.padded_dim, w.max, w.sum);
    }
    first_split = false;
  }
  if (!it.partial) write_rows(w);
}

void merge_attention(const AttentionArgs& a, const AttentionItem& it, const float* partials, int num_partials,
                     float* scratch) {
  AttentionWork w = attention_work(a, it, scratch);
  clear(w.total, static_cast<int64_t>(w.rows) * w.padded_dim);
  fill(w.total_max, w.rows, kMinusInf);
  clear(w.total_sum, w.rows);
  for (int p = 0; p < num_partials; ++p) {
    const float* part = partials + p * attention_partial_floats(w.rows, w.dim);
    const float* statistics = part + static_cast<int64_t>(w.rows) * w.dim;
    merge_rows(w, part, w.dim, statistics, statistics + w.rows);
  }
  write_rows(w);
}

}  // namespace
}  // namespace taco::cpu
