// Choosing tokens from logits (backend/sample.h).
#include "backend/cuda/ops/ops.h"

namespace taco::cuda {

void run_sample(const SampleParams&, Context&) { fail(ErrorCode::kUnimplemented, "sampling on the device"); }

}  // namespace taco::cuda
