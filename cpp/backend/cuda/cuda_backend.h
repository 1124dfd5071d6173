// The CUDA backend: the ops of backend.h on one device and one stream.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/context.h"
#include "backend/cuda/offload.h"

namespace taco::cuda {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options);
  ~CudaBackend() override;

  std::string name() const override;
  std::string description() const override;
  DeviceMemory memory() const override;
  void* allocate(size_t bytes, bool zero) override;
  void release(void* data) noexcept override;
  void synchronize() override;
  void upload(void* device, const void* source, size_t bytes) override;
  void download(void* host, const void* source, size_t bytes) override;
  DType activation_dtype(DType model) const override { return model; }
  void* allocate_host(size_t bytes) override;
  void release_host(void* data) noexcept override;
  void upload_async(void* device, const void* source, size_t bytes) override;
  void download_async(void* host, const void* source, size_t bytes) override;
  void upload_rows_async(void* device, size_t pitch, const void* source, size_t width, int64_t rows) override;
  uint64_t mark() override;
  void wait(uint64_t mark) override;
  std::unique_ptr<CopyStream> make_copy_stream() override;
  std::shared_ptr<Fence> fence() override;
  void wait_for(const Fence& fence) override;
  void copy_rows(CopyDirection direction, const RowCopies& copies) override;
  bool needs_pinning() const override { return true; }
  void pin_host(void* data, size_t bytes) override;
  void unpin_host(void* data) noexcept override;
  std::vector<int64_t> rows_to_warm(int64_t most) const override;
  void begin_step(const StepShape& shape) override { attention_->begin_step(shape); }
  bool has_graphs() const override { return true; }
  uint64_t memory_generation() const override { return Scratch::generation(); }
  std::unique_ptr<Graph> capture(const std::function<void()>& ops) override;
  void replay(Graph& graph) override;

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
  bool samples() const override { return true; }
  void sample(const SampleParams&) override;
  void patch_ids(const PatchIdsParams&) override;

  Context& context() { return ctx_; }

 private:
  static constexpr int kMarks = 16;
  std::string device_name_;
  Context ctx_;
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<Offloader> offloader_;  // null: all weights are on the device
  cudaEvent_t events_[kMarks] = {};
  uint64_t marks_ = 0;
};

}  // namespace taco::cuda
