#include "backend/cuda/moe/grouped.cuh"

namespace taco::cuda {

void run_grouped_f16(const GroupedParams& p, bool fp8, int tile, const Context& ctx) {
  grouped::launch_grouped<__half>(p, fp8, tile, ctx);
}

}  // namespace taco::cuda
