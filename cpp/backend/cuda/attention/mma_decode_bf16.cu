#include "backend/cuda/attention/mma_decode.cuh"

namespace taco::cuda {

void launch_decode_bf16(const Context& ctx, int rows, int grid, size_t smem, const PagedParams& p) {
  mma::launch_decode_of<mma::Bf16>(ctx, rows, grid, smem, p);
}

}  // namespace taco::cuda
