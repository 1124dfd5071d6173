#include "backend/cuda/attention/mma_tile.cuh"

namespace taco::cuda {

void launch_tile_bf16(const Context& ctx, int rows, int grid, const PagedParams& p) {
  mma::launch_tile_of<mma::Bf16>(ctx, rows, grid, p);
}

}  // namespace taco::cuda
