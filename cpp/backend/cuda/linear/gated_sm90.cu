#include <algorithm>
#include <cstdlib>

#include "backend/cuda/linear/gated_sm90.cuh"
#include "backend/cuda/tensor_map.h"

namespace taco::cuda {
namespace {

bool aligned(const void* p, int64_t stride, DType dtype) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 &&
         stride * static_cast<int64_t>(dtype_size(dtype)) % 16 == 0;
}

}  // namespace

// cuBLASLt has tiles of many sizes, and is better where these leave the last wave rather empty. The limits
// are measured with 4096 x 28672 weights.
static bool fills_waves(int64_t rows, const CudaLinear& w, const Context& ctx) {
  using namespace gated;
  if (rows > kGatedRows) return true;
  if (rows <= 64) return false;
  const int64_t n_tiles = (w.n + kTileColumns - 1) / kTileColumns, clusters = ctx.num_sms / 2;
  const int64_t m_pairs = (rows + 2 * kTileRows - 1) / (2 * kTileRows);
  const int64_t tiles = rows <= kTileRows ? (n_tiles + 1) / 2 : m_pairs * n_tiles;
  const double waves = static_cast<double>((tiles + clusters - 1) / clusters * clusters);
  if (rows <= 2 * kTileRows) return static_cast<double>(tiles) / waves >= 0.8;
  const double useful = static_cast<double>(rows) / (2 * kTileRows) * static_cast<double>(n_tiles);
  return useful / waves >= (w.dtype == DType::kF8E4M3 ? 0.8 : 0.9);
}

bool takes_gated_sm90(const LinearParams& p, const QuantizedRows* x, const Context& ctx) {
  static const bool off = [] {
    const char* value = std::getenv("TACO_GATED_SM90");
    return value != nullptr && value[0] == '0';
  }();
  const CudaLinear& w = as_cuda(*p.weight);
  return !off && ctx.hopper() && p.epilogue == Epilogue::kGated && w.interleaved && w.bias == nullptr &&
         p.gating.plain() && !p.float_out && fills_waves(p.rows, w, ctx) && p.rows < (int64_t{1} << 30) &&
         (p.dtype == DType::kBF16 || p.dtype == DType::kF16) && aligned(w.data, w.k, w.dtype) &&
         aligned(p.out, p.out_stride, p.dtype) &&
         (x != nullptr ? aligned(x->data, w.k, w.dtype) : aligned(p.in, p.in_stride, p.dtype));
}

void run_gated_sm90(const LinearParams& p, const QuantizedRows* x, Context& ctx) {
  using namespace gated;
  const CudaLinear& w = as_cuda(*p.weight);
  const CUtensorMap x_map = x != nullptr
                                ? swizzled_map(x->data, w.dtype, p.rows, w.k, w.k, kTileRows / 2)
                                : swizzled_map(p.in, p.dtype, p.rows, w.k, p.in_stride, kTileRows / 2);
  const CUtensorMap w_map = swizzled_map(w.data, w.dtype, w.n, w.k, w.k, kTileColumns / 2);
  const CUtensorMap out_map = swizzled_map(p.out, p.dtype, p.rows, w.n / 2, p.out_stride, 64);
  Shape s{};
  s.m_pairs = static_cast<int>((p.rows + 2 * kTileRows - 1) / (2 * kTileRows));
  s.n_tiles = static_cast<int>((w.n + kTileColumns - 1) / kTileColumns);
  s.step = 128 / static_cast<int>(dtype_size(w.dtype));
  s.steps = static_cast<int>((w.k + s.step - 1) / s.step);
  s.activation = p.activation;
  s.rows = static_cast<int>(p.rows);
  if (x != nullptr) {
    s.x_scales = x->scales;
    s.w_scale = w.scale;
  }
  s.share_rows = p.rows <= kTileRows;
  const int tiles = s.share_rows ? (s.n_tiles + 1) / 2 : s.m_pairs * s.n_tiles;
  const int clusters = std::min(ctx.num_sms / 2, tiles);
  auto start = [&](auto* kernel) {
    launch(ctx, kernel, dim3(static_cast<unsigned>(2 * clusters)), dim3(kThreads), kSmem, x_map, w_map,
           out_map, s);
  };
  const bool half = p.dtype == DType::kF16;
  if (x != nullptr) {
    half ? start(gated_kernel<__nv_fp8_e4m3, __half, true, false>)
         : start(gated_kernel<__nv_fp8_e4m3, __nv_bfloat16, true, false>);
  } else {
    half ? start(gated_kernel<__half, __half, true, false>)
         : start(gated_kernel<__nv_bfloat16, __nv_bfloat16, true, false>);
  }
}

CUtensorMap expert_map(const CudaLinear& w) {
  return swizzled_map(w.data, w.dtype, w.n, w.k, w.k, gated::kTileColumns / 2);
}

void run_experts_sm90(const ExpertsSm90& p, const Context& ctx) {
  using namespace gated;
  TACO_CHECK(p.groups <= kMaxGroups, p.groups, " experts");
  const CUtensorMap x_map = swizzled_map(p.x, p.weight_type, p.rows, p.k, p.k, kTileRows / 2);
  const int64_t width = p.gated ? p.n / 2 : p.n;
  const CUtensorMap out_map = swizzled_map(p.out, p.dtype, p.rows, width, width, 64);
  Shape s{};
  s.n_tiles = static_cast<int>((p.n + kTileColumns - 1) / kTileColumns);
  s.step = 128 / static_cast<int>(dtype_size(p.weight_type));
  s.steps = static_cast<int>((p.k + s.step - 1) / s.step);
  s.activation = p.activation;
  s.rows = static_cast<int>(p.rows);
  s.groups = p.groups;
  s.tile_starts = p.tile_starts;
  s.w_maps = p.maps;
  s.x_scales = p.x_scales;
  s.w_scales = reinterpret_cast<const char*>(p.w_scales);
  s.w_scale_stride = p.w_scale_stride;
  auto start = [&](auto* kernel) {
    launch(ctx, kernel, dim3(static_cast<unsigned>(ctx.num_sms / 2 * 2)), dim3(kThreads), kSmem, x_map, x_map,
           out_map, s);
  };
  const bool half = p.dtype == DType::kF16;
  if (p.weight_type == DType::kF8E4M3) {
    if (half) {
      p.gated ? start(gated_kernel<__nv_fp8_e4m3, __half, true, true>)
              : start(gated_kernel<__nv_fp8_e4m3, __half, false, true>);
    } else {
      p.gated ? start(gated_kernel<__nv_fp8_e4m3, __nv_bfloat16, true, true>)
              : start(gated_kernel<__nv_fp8_e4m3, __nv_bfloat16, false, true>);
    }
  } else if (half) {
    p.gated ? start(gated_kernel<__half, __half, true, true>)
            : start(gated_kernel<__half, __half, false, true>);
  } else {
    p.gated ? start(gated_kernel<__nv_bfloat16, __nv_bfloat16, true, true>)
            : start(gated_kernel<__nv_bfloat16, __nv_bfloat16, false, true>);
  }
}

}  // namespace taco::cuda
