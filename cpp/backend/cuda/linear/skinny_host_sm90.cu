// The Hopper kernel's host side: tensor maps, and which instance runs.
#include <algorithm>
#include <bit>

#include "backend/cuda/linear/skinny_sm90.cuh"
#include "backend/cuda/tensor_map.h"

namespace taco::cuda {
SkinnyScratch skinny_scratch(Context& ctx) {
  // Two slots a block, a block an SM, up to 128 x 128 sums each.
  const size_t partials = static_cast<size_t>(ctx.num_sms) * 2 * 128 * 128 * sizeof(float);
  return {static_cast<float*>(ctx.gemm_partials.reserve(partials, ctx.stream)),
          static_cast<int*>(ctx.gemm_semaphores.reserve_zeroed(kSkinnyMaxTiles * sizeof(int), ctx.stream))};
}

bool skinny_sm90_can(const SkinnyProduct& p) {
  const int64_t size = static_cast<int64_t>(dtype_size(p.dtype));
  auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return p.k * size % 16 == 0 && p.x_stride * size % 16 == 0 && aligned(p.w) && aligned(p.x) &&
         (p.n + 63) / 64 + 1 <= kSkinnyMaxTiles;
}

void run_skinny_sm90(const SkinnyProduct& p, const SkinnyConfig& config, Context& ctx) {
  const CUtensorMap w_map = swizzled_map(p.w, p.dtype, p.n, p.k, p.k, config.row_tiles * 64);
  for (int64_t row = 0; row < p.m; row += 128) {
    const SkinnyProduct part = skinny_rows(p, row, std::min<int64_t>(128, p.m - row));
    const int tokens = std::clamp(static_cast<int>(std::bit_ceil(static_cast<uint64_t>(part.m))), 8, 128);
    const CUtensorMap x_map = swizzled_map(part.x, p.dtype, part.m, p.k, p.x_stride, tokens);
    switch (p.dtype) {
      case DType::kBF16:
        skinny::launch_tokens<__nv_bfloat16>(tokens, part, config, w_map, x_map, ctx);
        break;
      case DType::kF16:
        skinny::launch_tokens<__half>(tokens, part, config, w_map, x_map, ctx);
        break;
      default:
        skinny::launch_tokens<__nv_fp8_e4m3>(tokens, part, config, w_map, x_map, ctx);
    }
  }
}

}  // namespace taco::cuda
