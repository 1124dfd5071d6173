// The contract between ops/*.cc and the kernels of each instruction set that are not matrix products: plain
// data only, because sources compiled for an instruction set include it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/isa/kv_layout.h"
#include "backend/key_pattern.h"

namespace taco::cpu {

// NormParams of ops.h over rows [first, last).
struct NormArgs {
  bool rms;  // else LayerNorm
  const float* in;
  float* residual;
  float residual_scale;
  const float *weight, *bias;
  float weight_offset, eps;
  int64_t dim, in_stride, out_stride;
  float* out;
};

struct RopeArgs {
  float* qkv;
  int64_t stride;
  int num_heads, num_kv_heads, head_dim;
  const int32_t* positions;
  const float* cos_sin;
  int rotary_dim;
  bool interleaved;
  const int64_t* slots;
  const float *q_norm, *k_norm;
  float qk_norm_eps;
  const float* q_scale;  // [positions] or null
  void* cache;
  KvType kv_type;
  int block_size;
};

// Keys are read in tiles of kKvTile tokens, aligned at position 0. The softmax restarts every kKvSplit tokens
// and the splits are merged in order, whether one thread or several worked on them: a row's result depends on
// its own context alone, bit for bit.
inline constexpr int kKvTile = 128;
inline constexpr int kKvSplit = 512;
inline constexpr int kAttentionRowBlock = 32;  // rows (token, head) that are scored at a time, at most

struct AttentionArgs {
  const float* q;
  int64_t q_stride;
  int num_heads, num_kv_heads, head_dim;
  const void* cache;
  KvType kv_type;
  int block_size;
  float scale, softcap;
  int window;
  KeyPattern pattern;
  const float *alibi_slopes, *sinks;
  float* out;
  int64_t out_stride;
  int max_rows;               // most rows of an item, a multiple of kAttentionRowBlock
  const uint64_t* tree_mask;  // [rows] or null
  const int32_t* positions;   // [rows], with a tree mask only
};

// The rows of `tokens` neighbouring tokens of one sequence in the query heads of one KV head, against the
// splits [split_begin, split_end) of its context.
struct AttentionItem {
  int64_t row;  // of the first token, in q and out
  int tokens;
  int position;  // of the first token's slot
  int lowest;    // the least position at which one of the tokens stands
  int kv_head;
  int split_begin, split_end;
  const int32_t* blocks;  // the sequence's block table
  // With a tree mask: where the sequence's rows begin, and the slot of its root. Rows and slots are in the
  // same order, so that a row sees no slot behind its own, here as without a tree.
  int64_t first_row;
  int root;
  float* partial;  // null: write `out`; else the state after these splits (attention_partial_floats)
};

// Floats of one item's partial state: per row [head_dim] sums, then all maxima, then all denominators.
static inline int64_t attention_partial_floats(int64_t rows, int64_t head_dim) {
  return rows * (head_dim + 2);
}

// Floats of scratch that a thread needs: q, two accumulators, statistics, scores, weights, one tile of K and
// V.
static inline int64_t attention_scratch_floats(int64_t max_rows, int64_t head_dim) {
  int64_t dim = (head_dim + 31) / 32 * 32;
  return max_rows * (3 * dim + 20) + 2 * kAttentionRowBlock * (kKvTile + 16) + 2 * kKvTile * dim + 1024;
}

struct VectorKernels {
  void (*norm)(const NormArgs&, int64_t first, int64_t last);
  void (*rope_and_cache)(const RopeArgs&, int64_t first, int64_t last);
  void (*scale_add)(float* out, const float* in, float factor, int64_t n);  // out += factor * in

  void (*exp2)(float* x, int64_t n);  // x = 2^x: what the softmax is made of
  // x = softcap * tanh(x * scale / softcap), or x * scale where softcap is 0.
  void (*scale_logits)(float* x, int64_t n, float scale, float softcap);

  // `scratch`: attention_scratch_floats, 64-byte aligned.
  void (*attention)(const AttentionArgs&, const AttentionItem&, float* scratch);
  // Merges the partial states of one item's splits, in order, and writes `out`.
  void (*attention_merge)(const AttentionArgs&, const AttentionItem&, const float* partials, int num_partials,
                          float* scratch);
  // Called by each thread around its calls of `attention`, or null.
  void (*attention_begin)();
  void (*attention_end)();
};

// The kernels of active_isa().
const VectorKernels& vector_kernels();

// For tests and benchmarks: these from now on; null: those of active_isa() again.
void force_vector_kernels(const VectorKernels* kernels);

namespace generic {
extern const VectorKernels kVectorKernels;
}
namespace avx2 {
extern const VectorKernels kVectorKernels;
}
namespace avx512 {
extern const VectorKernels kVectorKernels;
}
namespace avx512_bf16 {
extern const VectorKernels kVectorKernels;
}
namespace amx {
extern const VectorKernels kVectorKernels;
}

}  // namespace taco::cpu
