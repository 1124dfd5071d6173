// Products of few rows (decode), bound by reading the weight: our own kernels.
#pragma once

#include "backend/cuda/linear/linear.h"

namespace taco::cuda {

// Whether run_skinny takes this product, and is expected to beat cuBLASLt there (or must run, because of
// ctx.batch_invariant).
bool takes_skinny(const LinearParams& p, const Context& ctx);
// x: FP8 rows for an FP8 weight, else null. All epilogues; bias; float_out.
void run_skinny(const LinearParams& p, const QuantizedRows* x, Context& ctx);

}  // namespace taco::cuda
