// Element types in device code: loads and stores of one or eight elements as float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "backend/ops.h"

namespace taco::cuda::element {

__device__ __forceinline__ float as_float(float x) { return x; }
__device__ __forceinline__ float as_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float as_float(__nv_fp8_e4m3 x) { return static_cast<float>(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float x) {
  return __nv_fp8_e4m3(x);  // saturates
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Elements {
  T v[N];
};

// p is aligned to 16 bytes (8 for FP8).
template <typename T>
__device__ __forceinline__ void load8(const T* p, float (&out)[8]) {
  if constexpr (sizeof(T) == 4) {
    float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  } else {
    Elements<T, 8> e = *reinterpret_cast<const Elements<T, 8>*>(p);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = as_float(e.v[i]);
  }
}
template <typename T>
__device__ __forceinline__ void store8(T* p, const float (&x)[8]) {
  if constexpr (sizeof(T) == 4) {
    reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
    Elements<T, 8> e;
#pragma unroll
    for (int i = 0; i < 8; ++i) e.v[i] = from_float<T>(x[i]);
    *reinterpret_cast<Elements<T, 8>*>(p) = e;
  }
}

// Exact up to the rounding of float32, in builds with fast maths too.
__device__ __forceinline__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0f + __expf(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::kGeluTanh: {
      const float t = 0.7978845608028654f * (x + 0.044715f * x * x * x);
      return x / (1.0f + __expf(-2.0f * t));  // 0.5 (1 + tanh t) = 1 / (1 + exp(-2t))
    }
    case Activation::kGeluQuick:
      return x / (1.0f + __expf(-1.702f * x));
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    case Activation::kRelu2:
      return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
    default:
      return x;
  }
}

// The same for several values: the switch stands outside of the loop.
template <int N>
__device__ __forceinline__ void activate_all(Activation activation, float (&x)[N]) {
#define TACO_ACTIVATE(kind)                                  \
  case kind:                                                 \
    for (int i = 0; i < N; ++i) x[i] = activate(kind, x[i]); \
    break
  switch (activation) {
    TACO_ACTIVATE(Activation::kSilu);
    TACO_ACTIVATE(Activation::kGelu);
    TACO_ACTIVATE(Activation::kGeluTanh);
    TACO_ACTIVATE(Activation::kGeluQuick);
    TACO_ACTIVATE(Activation::kRelu);
    TACO_ACTIVATE(Activation::kRelu2);
    default:
      break;
  }
#undef TACO_ACTIVATE
}

// The halves of a gated product before the activation: Gating of ops.h.
__device__ __forceinline__ void gate_inputs(const Gating& g, float& gate, float& up) {
  if (g.limit > 0.0f) {
    gate = fminf(gate, g.limit);
    up = fminf(fmaxf(up, -g.limit), g.limit);
  }
  up += g.up_offset;
}

// Calls f with a null pointer of the element type.
template <typename F>
void dispatch_float_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(static_cast<float*>(nullptr));
    case DType::kF16:
      return f(static_cast<__half*>(nullptr));
    case DType::kBF16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    default:
      fail(ErrorCode::kInternal, "no kernel for activations of type ", dtype_name(dtype));
  }
}

}  // namespace taco::cuda::element
