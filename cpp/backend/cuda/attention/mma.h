// The attention kernels of all devices: decode and tiles by mma.sync, and a plain float32 one.
#pragma once

#include "backend/cuda/attention/plan.h"
#include "backend/cuda/context.h"

namespace taco::cuda {

// What the host gives to the kernels.
struct PagedParams {
  const void* q;
  void* out;
  const void* cache;
  const int32_t* block_tables;
  const int32_t* positions;   // with tree_mask only
  const uint64_t* tree_mask;  // or null
  const float* alibi_slopes;
  const float* sinks;
  KeyPattern pattern;        // the plain kernel's
  const WorkHeader* header;  // null: num_items items, each a chunk
  const WorkItem* items;
  float* part_out;      // [part_rows][head_dim], not divided by the sum
  float* part_max_sum;  // [part_rows][2]: the maximum of the scores (times log2 e), the sum of their powers
  int* semaphores;
  int64_t q_stride, out_stride, max_blocks;
  int64_t value_offset;  // elements from a block's K to its V
  int num_items, num_heads, num_kv_heads, group, head_dim, block_size, block_shift, window;
  // 2^32 / group and 2^32 / num_kv_heads rounded up, or 0 for 1: quotients by a product (divide()).
  uint32_t group_inverse, kv_heads_inverse;
  int stages;         // of the decode kernel's ring
  bool early;         // the keys of earlier steps are there before pdl_wait(): in a graph
  bool capped;        // softcap
  float score_scale;  // score * log2(e) = s * score_scale, or score_cap * tanh(s * score_scale)
  float score_cap;
  float value_scale;        // of the result: what V's stored numbers are multiplied by
  bool q_half, e5m2;        // fp16 queries and results, else bf16; the kind of FP8
  DType q_dtype, kv_dtype;  // the plain kernel reads any
};

// Packed query rows of the decode kernel's tile where every sequence has one new row: 8 or 16.
int decode_rows(DType kv_dtype, int head_dim, int group);
// ... and where some have a few (draft verification); 0: the kernel has no such tile.
int few_rows(int head_dim);

// Bytes of the decode kernel's shared memory beside its ring, for head dims padded to `dim`.
constexpr size_t decode_fixed_smem(int dim, int rows) {
  const bool many = rows > 16;  // then queries and rules stand there too
  const size_t part = static_cast<size_t>(dim) / (many ? 4 : 2);
  return sizeof(WorkItem) * kMaxChunkItems + 2 * sizeof(float) * 4 * rows + 16 +
         sizeof(float) * 4 * rows * (part + 4) + (many ? rows * (dim * 2 + 24) : 0);
}

// Grid sizes and shared memory of the decode kernel: the same for all steps, so that graphs can hold them.
struct DecodeLaunch {
  int stages, blocks_per_sm;
  size_t smem;
};

// Head dims that are multiples of 16 up to 256, 16-bit rows, a cache in bf16, fp16 or FP8 in blocks of a
// power of two of at least eight tokens, everything aligned.
bool takes_mma(const AttentionParams& p);
DecodeLaunch decode_launch(const Context& ctx, DType kv_dtype, int head_dim, int rows);
void launch_decode(const Context& ctx, DType kv_dtype, int rows, int grid, const PagedParams& p);
// rows: packed query rows of a tile, 64 or 128 (head dims up to 128).
void launch_tile(const Context& ctx, DType kv_dtype, int rows, int grid, const PagedParams& p);
void launch_plain(const Context& ctx, int grid, const PagedParams& p);

// One translation unit each.
void launch_decode_bf16(const Context& ctx, int rows, int grid, size_t smem, const PagedParams& p);
void launch_decode_f16(const Context& ctx, int rows, int grid, size_t smem, const PagedParams& p);
void launch_decode_fp8(const Context& ctx, int rows, int grid, size_t smem, const PagedParams& p);
void launch_tile_bf16(const Context& ctx, int rows, int grid, const PagedParams& p);
void launch_tile_f16(const Context& ctx, int rows, int grid, const PagedParams& p);
void launch_tile_fp8(const Context& ctx, int rows, int grid, const PagedParams& p);

}  // namespace taco::cuda
