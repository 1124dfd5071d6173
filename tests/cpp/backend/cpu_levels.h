// For tests of the CPU kernels: every level that this machine can run, and a guard that forces one.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backend/cpu/isa/dispatch.h"
#include "backend/cpu/isa/vector_kernels.h"
#include "backend/cpu/ops/ops.h"

namespace taco::cpu {

struct Level {
  std::string name;
  Isa isa;
  const VectorKernels* kernels;
  bool bf16_products;  // rounds q and the weights to bfloat16 where the cache is bfloat16
};

inline std::vector<Level> available_levels() {
  std::vector<Level> levels{{"generic", Isa::kGeneric, &generic::kVectorKernels, false}};
#if defined(__x86_64__)
  if (isa_available(Isa::kAvx2)) levels.push_back({"avx2", Isa::kAvx2, &avx2::kVectorKernels, false});
  if (isa_available(Isa::kAvx512)) {
    levels.push_back({"avx512", Isa::kAvx512, &avx512::kVectorKernels, false});
    if (cpu_features().avx512bf16)
      levels.push_back({"avx512_bf16", Isa::kAvx512, &avx512_bf16::kVectorKernels, true});
  }
  if (isa_available(Isa::kAmx)) levels.push_back({"amx", Isa::kAmx, &amx::kVectorKernels, true});
#endif
  return levels;
}

class LevelGuard {
 public:
  explicit LevelGuard(const Level& level) : before_(active_isa()) {
    force_isa(level.isa);
    force_vector_kernels(level.kernels);
  }
  ~LevelGuard() {
    force_vector_kernels(nullptr);
    force_isa(before_);
  }

 private:
  Isa before_;
};

inline std::string level_name(const testing::TestParamInfo<Level>& info) { return info.param.name; }

}  // namespace taco::cpu
