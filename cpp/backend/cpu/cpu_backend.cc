#include "backend/cpu/cpu_backend.h"

#include <atomic>

#include "backend/cpu/isa/dispatch.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/memory.h"
#include "base/error.h"

namespace taco {

CpuBackend::CpuBackend(int num_threads) : pool_(num_threads) {}

std::string CpuBackend::description() const {
  return str_cat(cpu::cpu_model_name(), ", ", cpu::isa_name(cpu::active_isa()),
                 cpu::use_avx512_bf16() ? " with bfloat16" : "", ", ", pool_.size(),
                 pool_.size() == 1 ? " thread" : " threads");
}

DeviceMemory CpuBackend::memory() const {
  const cpu::MemoryLimits limits = cpu::memory_limits();
  return {limits.total, limits.available};
}

void* CpuBackend::allocate(size_t bytes, bool zero) { return cpu::allocate_pages(bytes, zero); }
void CpuBackend::release(void* data) noexcept { cpu::release_pages(data); }

void CpuBackend::host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) {
  if (count <= 1 || pool_.size() == 1) {
    for (int64_t i = 0; i < count; ++i) fn(i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  pool_.run([&](int thread, int) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) fn(i, thread);
  });
}

std::unique_ptr<Linear> CpuBackend::prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                                   const LinearOptions& options) {
  if (options.fp8) {
    fail(ErrorCode::kUnimplemented, "quantization \"fp8\" needs the CUDA backend: leave it out on the CPU");
  }
  for (const HostMatrix& part : parts)
    TACO_REQUIRE(part.data != nullptr, "the CPU backend makes no stand-in weights: give the tensor's data");
  return prepare_cpu_linear(parts, bias, options.compute, pool_);
}
std::unique_ptr<Embedding> CpuBackend::prepare_embedding(const HostMatrix& table, DType) {
  return prepare_cpu_embedding(table);
}

void CpuBackend::embedding(const EmbeddingParams& p) { run_cpu_embedding(p, pool_); }
void CpuBackend::norm(const NormParams& p) { cpu::run_norm(p, pool_); }
void CpuBackend::linear(const LinearParams& p) { run_cpu_linear(p, pool_); }
void CpuBackend::rope_and_cache(const RopeAndCacheParams& p) { cpu::run_rope_and_cache(p, pool_); }
void CpuBackend::attention(const AttentionParams& p) { attention_.run(p, pool_); }
void CpuBackend::moe(const MoeParams& p) {
  moe_.run(p, pool_, [this](const LinearParams& l) { run_cpu_linear(l, pool_); });
}
void CpuBackend::gather_rows(const GatherRowsParams& p) { cpu::run_gather_rows(p, pool_); }
void CpuBackend::scale_logits(const ScaleLogitsParams& p) { cpu::run_scale_logits(p, pool_); }
void CpuBackend::mask_logits(const MaskLogitsParams& p) { cpu::run_mask_logits(p); }
void CpuBackend::copy_blocks(const CopyBlocksParams& p) { cpu::run_copy_blocks(p, pool_); }
void CpuBackend::copy_slots(const CopySlotsParams& p) { cpu::run_copy_slots(p); }

std::unique_ptr<Backend> make_cpu_backend(int num_threads) {
  return std::make_unique<CpuBackend>(num_threads);
}

}  // namespace taco
