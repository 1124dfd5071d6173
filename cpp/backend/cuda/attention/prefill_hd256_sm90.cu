#include "backend/cuda/attention/prefill_sm90.cuh"

namespace taco::cuda::sm90 {
template void launch_prefill<256, false>(const Context&, const CUtensorMap&, const PrefillParams&, bool,
                                         int64_t);
template void launch_prefill<256, true>(const Context&, const CUtensorMap&, const PrefillParams&, bool,
                                        int64_t);
}  // namespace taco::cuda::sm90
