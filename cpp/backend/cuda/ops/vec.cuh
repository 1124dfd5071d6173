// Eight elements at a time, as float32, whatever they are stored as; and sums over a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "base/dtype.h"
#include "base/error.h"

namespace taco::cuda {

constexpr float kMaxE4M3 = 448.0f, kMaxE5M2 = 57344.0f;

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_f32(float v);
template <>
__device__ __forceinline__ float from_f32<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_f32<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

__device__ __forceinline__ uint32_t pack2(float a, float b, __half*) {
  __half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&h);
}
__device__ __forceinline__ uint32_t pack2(float a, float b, __nv_bfloat16*) {
  __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&h);
}
__device__ __forceinline__ float2 unpack2(uint32_t v, __half*) {
  return __half22float2(*reinterpret_cast<__half2*>(&v));
}
__device__ __forceinline__ float2 unpack2(uint32_t v, __nv_bfloat16*) {
  return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

// p: aligned to 16 bytes.
__device__ __forceinline__ void load8(const float* p, float (&x)[8]) {
  float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
template <typename T>
__device__ __forceinline__ void load8(const T* p, float (&x)[8]) {
  uint4 v = *reinterpret_cast<const uint4*>(p);
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 f = unpack2(words[i], static_cast<T*>(nullptr));
    x[2 * i] = f.x;
    x[2 * i + 1] = f.y;
  }
}
__device__ __forceinline__ void store8(float* p, const float (&x)[8]) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
template <typename T>
__device__ __forceinline__ void store8(T* p, const float (&x)[8]) {
  T* tag = nullptr;
  *reinterpret_cast<uint4*>(p) = make_uint4(pack2(x[0], x[1], tag), pack2(x[2], x[3], tag),
                                            pack2(x[4], x[5], tag), pack2(x[6], x[7], tag));
}

// Saturating, round to nearest even; a NaN stays a NaN.
__device__ __forceinline__ uint8_t to_fp8(float v, __nv_fp8_interpretation_t kind) {
  return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, kind);
}
template <__nv_fp8_interpretation_t kKind>
__device__ __forceinline__ uint2 pack8_fp8(const float (&x)[8]) {
  uint32_t words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(x[4 * i], x[4 * i + 1]), __NV_SATFINITE, kKind);
    uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(x[4 * i + 2], x[4 * i + 3]), __NV_SATFINITE, kKind);
    words[i] = low | high << 16;
  }
  return make_uint2(words[0], words[1]);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}

// Reductions over a block with one barrier each. Two buffers take turns: who writes one for the second time
// has passed a barrier that everybody reached after reading it.
struct BlockReduce {
  float (*buffers)[32];  // shared, [2]
  int turn = 0;

  template <bool kMax>
  __device__ __forceinline__ float run(float v) {
    float* buffer = buffers[turn];
    turn ^= 1;
    const int lane = threadIdx.x & 31, warps = (blockDim.x + 31) >> 5;
    v = kMax ? warp_max(v) : warp_sum(v);
    if (warps == 1) return v;
    if (lane == 0) buffer[threadIdx.x >> 5] = v;
    __syncthreads();
    v = lane < warps ? buffer[lane] : kMax ? -INFINITY : 0.0f;
    return kMax ? warp_max(v) : warp_sum(v);
  }
  __device__ __forceinline__ float sum(float v) { return run<false>(v); }
  __device__ __forceinline__ float max(float v) { return run<true>(v); }
};

// fn(T{}) with the type of activations of `dtype`.
template <typename Fn>
void with_activation_type(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF32:
      return fn(float{});
    case DType::kF16:
      return fn(__half{});
    case DType::kBF16:
      return fn(__nv_bfloat16{});
    default:
      fail(ErrorCode::kUnimplemented, "activations cannot be ", dtype_name(dtype));
  }
}

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace taco::cuda
