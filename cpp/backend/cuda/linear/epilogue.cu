#include "backend/cuda/linear/epilogue.h"

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/element.cuh"
#include "backend/cuda/linear/linear.h"

namespace taco::cuda {
namespace {

using namespace element;

constexpr float kFp8Max = 448.0f;
constexpr int kHeld =
    4;  // chunks of eight outputs that a thread keeps between the row's maximum and its FP8 values

// Column of the product that holds the gate of output column c, and of its other half.
__device__ __forceinline__ int64_t gate_column(const EpilogueParams& p, int64_t c) {
  return p.interleaved ? c / 8 * 16 + c % 8 : c;
}
__device__ __forceinline__ int64_t up_offset(const EpilogueParams& p) { return p.interleaved ? 8 : p.n / 2; }

// Eight outputs from column c, before they are stored.
template <typename S, bool kGated>
__device__ __forceinline__ void outputs8(const EpilogueParams& p, const S* in, float row_scale, int64_t c,
                                         float (&x)[8]) {
  const int64_t g = kGated ? gate_column(p, c) : c;
  load8(in + g, x);
  float up[8];
  if constexpr (kGated) load8(in + g + up_offset(p), up);
  if (p.row_scales != nullptr) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] *= row_scale;
      if constexpr (kGated) up[i] *= row_scale;
    }
  }
  if (p.bias != nullptr) {
    float b[8];
    load8(p.bias + g, b);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] += b[i] * p.bias_scale;
    if constexpr (kGated) {
      load8(p.bias + g + up_offset(p), b);
#pragma unroll
      for (int i = 0; i < 8; ++i) up[i] += b[i] * p.bias_scale;
    }
  }
  if constexpr (kGated) {
#pragma unroll
    for (int i = 0; i < 8; ++i) gate_inputs(p.gating, x[i], up[i]);
  }
  activate_all(p.activation, x);
  if constexpr (kGated) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= up[i];
  }
}

template <typename S, bool kGated>
__device__ __forceinline__ float output(const EpilogueParams& p, const S* in, float row_scale, int64_t c) {
  const int64_t g = kGated ? gate_column(p, c) : c;
  float x = as_float(in[g]) * row_scale;
  if (p.bias != nullptr) x += p.bias[g] * p.bias_scale;
  if constexpr (kGated) {
    float up = as_float(in[g + up_offset(p)]) * row_scale;
    if (p.bias != nullptr) up += p.bias[g + up_offset(p)] * p.bias_scale;
    gate_inputs(p.gating, x, up);
    return activate(p.activation, x) * up;
  }
  return activate(p.activation, x);
}

// One block for each row.
template <typename S, typename T, bool kGated>
__global__ void __launch_bounds__(256) epilogue_kernel(EpilogueParams p, bool wide) {
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x, width = kGated ? p.n / 2 : p.n;
  const S* in = static_cast<const S*>(p.in) + row * p.in_stride;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  const float row_scale = p.row_scales != nullptr ? p.row_scales[row] : 1.0f;
  if (wide) {
#pragma unroll 2
    for (int64_t c = threadIdx.x * 8; c < width; c += 256 * 8) {
      float x[8];
      outputs8<S, kGated>(p, in, row_scale, c, x);
      if (p.accumulate) {
        float old[8];
        load8(out + c, old);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = old[i] + x[i] * p.out_scale;
      }
      store8(out + c, x);
    }
  } else {
    for (int64_t c = threadIdx.x; c < width; c += 256) {
      float x = output<S, kGated>(p, in, row_scale, c);
      if (p.accumulate) x = as_float(out[c]) + x * p.out_scale;
      out[c] = from_float<T>(x);
    }
  }
}

__device__ __forceinline__ float block_max(float x) {
  __shared__ float warps[32];
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : 0.0f;
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// One block for each row, which it reads once where kHold, else twice.
template <typename S, bool kGated, bool kHold>
__global__ void __launch_bounds__(512) epilogue_fp8_kernel(EpilogueParams p, bool wide) {
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x, width = kGated ? p.n / 2 : p.n;
  const S* in = static_cast<const S*>(p.in) + row * p.in_stride;
  auto* out = static_cast<__nv_fp8_e4m3*>(p.fp8) + row * width;
  const float row_scale = p.row_scales != nullptr ? p.row_scales[row] : 1.0f;
  float held[kHold ? kHeld : 1][8];
  float most = 0.0f;
  if constexpr (kHold) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int64_t c = (i * blockDim.x + threadIdx.x) * int64_t{8};
      if (c < width) {
        outputs8<S, kGated>(p, in, row_scale, c, held[i]);
#pragma unroll
        for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(held[i][j]));
      }
    }
  } else {
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
      most = fmaxf(most, fabsf(output<S, kGated>(p, in, row_scale, c)));
  }
  most = block_max(most);
  const float scale = most > 0.0f ? __fdiv_rn(most, kFp8Max) : 1.0f;
  const float inverse = most > 0.0f ? __fdiv_rn(kFp8Max, most) : 1.0f;
  if (threadIdx.x == 0) p.fp8_scales[row] = scale;
  if constexpr (kHold) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int64_t c = (i * blockDim.x + threadIdx.x) * int64_t{8};
      if (c < width) {
#pragma unroll
        for (int j = 0; j < 8; ++j) held[i][j] *= inverse;
        store8(out + c, held[i]);
      }
    }
  } else {
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
      out[c] = from_float<__nv_fp8_e4m3>(output<S, kGated>(p, in, row_scale, c) * inverse);
  }
}

