// Products with bfloat16 panels through vdpbf16ps.
#include <immintrin.h>

#include "backend/cpu/isa/linear_kernels.h"

namespace taco::cpu::avx512_bf16 {
namespace {

#include "backend/cpu/isa/linear_bf16_impl.h"

constexpr int kLanes = 16;
#include "backend/cpu/isa/linear_store_impl.h"

constexpr LinearKernels kBf16 = {
    RowFormat::kBF16, pack_bf16, nullptr, bf16_product, store_rows, 288, 512 << 10, 48, nullptr, nullptr,
};

}  // namespace

const LinearKernels* linear_kernels(PanelFormat format) {
  return format == PanelFormat::kBF16 ? &kBf16 : nullptr;
}

}  // namespace taco::cpu::avx512_bf16
