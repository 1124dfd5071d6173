#include "backend/cpu/isa/vector_kernels.h"

#include "backend/cpu/isa/dispatch.h"

namespace taco::cpu {

const VectorKernels& vector_kernels() { return generic::kVectorKernels; }

}  // namespace taco::cpu
