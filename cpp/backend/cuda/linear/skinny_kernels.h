// The kernels behind skinny.h, on plain pointers: what the dispatch, the tests and the benchmark share.
#pragma once

#include "backend/cuda/context.h"
#include "backend/ops.h"

namespace taco::cuda {

// One product y[M, N] = x[M, K] W[N, K]^T.
struct SkinnyProduct {
  const void* w = nullptr;  // [n, k] row-major, dense, of `dtype`
  int64_t n = 0, k = 0;
  DType dtype = DType::kBF16;      // of w and x: kBF16, kF16 or (x by rows quantised, see x_scales) kF8E4M3
  const float* w_scale = nullptr;  // FP8 only: one number on the device
  const float* bias = nullptr;     // [n] or null
  const void* x = nullptr;         // [m, k], stride x_stride elements
  int64_t m = 0, x_stride = 0;
  const float* x_scales = nullptr;  // FP8 x only: [m]
  void* out = nullptr;
  int64_t out_stride = 0;
  DType out_dtype = DType::kBF16;  // kBF16, kF16 or kF32
  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kNone;
  float out_scale = 1.0f;
  Gating gating;
};

// The product of rows [first, first + count) alone.
inline SkinnyProduct skinny_rows(const SkinnyProduct& p, int64_t first, int64_t count) {
  SkinnyProduct part = p;
  part.m = count;
  part.x = static_cast<const char*>(p.x) + first * p.x_stride * static_cast<int64_t>(dtype_size(p.dtype));
  part.out = static_cast<char*>(p.out) + first * p.out_stride * static_cast<int64_t>(dtype_size(p.out_dtype));
  if (p.x_scales != nullptr) part.x_scales = p.x_scales + first;
  return part;
}

// How the Hopper kernel cuts its work. The result of a row depends on k_boxes (it places the cuts along K),
// never on smem_kb nor on m.
struct SkinnyConfig {
  int row_tiles = 1;  // weight rows of a tile / 64
  int k_boxes = 4;    // 128-byte pieces of each row in a pipeline stage: 2 or 4
  // Of a block: more than half of an SM's, so that no SM gets two blocks of one launch while another has
  // none, and much, since all of it is filled before the kernel in front has ended.
  int smem_kb = 210;
};
SkinnyConfig skinny_config(const SkinnyProduct& p, const Context& ctx);

// Whether the Hopper kernel can read this product (alignment for its bulk copies).
bool skinny_sm90_can(const SkinnyProduct& p);
// Rows beyond 128 run as several launches.
void run_skinny_sm90(const SkinnyProduct& p, const SkinnyConfig& config, Context& ctx);

// mma.sync, capability 8.0 and newer: FP8 operands are widened in registers. Rows beyond 32 run as several
// launches.
bool skinny_mma_can(const SkinnyProduct& p);
void run_skinny_mma(const SkinnyProduct& p, Context& ctx);

// Scratch for the partial sums: allocated once, so that graphs never meet its growth.
struct SkinnyScratch {
  float* partials;
  int* semaphores;
};
SkinnyScratch skinny_scratch(Context& ctx);
inline constexpr int64_t kSkinnyMaxTiles = 64 * 1024;  // semaphores: 64-row tiles, N up to 4 M

}  // namespace taco::cuda
