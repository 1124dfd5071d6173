#include "backend/cuda/attention/prefill_sm90.cuh"

namespace taco::cuda::sm90 {
template void launch_prefill<128, false>(const Context&, const CUtensorMap&, const PrefillParams&, bool, int);
template void launch_prefill<128, true>(const Context&, const CUtensorMap&, const PrefillParams&, bool, int);
}  // namespace taco::cuda::sm90
