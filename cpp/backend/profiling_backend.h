// A backend that times every op of another one.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backend/backend.h"

namespace taco {

struct OpTime {
  int64_t calls = 0;
  double seconds = 0;
};

// Synchronises after each op, so the sum is a little above the unprofiled run. Linears are told apart by
// their shape ("linear 576x1536") and everything else by its name. There are no graphs: they hide the ops.
class ProfilingBackend final : public Backend {
 public:
  explicit ProfilingBackend(std::shared_ptr<Backend> inner) : inner_(std::move(inner)) {}

  const std::map<std::string, OpTime>& times() const { return times_; }
  void reset() { times_.clear(); }

  std::string name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description() + ", profiling"; }
  DeviceMemory memory() const override { return inner_->memory(); }
  void* allocate(size_t bytes, bool zero) override { return inner_->allocate(bytes, zero); }
  void release(void* data) noexcept override { inner_->release(data); }
  void synchronize() override { inner_->synchronize(); }
  void upload(void* device, const void* source, size_t bytes) override {
    inner_->upload(device, source, bytes);
  }
  void download(void* host, const void* source, size_t bytes) override {
    inner_->download(host, source, bytes);
  }
  void idle() override { inner_->idle(); }
  DType activation_dtype(DType model) const override { return inner_->activation_dtype(model); }
  void* allocate_host(size_t bytes) override { return inner_->allocate_host(bytes); }
  void release_host(void* data) noexcept override { inner_->release_host(data); }
  void upload_async(void* device, const void* source, size_t bytes) override {
    inner_->upload_async(device, source, bytes);
  }
  void download_async(void* host, const void* source, size_t bytes) override {
    inner_->download_async(host, source, bytes);
  }
  void upload_rows_async(void* device, size_t pitch, const void* source, size_t width,
                         int64_t rows) override {
    inner_->upload_rows_async(device, pitch, source, width, rows);
  }
  uint64_t mark() override { return inner_->mark(); }
  void wait(uint64_t mark) override { inner_->wait(mark); }
  std::unique_ptr<CopyStream> make_copy_stream() override { return inner_->make_copy_stream(); }
  std::shared_ptr<Fence> fence() override { return inner_->fence(); }
  void wait_for(const Fence& fence) override { inner_->wait_for(fence); }
  void copy_rows(CopyDirection direction, const RowCopies& copies) override {
    inner_->copy_rows(direction, copies);
  }
  bool needs_pinning() const override { return inner_->needs_pinning(); }
  void pin_host(void* data, size_t bytes) override { inner_->pin_host(data, bytes); }
  void unpin_host(void* data) noexcept override { inner_->unpin_host(data); }
  void begin_step(const StepShape& shape) override { inner_->begin_step(shape); }
  int host_threads() const override { return inner_->host_threads(); }
  void host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) override;
  std::unique_ptr<Linear> prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                         const LinearOptions& options) override {
    return inner_->prepare_linear(parts, bias, options);
  }
  std::unique_ptr<Embedding> prepare_embedding(const HostMatrix& table, DType compute) override {
    return inner_->prepare_embedding(table, compute);
  }
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
  bool samples() const override { return inner_->samples(); }
  void sample(const SampleParams&) override;
  void patch_ids(const PatchIdsParams& p) override { inner_->patch_ids(p); }

 private:
  template <typename Fn>
  void timed(const std::string& op, Fn&& fn);

  std::shared_ptr<Backend> inner_;
  std::map<std::string, OpTime> times_;
};

}  // namespace taco
