// Norms, rotation, KV write and attention for AVX-512 with its bfloat16 products.
#include "backend/cpu/isa/avx512/simd.h"
// The vectors must come first.
#include "backend/cpu/isa/attention_bf16.h"
#include "backend/cpu/isa/vector_impl.h"

namespace taco::cpu::avx512_bf16 {

const VectorKernels kVectorKernels = {
    norm_rows,          rope_and_cache_rows, scale_add_n, exp2_n,  scale_logits_n,
    run_bf16_attention, merge_attention,     nullptr,     nullptr,
};

}  // namespace taco::cpu::avx512_bf16
