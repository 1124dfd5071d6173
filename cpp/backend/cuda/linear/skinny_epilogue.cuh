// What happens to a tile of sums once they are whole: shared by the skinny kernels.
#pragma once

#include "backend/cuda/linear/element.cuh"
#include "backend/cuda/linear/skinny_kernels.h"

namespace taco::cuda::skinny {

using element::activate;
using element::as_float;
using element::Elements;
using element::from_float;
using element::gate_inputs;

struct SkinnyEpilogue {
  void* out;
  int64_t out_stride;
  const float* bias;      // [n] or null
  const float* w_scale;   // one number or null
  const float* x_scales;  // [m] or null
  float out_scale;
  Epilogue kind;
  Activation activation;
  Gating gating;
  DType out_dtype;
  bool vectors;  // four outputs in a row can be stored at once
};

inline SkinnyEpilogue skinny_epilogue(const SkinnyProduct& p) {
  const int64_t width = p.epilogue == Epilogue::kGated ? p.n / 2 : p.n;
  const int64_t bytes = p.out_dtype == DType::kF32 ? 16 : 8;
  const bool aligned =
      reinterpret_cast<uintptr_t>(p.out) % bytes == 0 && p.out_stride % 4 == 0 && width % 4 == 0;
  return {p.out,      p.out_stride, p.bias,   p.w_scale,   p.x_scales, p.out_scale,
          p.epilogue, p.activation, p.gating, p.out_dtype, aligned};
}

template <typename T>
__device__ __forceinline__ void skinny_store4(const SkinnyEpilogue& e, T* out, const float (&y)[4],
                                              int valid) {
  const bool add = e.kind == Epilogue::kAccumulate;
  if (e.vectors && valid == 4) {
    using Vec = Elements<T, 4>;
    Vec v;
    if (add) v = *reinterpret_cast<const Vec*>(out);
#pragma unroll
    for (int i = 0; i < 4; ++i) v.v[i] = from_float<T>(add ? as_float(v.v[i]) + y[i] * e.out_scale : y[i]);
    *reinterpret_cast<Vec*>(out) = v;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) out[i] = from_float<T>(add ? as_float(out[i]) + y[i] * e.out_scale : y[i]);
    }
  }
}

// sums: [tokens][pitch] float32 in shared memory, kRows weight rows from `row0` on for each token, whose sums
// are multiplied by `factor` first. `tokens` of them from `token0` on exist. Done by kThreads threads,
// `thread` of them; the caller has the barriers.
template <int kRows, int kThreads>
__device__ __forceinline__ void skinny_finish(const SkinnyEpilogue& e, const float* sums, int pitch,
                                              int64_t row0, int64_t n, int token0, int tokens, int thread,
                                              float factor = 1.0f) {
  const float w_scale = e.w_scale != nullptr ? *e.w_scale * factor : factor;
  const bool gated = e.kind == Epilogue::kGated;
  // A thread makes four outputs of a token: of kRows / 4 such groups, or half as many where gate and up make
  // one.
  const int groups = gated ? kRows / 8 : kRows / 4;
  const int group = thread & (groups - 1);
  const int64_t width = gated ? n / 2 : n;
  const int64_t column = (gated ? row0 / 2 : row0) + group * 4;
  const int valid = static_cast<int>(min(int64_t{4}, width - column));
  if (valid <= 0) return;
  // Gate rows 0-7, up rows 8-15, and so on: outputs 4 g.. stand at row (g / 2) * 16 + (g % 2) * 4.
  const int row = gated ? (group >> 1) * 16 + (group & 1) * 4 : group * 4;
  float bias[4] = {}, up_bias[4] = {};
  if (e.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) {
        bias[i] = e.bias[row0 + row + i];
        if (gated) up_bias[i] = e.bias[row0 + row + 8 + i];
      }
    }
  }
  for (int t = thread / groups; t < tokens; t += kThreads / groups) {
    const float scale = e.x_scales != nullptr ? w_scale * e.x_scales[token0 + t] : w_scale;
    const float4 s = *reinterpret_cast<const float4*>(sums + t * pitch + row);
    float y[4] = {s.x * scale + bias[0], s.y * scale + bias[1], s.z * scale + bias[2], s.w * scale + bias[3]};
    if (gated) {
      const float4 u = *reinterpret_cast<const float4*>(sums + t * pitch + row + 8);
      float up[4] = {u.x * scale + up_bias[0], u.y * scale + up_bias[1], u.z * scale + up_bias[2],
                     u.w * scale + up_bias[3]};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        gate_inputs(e.gating, y[i], up[i]);
        y[i] = activate(e.activation, y[i]) * up[i];
      }
    } else if (e.kind == Epilogue::kActivation) {
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = activate(e.activation, y[i]);
    }
    const int64_t at = (token0 + t) * e.out_stride + column;
    if (e.out_dtype == DType::kF32)
      skinny_store4(e, static_cast<float*>(e.out) + at, y, valid);
    else if (e.out_dtype == DType::kBF16)
      skinny_store4(e, static_cast<__nv_bfloat16*>(e.out) + at, y, valid);
    else
      skinny_store4(e, static_cast<__half*>(e.out) + at, y, valid);
  }
}

}  // namespace taco::cuda::skinny
