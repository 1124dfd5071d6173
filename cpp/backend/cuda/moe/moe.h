// Mixtures of experts: routing, grouping of rows by expert, grouped products.
#pragma once

#include "backend/cuda/context.h"

namespace taco::cuda {

// Nothing of it is known to the host: row counts stay on the device, so that a graph can hold it.
void run_moe(const MoeParams& p, Context& ctx);

}  // namespace taco::cuda