bool aligned(const void* p, int64_t stride, size_t size) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * static_cast<int64_t>(size) % 16 == 0;
}

// 32 x 32 results of a block of 16 x 16 threads; K in steps of 32 through shared memory.
template <typename S, typename T>
__global__ void __launch_bounds__(256) plain_matmul_kernel(Matmul p) {
  constexpr int kTile = 32;
  __shared__ float xs[kTile][kTile + 1], ws[kTile][kTile + 1];
  pdl_wait();
  pdl_launch();
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t m0 = static_cast<int64_t>(blockIdx.y) * kTile, n0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const S* x = static_cast<const S*>(p.x);
  const S* w = static_cast<const S*>(p.w);
  float sum[2][2] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kTile) {
    for (int i = threadIdx.x; i < kTile * kTile; i += 256) {
      const int r = i / kTile, c = i % kTile;
      const bool in_k = k0 + c < p.k;
      xs[r][c] = in_k && m0 + r < p.m ? as_float(x[(m0 + r) * p.x_stride + k0 + c]) : 0.0f;
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
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const int64_t m = m0 + ty + 16 * i, n = n0 + tx + 16 * j;
      if (m >= p.m || n >= p.n) continue;
      float y = sum[i][j];
      if (p.w_scales != nullptr) y *= p.w_scales[n];
      if (p.x_scales != nullptr) y *= p.x_scales[m];
      T* out = static_cast<T*>(p.y) + m * p.y_stride + n;
      y *= p.alpha;
      if (p.beta != 0.0f) y += p.beta * as_float(*out);
      *out = from_float<T>(y);
    }
  }
}

template <typename S>
void launch_plain(const Matmul& p, const Context& ctx) {
  dispatch_float_type(p.out, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Matmul part = p;
    constexpr int64_t kRows = 65535 * 32;  // a grid's greatest height
    for (int64_t m = 0; m < p.m; m += kRows) {
      part.m = std::min(kRows, p.m - m);
      part.x = static_cast<const S*>(p.x) + m * p.x_stride;
      part.y = static_cast<T*>(p.y) + m * p.y_stride;
      part.x_scales = p.x_scales != nullptr ? p.x_scales + m : nullptr;
      dim3 grid(static_cast<unsigned>((p.n + 31) / 32), static_cast<unsigned>((part.m + 31) / 32));
      launch(ctx, plain_matmul_kernel<S, T>, grid, dim3(256), 0, part);
    }
  });
}

}  // namespace

void run_epilogue(const EpilogueParams& p, const Context& ctx) {
  const int64_t width = p.gated ? p.n / 2 : p.n;
  if (p.rows == 0 || width == 0) return;
  const dim3 grid(static_cast<unsigned>(p.rows));
  bool wide = width % 8 == 0 && aligned(p.in, p.in_stride, dtype_size(p.in_type)) &&
              (p.bias == nullptr || aligned(p.bias, 0, 4));
  if (p.fp8 != nullptr) {
    // Eight FP8 values are one store; rows are dense, so they are aligned where `width` is.
    wide = wide && reinterpret_cast<uintptr_t>(p.fp8) % 8 == 0 && width <= 512 * 8 * kHeld;
    const int64_t threads = std::clamp<int64_t>((width + 8 * kHeld - 1) / (8 * kHeld), 1, 512);
    const dim3 block(wide ? static_cast<unsigned>((threads + 31) / 32 * 32) : 512);
    dispatch_float_type(p.in_type, [&](auto* s) {
      using S = std::remove_pointer_t<decltype(s)>;
      auto* kernel =
          p.gated ? (wide ? epilogue_fp8_kernel<S, true, true> : epilogue_fp8_kernel<S, true, false>)
                  : (wide ? epilogue_fp8_kernel<S, false, true> : epilogue_fp8_kernel<S, false, false>);
      launch(ctx, kernel, grid, block, 0, p, wide);
    });
    return;
  }
  wide = wide && aligned(p.out, p.out_stride, dtype_size(p.out_type));
  dispatch_float_type(p.in_type, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    dispatch_float_type(p.out_type, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      if constexpr (std::is_same_v<S, T> || sizeof(S) == 4 || sizeof(T) == 4) {
        auto* kernel = p.gated ? epilogue_kernel<S, T, true> : epilogue_kernel<S, T, false>;
        launch(ctx, kernel, grid, dim3(256), 0, p, wide);
      } else {
        fail(ErrorCode::kInternal, "an epilogue from ", dtype_name(p.in_type), " to ",
             dtype_name(p.out_type));
      }
    });
  });
}

void plain_matmul(const Matmul& p, const Context& ctx) {
  if (p.m == 0 || p.n == 0) return;
  if (p.in == DType::kF8E4M3) return launch_plain<__nv_fp8_e4m3>(p, ctx);
  dispatch_float_type(p.in, [&](auto* s) { launch_plain<std::remove_pointer_t<decltype(s)>>(p, ctx); });
}

const QuantizedRows* quantize_rows(const void* in, int64_t rows, int64_t cols, int64_t stride, DType dtype,
                                   Context& ctx) {
  QuantizedRows* out = ctx.make_quantized(in, rows, cols);
  run_epilogue({.in = in,
                .in_type = dtype,
                .in_stride = stride,
                .rows = rows,
                .n = cols,
                .fp8 = out->data,
                .fp8_scales = out->scales},
               ctx);
  return out;
}

}  // namespace taco::cuda
