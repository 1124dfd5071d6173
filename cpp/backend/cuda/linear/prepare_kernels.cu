#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/element.cuh"
#include "backend/cuda/linear/prepare_kernels.h"

namespace taco::cuda {
namespace {

using namespace element;

constexpr float kFp8Max = 448.0f;

// One block for each row.
template <typename S, typename T>
__global__ void __launch_bounds__(256)
    store_rows_kernel(const S* source, T* out, int64_t cols, int64_t first_row, RowPlaces places, bool wide) {
  pdl_wait();
  pdl_launch();
  const S* from = source + blockIdx.x * cols;
  T* to = out + places(first_row + blockIdx.x) * cols;
  if (wide) {
    for (int64_t c = threadIdx.x * 8; c < cols; c += 256 * 8) {
      float x[8];
      load8(from + c, x);
      store8(to + c, x);
    }
  } else {
    for (int64_t c = threadIdx.x; c < cols; c += 256) to[c] = from_float<T>(as_float(from[c]));
  }
}

__device__ __forceinline__ uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Each hash gives four values of 16 bits.
__device__ __forceinline__ float dummy(uint64_t hash, int lane) {
  const auto bits = static_cast<float>((hash >> (16 * lane)) & 0xffff);
  return (bits - 32767.5f) * (1e-3f / 32768.0f);
}

template <typename T>
__global__ void __launch_bounds__(256)
    dummy_kernel(T* out, int64_t cols, int64_t first_row, RowPlaces places, uint64_t seed, bool wide) {
  pdl_wait();
  pdl_launch();
  T* to = out + places(first_row + blockIdx.x) * cols;
  const int64_t base = blockIdx.x * ((cols + 3) / 4);
  const uint64_t key = mix(seed + 0x9e3779b97f4a7c15ull);
  if (wide) {
    for (int64_t c = threadIdx.x * 8; c < cols; c += 256 * 8) {
      float x[8];
      const uint64_t a = mix(key + static_cast<uint64_t>(base + c / 4) * 0x9e3779b97f4a7c15ull);
      const uint64_t b = mix(key + static_cast<uint64_t>(base + c / 4 + 1) * 0x9e3779b97f4a7c15ull);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = dummy(a, i);
        x[4 + i] = dummy(b, i);
      }
      store8(to + c, x);
    }
  } else {
    for (int64_t c = threadIdx.x; c < cols; c += 256) {
      const uint64_t h = mix(key + static_cast<uint64_t>(base + c / 4) * 0x9e3779b97f4a7c15ull);
      to[c] = from_float<T>(dummy(h, static_cast<int>(c % 4)));
    }
  }
}

// scales[0] collects the greatest |x| as bits: those of non-negative floats are in order.
template <typename S>
__global__ void __launch_bounds__(256) absmax_kernel(const S* source, int64_t count, float* scales) {
  pdl_wait();
  pdl_launch();
  float most = 0.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256 * 8;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 8; i < count; i += stride) {
    if (i + 8 <= count) {
      float x[8];
      load8(source + i, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(x[j]));
    } else {
      for (int64_t j = i; j < count; ++j) most = fmaxf(most, fabsf(as_float(source[j])));
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<int*>(scales), __float_as_int(most));
}

__global__ void scale_kernel(float* scales, int64_t n) {
  pdl_wait();
  pdl_launch();
  const float most = scales[0];
  const float scale = most > 0.0f ? __fdiv_rn(most, kFp8Max) : 1.0f;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) scales[i] = scale;
}

template <typename S>
__global__ void __launch_bounds__(256)
    quantize_tensor_kernel(const S* source, int64_t count, __nv_fp8_e4m3* out, const float* scales) {
  pdl_wait();
  pdl_launch();
  const float scale = scales[0];
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 8;
  if (i + 8 <= count) {
    float x[8];
    load8(source + i, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = __fdiv_rn(x[j], scale);
    store8(out + i, x);
  } else {
    for (int64_t j = i; j < count; ++j)
      out[j] = from_float<__nv_fp8_e4m3>(__fdiv_rn(as_float(source[j]), scale));
  }
}

bool wide_rows(int64_t cols, const void* a, const void* b) {
  return cols % 8 == 0 && reinterpret_cast<uintptr_t>(a) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(b) % 16 == 0;
}

}  // namespace

void store_rows(const void* source, DType source_type, void* out, DType out_type, int64_t rows, int64_t cols,
                int64_t first_row, RowPlaces places, const Context& ctx) {
  if (rows == 0 || cols == 0) return;
  dispatch_float_type(source_type, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    dispatch_float_type(out_type, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      launch(ctx, store_rows_kernel<S, T>, dim3(static_cast<unsigned>(rows)), dim3(256), 0,
             static_cast<const S*>(source), static_cast<T*>(out), cols, first_row, places,
             wide_rows(cols, source, out));
    });
  });
}

void fill_dummy_rows(void* out, DType out_type, int64_t rows, int64_t cols, int64_t first_row,
                     RowPlaces places, uint64_t seed, const Context& ctx) {
  if (rows == 0 || cols == 0) return;
  dispatch_float_type(out_type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    launch(ctx, dummy_kernel<T>, dim3(static_cast<unsigned>(rows)), dim3(256), 0, static_cast<T*>(out), cols,
           first_row, places, seed, wide_rows(cols, out, out));
  });
}

void quantize_tensor(const void* source, DType source_type, int64_t count, void* out, float* scales,
                     int64_t n, const Context& ctx) {
  TACO_CUDA_CHECK(cudaMemsetAsync(scales, 0, sizeof(float), ctx.stream));
  if (count == 0) return;
  dispatch_float_type(source_type, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    const auto blocks = static_cast<unsigned>((count + 2047) / 2048);
    launch(ctx, absmax_kernel<S>, dim3(std::min(blocks, static_cast<unsigned>(ctx.num_sms * 8))), dim3(256),
           0, static_cast<const S*>(source), count, scales);
    launch(ctx, scale_kernel, dim3(1), dim3(1024), 0, scales, n);
    launch(ctx, quantize_tensor_kernel<S>, dim3(blocks), dim3(256), 0, static_cast<const S*>(source), count,
           static_cast<__nv_fp8_e4m3*>(out), scales);
  });
}

}  // namespace taco::cuda
