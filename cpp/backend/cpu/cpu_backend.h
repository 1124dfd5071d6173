// The CPU backend: the ops of backend.h over the threads of one pool.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cpu/ops/ops.h"
#include "base/thread_pool.h"

namespace taco {

// Every op has run when its call returns.
class CpuBackend final : public Backend {
 public:
  // num_threads 0: one for each core of the process.
  explicit CpuBackend(int num_threads);

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  DeviceMemory memory() const override;
  void* allocate(size_t bytes, bool zero) override;
  void release(void* data) noexcept override;
  void synchronize() override {}
  void idle() override { pool_.park(); }
  int host_threads() const override { return pool_.size(); }
  void host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) override;

  std::unique_ptr<Linear> prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                         const LinearOptions& options) override;
  std::unique_ptr<Embedding> prepare_embedding(const HostMatrix& table, DType compute) override;

  void embedding(const EmbeddingParams&) override;
  void norm(const NormParams&) override;
  void linear(const LinearParams&) override;
  void rope_and_cache(const RopeAndCacheParams&) override;
  void attention(const AttentionParams&) override;
  void moe(const MoeParams&) override;
  void gather_rows(const GatherRowsParams&) override;
  void scale_logits(const ScaleLogitsParams&) override;
  void mask_logits(const MaskLogitsParams&) override;
  void copy_blocks(const CopyBlocksParams&) override;
  void copy_slots(const CopySlotsParams&) override;

  ThreadPool& pool() { return pool_; }

 private:
  ThreadPool pool_;
  cpu::Attention attention_;
  cpu::Moe moe_;
};

}  // namespace taco
