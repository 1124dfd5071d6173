#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/element.cuh"
#include "backend/cuda/moe/moe_kernels.h"

namespace taco::cuda {
namespace {

using namespace element;

// kPlainTile tokens of one expert by as many weight rows for a block of 16 x 16 threads.
template <typename X, typename W>
__global__ void __launch_bounds__(256) grouped_plain_kernel(GroupedParams p) {
  constexpr int kTile = kPlainTile;
  __shared__ float xs[kTile][kTile + 1], ws[kTile][kTile + 1];
  __shared__ int64_t rows[kTile];
  pdl_wait();
  pdl_launch();
  const int tile = static_cast<int>(blockIdx.y);
  if (tile >= p.plan.tile_starts[p.num_experts]) return;
  int expert = 0;
  while (p.plan.tile_starts[expert + 1] <= tile) ++expert;
  const int begin = p.plan.offsets[expert] + (tile - p.plan.tile_starts[expert]) * kTile;
  const int end = min(begin + kTile, p.plan.offsets[expert + 1]);
  if (threadIdx.x < kTile) {
    const int position = begin + static_cast<int>(threadIdx.x);
    rows[threadIdx.x] = position >= end ? -1 : p.by_row ? p.plan.pairs[position] / p.top_k : position;
  }
  __syncthreads();
  const Expert e = p.experts[expert];
  const X* x = static_cast<const X*>(p.x);
  const W* w = static_cast<const W*>(e.weight);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * kTile;
  float sum[2][2] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kTile) {
    for (int i = threadIdx.x; i < kTile * kTile; i += 256) {
      const int r = i / kTile, c = i % kTile;
      const bool in_k = k0 + c < p.k;
      xs[r][c] = in_k && rows[r] >= 0 ? as_float(x[rows[r] * p.x_stride + k0 + c]) : 0.0f;
      ws[r][c] = in_k && n0 + r < p.n ? as_float(w[(n0 + r) * p.k + k0 + c]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kTile; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) sum[i][j] += xs[ty + 16 * i][k] * ws[tx + 16 * j][k];
    }
    __syncthreads();
  }
  const float scale = e.scale != nullptr ? *e.scale : 1.0f;
  for (int i = 0; i < 2; ++i) {
    const int position = begin + ty + 16 * i;
    if (position >= end) continue;
    float* out = static_cast<float*>(p.out) + (p.by_row ? position : p.plan.pairs[position]) * p.n;
    for (int j = 0; j < 2; ++j) {
      const int64_t n = n0 + tx + 16 * j;
      if (n < p.n) out[n] = sum[i][j] * scale + (e.bias != nullptr ? e.bias[n] : 0.0f);
    }
  }
}

template <typename X, typename W>
void launch_plain(const GroupedParams& p, const Context& ctx) {
  const int64_t tiles = std::min<int64_t>(p.pairs, p.num_experts) + p.pairs / kPlainTile;
  TACO_CHECK(tiles <= 65535, tiles, " token tiles");
  const dim3 grid(static_cast<unsigned>((p.n + kPlainTile - 1) / kPlainTile), static_cast<unsigned>(tiles));
  launch(ctx, grouped_plain_kernel<X, W>, grid, dim3(256), 0, p);
}

}  // namespace

void run_grouped_plain(const GroupedParams& p, DType x_type, DType weight_type, const Context& ctx) {
  dispatch_float_type(x_type, [&](auto* x) {
    using X = std::remove_pointer_t<decltype(x)>;
    if (weight_type == DType::kF8E4M3) return launch_plain<X, __nv_fp8_e4m3>(p, ctx);
    dispatch_float_type(weight_type,
                        [&](auto* w) { launch_plain<X, std::remove_pointer_t<decltype(w)>>(p, ctx); });
  });
}

}  // namespace taco::cuda
