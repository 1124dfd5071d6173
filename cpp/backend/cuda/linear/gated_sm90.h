// x [gate; up]^T with the gating in the product's own kernel, on Hopper.
#pragma once

#include "backend/cuda/linear/linear.h"

namespace taco::cuda {

constexpr int64_t kGatedRows = 512;  // of fewer rows cuBLASLt makes better products
// Whether the kernel can do this product (Epilogue::kGated), and is expected to beat cuBLASLt with a second
// pass.
bool takes_gated_sm90(const LinearParams& p, const QuantizedRows* x, const Context& ctx);
// p.consumer is not looked at: `out` is written in 16 bits.
void run_gated_sm90(const LinearParams& p, const QuantizedRows* x, Context& ctx);

}  // namespace taco::cuda
