#include "backend/cuda/attention/mma_tile.cuh"

namespace taco::cuda {

void launch_tile_fp8(const Context& ctx, int rows, int grid, const PagedParams& p) {
  mma::launch_tile_of<mma::Fp8>(ctx, rows, grid, p);
}

}  // namespace taco::cuda
