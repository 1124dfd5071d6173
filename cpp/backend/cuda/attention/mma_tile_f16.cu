#include "backend/cuda/attention/mma_tile.cuh"

namespace taco::cuda {

void launch_tile_f16(const Context& ctx, int rows, int grid, const PagedParams& p) {
  mma::launch_tile_of<mma::F16>(ctx, rows, grid, p);
}

}  // namespace taco::cuda
