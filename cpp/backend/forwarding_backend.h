// A backend that hands everything to another one: what stands between (a profiler, a test's device) overrides
// the ops that it cares for. Graphs are not handed on: they would hide the ops from whoever stands between.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace taco {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::shared_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
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
  std::vector<int64_t> rows_to_warm(int64_t most) const override { return inner_->rows_to_warm(most); }
  void begin_step(const StepShape& shape) override { inner_->begin_step(shape); }
  int host_threads() const override { return inner_->host_threads(); }
  void host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) override {
    inner_->host_parallel(count, fn);
  }
  std::unique_ptr<Linear> prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                         const LinearOptions& options) override {
    return inner_->prepare_linear(parts, bias, options);
  }
  std::unique_ptr<Embedding> prepare_embedding(const HostMatrix& table, DType compute) override {
    return inner_->prepare_embedding(table, compute);
  }
  void embedding(const EmbeddingParams& p) override { inner_->embedding(p); }
  void norm(const NormParams& p) override { inner_->norm(p); }
  void linear(const LinearParams& p) override { inner_->linear(p); }
  void rope_and_cache(const RopeAndCacheParams& p) override { inner_->rope_and_cache(p); }
  void attention(const AttentionParams& p) override { inner_->attention(p); }
  void moe(const MoeParams& p) override { inner_->moe(p); }
  void gather_rows(const GatherRowsParams& p) override { inner_->gather_rows(p); }
  void scale_logits(const ScaleLogitsParams& p) override { inner_->scale_logits(p); }
  void mask_logits(const MaskLogitsParams& p) override { inner_->mask_logits(p); }
  void copy_blocks(const CopyBlocksParams& p) override { inner_->copy_blocks(p); }
  void copy_slots(const CopySlotsParams& p) override { inner_->copy_slots(p); }
  bool samples() const override { return inner_->samples(); }
  void sample(const SampleParams& p) override { inner_->sample(p); }
  void patch_ids(const PatchIdsParams& p) override { inner_->patch_ids(p); }

 protected:
  std::shared_ptr<Backend> inner_;
};

}  // namespace taco
