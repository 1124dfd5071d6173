// What follows a product that cuBLASLt made: bias, activation, gating, sums, and FP8 rows for the next
// product.
#pragma once

#include "backend/cuda/context.h"
#include "backend/cuda/linear/cublaslt.h"

namespace taco::cuda {

struct EpilogueParams {
  const void* in = nullptr;  // [rows, n]
  DType in_type = DType::kBF16;
  int64_t in_stride = 0, rows = 0, n = 0;
  const float* bias = nullptr;  // [n]
  float bias_scale = 1.0f;
  const float* row_scales = nullptr;  // [rows]: multiplies the product, before the bias
  Activation activation = Activation::kNone;
  Gating gating;
  bool gated = false,
       interleaved = false;  // out = act(gate) * up, n / 2 wide; interleaved as CudaLinear says
  bool accumulate = false;   // out += result * out_scale
  float out_scale = 1.0f;
  void* out = nullptr;  // may be `in` where types and widths agree
  DType out_type = DType::kBF16;
  int64_t out_stride = 0;
  void* fp8 = nullptr;          // instead of out: e4m3 [rows, width], dense
  float* fp8_scales = nullptr;  // [rows]
};
void run_epilogue(const EpilogueParams& p, const Context& ctx);

// Any shape and alignment on the plain cores: for what cuBLASLt does not take.
void plain_matmul(const Matmul& p, const Context& ctx);

}  // namespace taco::cuda
