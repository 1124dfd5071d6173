#include "backend/cuda/linear/skinny_sm90_instances.cuh"

namespace taco::cuda::skinny {
template void launch_tokens<__nv_bfloat16>(int, const SkinnyProduct&, const SkinnyConfig&, const CUtensorMap&,
                                           const CUtensorMap&, Context&);
}  // namespace taco::cuda::skinny
