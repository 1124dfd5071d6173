// Device work of a mixture of experts. Rows of the step are paired with their experts: pair i is (row i /
// top_k, slot i % top_k). Sorted by expert, pairs stand at `positions`; products run over token tiles of one
// expert each.
#pragma once

#include "backend/cuda/context.h"

namespace taco::cuda {

constexpr int kMaxExperts = 512;

struct Expert {
  const void* weight;  // [n, k]
  const float* bias;   // [n] or null
  const float* scale;  // FP8 only
};

struct MoePlan {
  int32_t* experts;      // [pairs] by pair
  float* weights;        // [pairs] by pair
  int32_t* pairs;        // [pairs] by position
  int32_t* offsets;      // [num_experts + 1] positions
  int32_t* tile_starts;  // [num_experts + 1] token tiles
  int32_t* places;  // [pairs] by pair, or null: where its row stands if each expert's begin at a whole tile
};

// Of the rows from row0 on.
void run_routing(const MoeParams& p, int64_t row0, int64_t rows, int tile, const MoePlan& plan,
                 const Context& ctx);

struct GroupedParams {
  MoePlan plan;
  const Expert* experts;  // [num_experts] on the device
  int num_experts, top_k;
  int64_t pairs;  // all of them: an upper bound of what any expert has
  const void* x;
  int64_t x_stride;
  bool by_row;  // x has one row for each row of the step, and out one for each position; else x has one for
                // each position, and out one for each pair
  int64_t n, k;
  Activation activation;
  Gating gating;
  bool gated;  // [gate; up] interleaved by eight: out is n / 2 wide
  int splits;  // of K. More than one: !by_row, no activation, and out is float32 [splits, pairs, n]
  void* out;   // dense
};

// Token tiles that run_grouped has kernels for: 8, 16, 32, 64, 128.
int grouped_tile(int64_t rows, int top_k, int num_experts);
// float16 or bfloat16 activations; weights of that type or FP8. n and k are multiples of 8 (k of 16 for FP8),
// n of 16 where gated.
void run_grouped(const GroupedParams& p, DType dtype, bool fp8, int tile, const Context& ctx);
void run_grouped_bf16(const GroupedParams& p, bool fp8, int tile, const Context& ctx);
void run_grouped_f16(const GroupedParams& p, bool fp8, int tile, const Context& ctx);

// Any shape and type on the plain cores; out is float32 [., n] without activation or gating. Tokens in tiles
// of 32.
constexpr int kPlainTile = 32;
void run_grouped_plain(const GroupedParams& p, DType x_type, DType weight_type, const Context& ctx);

// Row places[i] of out = row i / top_k of x. Rows of 16 bits, dim a multiple of 8.
void run_gather_pairs(const MoePlan& plan, const void* x, int64_t pairs, int64_t dim, int top_k, void* out,
                      const Context& ctx);

// out[row] = sum of weights * y[pair] over the row's pairs in the order of their experts, then the shared
// row. y: [splits, pairs, dim], summed over the splits first. row0: of the step, in the shared rows and out.
void run_combine(const MoeParams& p, const MoePlan& plan, const void* y, DType y_type, int splits,
                 int64_t row0, int64_t rows, const Context& ctx);

}  // namespace taco::cuda
