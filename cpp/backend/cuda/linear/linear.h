// Matrix products: y = x W^T with an epilogue. Small row counts run on our own kernels (skinny.h), large ones
// on cuBLASLt.
#pragma once

#include <memory>
#include <span>

#include "backend/cuda/context.h"

namespace taco::cuda {

// A weight on the device, row-major [out_features, in_features].
struct CudaLinear final : Linear {
  ~CudaLinear() override;
  int64_t out_features() const override { return n; }
  int64_t in_features() const override { return k; }
  size_t bytes() const override;

  int64_t n = 0, k = 0;
  DType dtype = DType::kBF16;  // of data: kBF16, kF16, kF32 or kF8E4M3
  void* data = nullptr;
  float* bias = nullptr;  // [n] float32, in the order of the stored rows; or null
  // [gate; up] with 16-bit or 8-bit data: rows stand interleaved by eight (gate 0-7, up 0-7, gate 8-15, ...),
  // so that a product's tile holds both halves of its outputs. float32 data: as given.
  bool interleaved = false;
  float* scale = nullptr;  // [n] on the device, FP8 only, all the same: value = data * scale
};

inline const CudaLinear& as_cuda(const Linear& linear) { return static_cast<const CudaLinear&>(linear); }
// Whether a product wants its input rows in FP8 with a scale each.
inline bool reads_fp8(const Linear* linear) {
  return linear != nullptr && as_cuda(*linear).dtype == DType::kF8E4M3;
}

std::unique_ptr<Linear> prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                       const LinearOptions& options, Context& ctx);
void run_linear(const LinearParams& p, Context& ctx);
// The path of many rows (cuBLASLt, or plain cores where it has no kernel), at any row count: tests,
// benchmarks. x: FP8 rows for an FP8 weight, else null.
void run_dense(const LinearParams& p, const QuantizedRows* x, Context& ctx);

// 16-bit rows to FP8 with a scale each (max |x| / 448), into ctx.make_quantized(in).
const QuantizedRows* quantize_rows(const void* in, int64_t rows, int64_t cols, int64_t stride, DType dtype,
                                   Context& ctx);

}  // namespace taco::cuda
