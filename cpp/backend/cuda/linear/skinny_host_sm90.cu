// The Hopper kernel's host side: tensor maps, and which instance runs.
#include <algorithm>
#include <bit>

#include "backend/cuda/linear/skinny_sm90.cuh"

namespace taco::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function by way of the runtime: libcuda is not linked.
Encode encode_function() {
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    TACO_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                     cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess || found == nullptr)
      fail(ErrorCode::kUnavailable,
           "the NVIDIA driver lacks cuTensorMapEncodeTiled: it must be of CUDA 12 or newer");
    return reinterpret_cast<Encode>(found);
  }();
  return encode;
}

// Row-major [rows, cols] in boxes of 128 bytes by box_rows, swizzled; zeros beyond the borders.
CUtensorMap make_map(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride,
                     int box_rows) {
  const int64_t size = static_cast<int64_t>(dtype_size(dtype));
  const CUtensorMapDataType type = dtype == DType::kBF16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                          : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  CUtensorMap map;
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride * size)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(128 / size), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encode_function()(
      &map, type, 2, const_cast<void*>(data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TACO_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ", static_cast<int>(result),
             " for [", rows, ", ", cols, "], stride ", stride);
  return map;
}

}  // namespace

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
  const CUtensorMap w_map = make_map(p.w, p.dtype, p.n, p.k, p.k, config.row_tiles * 64);
  for (int64_t row = 0; row < p.m; row += 128) {
    const SkinnyProduct part = skinny_rows(p, row, std::min<int64_t>(128, p.m - row));
    const int tokens = std::clamp(static_cast<int>(std::bit_ceil(static_cast<uint64_t>(part.m))), 8, 128);
    const CUtensorMap x_map = make_map(part.x, p.dtype, part.m, p.k, p.x_stride, tokens);
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
