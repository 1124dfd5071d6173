// Norms, rotation, KV write and attention for AVX-512 with AMX.
#include "backend/cpu/isa/avx512/simd.h"
// The vectors must come first.
#include "backend/cpu/isa/amx/attention.h"
#include "backend/cpu/isa/vector_impl.h"

namespace taco::cpu::amx {

const VectorKernels kVectorKernels = {
    norm_rows,         rope_and_cache_rows, scale_add_n, exp2_n,        scale_logits_n,
    run_amx_attention, merge_attention,     nullptr,     release_tiles,
};

}  // namespace taco::cpu::amx
