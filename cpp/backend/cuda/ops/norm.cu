// RMS and layer norm, with the residual's addition before and the quantisation to FP8 behind.
#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/linear.h"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/ops/vec.cuh"

namespace taco::cuda {
namespace {

constexpr int kMaxThreads = 512, kVec = 8;

struct NormArgs {
  NormKind kind;
  const void* in;
  void* residual;
  const float *weight, *bias;
  void* out;
  uint8_t* quantized;  // [rows, dim] e4m3, or null
  float* scales;       // [rows]
  float residual_scale, weight_offset, eps;
  int rows, dim, groups;
  bool group_weights;
  int64_t in_stride, out_stride;

  // What block row y of the grid works on.
  __device__ __forceinline__ void select(int group, size_t element) {
    if (group == 0) return;
    const int64_t at = int64_t{group} * dim;
    in = static_cast<const char*>(in) + at * element;
    out = static_cast<char*>(out) + at * element;
    if (group_weights && weight != nullptr) weight += at;
    if (group_weights && bias != nullptr) bias += at;
  }
};

// A block takes rows in turn and holds each in registers, kVectors times eight elements a thread. How a row
// is summed depends on dim alone.
template <typename T, int kVectors>
__global__ void __launch_bounds__(kMaxThreads, kVectors == 1   ? 3
                                               : kVectors == 2 ? 2
                                                               : 1) norm_kernel(NormArgs p) {
  __shared__ float buffers[2][32];
  BlockReduce reduce{buffers};
  p.select(blockIdx.y, sizeof(T));
  const int vectors = p.dim / kVec;
  const bool normalizes = p.kind != NormKind::kNone;
  float w[kVectors][kVec];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = threadIdx.x + i * blockDim.x;
    if (normalizes && p.weight != nullptr && v < vectors) {
      load8(p.weight + v * kVec, w[i]);
#pragma unroll
      for (int j = 0; j < kVec; ++j) w[i][j] += p.weight_offset;
    } else {
#pragma unroll
      for (int j = 0; j < kVec; ++j) w[i][j] = 1.0f;
    }
  }
  pdl_launch();
  pdl_wait();

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* in = static_cast<const T*>(p.in) + row * p.in_stride;
    T* residual = p.residual == nullptr ? nullptr : static_cast<T*>(p.residual) + row * p.dim;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    float x[kVectors][kVec];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = threadIdx.x + i * blockDim.x;
      if (v < vectors) {
        load8(in + v * kVec, x[i]);
        if (residual != nullptr) {
          float r[kVec];
          load8(residual + v * kVec, r);
#pragma unroll
          for (int j = 0; j < kVec; ++j) x[i][j] = fmaf(x[i][j], p.residual_scale, r[j]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kVec; ++j) x[i][j] = 0.0f;
      }
    }
    if (residual != nullptr) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int v = threadIdx.x + i * blockDim.x;
        if (v < vectors) store8(residual + v * kVec, x[i]);
      }
    }
    float mean = 0, factor = 1;
    if (normalizes) {
      if (p.kind == NormKind::kLayer) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kVectors; ++i)
#pragma unroll
          for (int j = 0; j < kVec; ++j) sum += x[i][j];
        mean = reduce.sum(sum) / p.dim;
      }
      float square = 0;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (threadIdx.x + i * blockDim.x < vectors) {
#pragma unroll
          for (int j = 0; j < kVec; ++j) square = fmaf(x[i][j] - mean, x[i][j] - mean, square);
        }
      }
      factor = rsqrtf(reduce.sum(square) / p.dim + p.eps);
    }
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = threadIdx.x + i * blockDim.x;
      if (v >= vectors) continue;
#pragma unroll
      for (int j = 0; j < kVec; ++j) x[i][j] = (x[i][j] - mean) * factor * w[i][j];
      if (normalizes && p.bias != nullptr) {
        float b[kVec];
        load8(p.bias + v * kVec, b);
#pragma unroll
        for (int j = 0; j < kVec; ++j) x[i][j] += b[j];
      }
      store8(out + v * kVec, x[i]);
#pragma unroll
      for (int j = 0; j < kVec; ++j) largest = fmaxf(largest, fabsf(x[i][j]));
    }
    if (p.quantized != nullptr) {
      largest = reduce.max(largest);
      const float inverse = largest > 0 ? kMaxE4M3 / largest : 1.0f;
      if (threadIdx.x == 0) p.scales[row] = largest > 0 ? largest / kMaxE4M3 : 1.0f;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int v = threadIdx.x + i * blockDim.x;
        if (v >= vectors) continue;
#pragma unroll
        for (int j = 0; j < kVec; ++j) x[i][j] *= inverse;
        *reinterpret_cast<uint2*>(p.quantized + row * p.dim + v * kVec) = pack8_fp8<__NV_E4M3>(x[i]);
      }
    }
  }
}

