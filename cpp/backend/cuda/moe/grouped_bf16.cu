#include "backend/cuda/moe/grouped.cuh"

namespace taco::cuda {

void run_grouped_bf16(const GroupedParams& p, bool fp8, int tile, const Context& ctx) {
  grouped::launch_grouped<__nv_bfloat16>(p, fp8, tile, ctx);
}

}  // namespace taco::cuda
