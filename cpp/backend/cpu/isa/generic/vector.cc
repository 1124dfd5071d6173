// Norms, rotation, KV write and attention for any processor.
#include "backend/cpu/isa/generic/simd.h"
// The vectors must come first.
#include "backend/cpu/isa/attention_fma.h"
#include "backend/cpu/isa/vector_impl.h"

namespace taco::cpu::generic {

const VectorKernels kVectorKernels = {
    norm_rows,      rope_and_cache_rows,     scale_add_n,     exp2_n,
    scale_logits_n, run_fma_attention<4, 2>, merge_attention, nullptr,
    nullptr,
};

}  // namespace taco::cpu::generic