// Any dim, any alignment: the row is read again in each pass. With a residual the later passes read the sum
// as it was stored.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads) norm_any_kernel(NormArgs p) {
  __shared__ float buffers[2][32];
  BlockReduce reduce{buffers};
  p.select(blockIdx.y, sizeof(T));
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.in) + row * p.in_stride;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  if (p.residual != nullptr) {
    T* residual = static_cast<T*>(p.residual) + row * p.dim;
    for (int i = threadIdx.x; i < p.dim; i += blockDim.x)
      residual[i] = from_f32<T>(fmaf(to_f32(x[i]), p.residual_scale, to_f32(residual[i])));
    x = residual;
  }
  const bool normalizes = p.kind != NormKind::kNone;
  float mean = 0, factor = 1;
  if (normalizes) {
    if (p.kind == NormKind::kLayer) {
      float sum = 0;
      for (int i = threadIdx.x; i < p.dim; i += blockDim.x) sum += to_f32(x[i]);
      mean = reduce.sum(sum) / p.dim;
    }
    float square = 0;
    for (int i = threadIdx.x; i < p.dim; i += blockDim.x) {
      float d = to_f32(x[i]) - mean;
      square = fmaf(d, d, square);
    }
    factor = rsqrtf(reduce.sum(square) / p.dim + p.eps);
  }
  float largest = 0;
  for (int i = threadIdx.x; i < p.dim; i += blockDim.x) {
    float y = (to_f32(x[i]) - mean) * factor;
    if (normalizes && p.weight != nullptr) y *= p.weight[i] + p.weight_offset;
    if (normalizes && p.bias != nullptr) y += p.bias[i];
    largest = fmaxf(largest, fabsf(y));
    out[i] = from_f32<T>(y);
  }
  if (p.quantized != nullptr) {
    largest = reduce.max(largest);
    const float inverse = largest > 0 ? kMaxE4M3 / largest : 1.0f;
    if (threadIdx.x == 0) p.scales[row] = largest > 0 ? largest / kMaxE4M3 : 1.0f;
    for (int i = threadIdx.x; i < p.dim; i += blockDim.x)
      p.quantized[row * p.dim + i] = to_fp8(to_f32(out[i]) * inverse, __NV_E4M3);
  }
}

template <typename T>
void launch_norm(const NormArgs& p, const Context& ctx) {
  constexpr int64_t kUnit = 16 / sizeof(T);
  const int vectors = p.dim / kVec;
  const bool fast = p.dim % kVec == 0 && vectors <= 4 * kMaxThreads && p.in_stride % kUnit == 0 &&
                    p.out_stride % kUnit == 0 && aligned16(p.in) && aligned16(p.out) &&
                    aligned16(p.residual) && aligned16(p.weight) && aligned16(p.bias);
  if (!fast) {
    const int threads = std::min(kMaxThreads, (p.dim + 31) / 32 * 32);
    return launch(ctx, norm_any_kernel<T>, dim3(p.rows, p.groups), dim3(threads), 0, p);
  }
  const int each = vectors <= kMaxThreads ? 1 : vectors <= 2 * kMaxThreads ? 2 : 4;
  const int threads = ((vectors + each - 1) / each + 31) / 32 * 32;
  const int blocks = std::min(p.rows, ctx.num_sms * (each == 1   ? std::min(16, 3 * kMaxThreads / threads)
                                                     : each == 2 ? 2
                                                                 : 1));
  auto kernel = each == 1 ? norm_kernel<T, 1> : each == 2 ? norm_kernel<T, 2> : norm_kernel<T, 4>;
  launch(ctx, kernel, dim3(blocks, p.groups), dim3(threads), 0, p);
}

}  // namespace

void run_norm(const NormParams& p, Context& ctx) {
  if (p.rows == 0 || p.dim == 0) return;
  TACO_CHECK(p.groups == 1 || (p.groups > 1 && p.residual == nullptr && p.consumer == nullptr));
  NormArgs args{.kind = p.kind,
                .in = p.in,
                .residual = p.residual,
                .weight = p.weight,
                .bias = p.bias,
                .out = p.out,
                .quantized = nullptr,
                .scales = nullptr,
                .residual_scale = p.residual_scale,
                .weight_offset = p.weight_offset,
                .eps = p.eps,
                .rows = static_cast<int>(p.rows),
                .dim = static_cast<int>(p.dim),
                .groups = p.groups,
                .group_weights = p.group_weights,
                .in_stride = p.in_stride,
                .out_stride = p.out_stride};
  // The 16-bit rows are written as well: routers, adapters and a residual that passes through a norm read
  // them.
  if (reads_fp8(p.consumer)) {
    QuantizedRows* q = ctx.make_quantized(p.out, p.rows, p.dim);
    args.quantized = static_cast<uint8_t*>(q->data);
    args.scales = q->scales;
  }
  with_activation_type(p.dtype, [&](auto tag) { launch_norm<decltype(tag)>(args, ctx); });
}

}  // namespace taco::cuda
