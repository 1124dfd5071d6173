#include "backend/cuda/linear/skinny_sm90_instances.cuh"

namespace taco::cuda::skinny {
template void launch_tokens<__nv_fp8_e4m3>(int, const SkinnyProduct&, const SkinnyConfig&, const CUtensorMap&,
                                           const CUtensorMap&, Context&);
}  // namespace taco::cuda::skinny
