#include "backend/cpu/isa/vector_kernels.h"

#include "backend/cpu/isa/dispatch.h"

namespace taco::cpu {
namespace {
const VectorKernels* g_forced = nullptr;
}

void force_vector_kernels(const VectorKernels* kernels) { g_forced = kernels; }

const VectorKernels& vector_kernels() {
  if (g_forced) return *g_forced;
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kGeneric:
      break;
    case Isa::kAvx2:
      return avx2::kVectorKernels;
    case Isa::kAvx512:
      return use_avx512_bf16() ? avx512_bf16::kVectorKernels : avx512::kVectorKernels;
    case Isa::kAmx:
      return amx::kVectorKernels;
  }
#endif
  return generic::kVectorKernels;
}

}  // namespace taco::cpu
