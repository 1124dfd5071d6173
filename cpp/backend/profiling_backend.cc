#include "backend/profiling_backend.h"

#include <chrono>

namespace taco {

template <typename Fn>
void ProfilingBackend::timed(const std::string& op, Fn&& fn) {
  auto begin = std::chrono::steady_clock::now();
  fn();
  inner_->synchronize();
  OpTime& t = times_[op];
  ++t.calls;
  t.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void ProfilingBackend::host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) {
  timed("host_parallel", [&] { inner_->host_parallel(count, fn); });
}
void ProfilingBackend::linear(const LinearParams& p) {
  timed("linear " + std::to_string(p.weight->in_features()) + "x" + std::to_string(p.weight->out_features()),
        [&] { inner_->linear(p); });
}
void ProfilingBackend::embedding(const EmbeddingParams& p) {
  timed("embedding", [&] { inner_->embedding(p); });
}
void ProfilingBackend::norm(const NormParams& p) {
  timed("norm", [&] { inner_->norm(p); });
}
void ProfilingBackend::rope_and_cache(const RopeAndCacheParams& p) {
  timed("rope_and_cache", [&] { inner_->rope_and_cache(p); });
}
void ProfilingBackend::attention(const AttentionParams& p) {
  timed("attention", [&] { inner_->attention(p); });
}
void ProfilingBackend::moe(const MoeParams& p) {
  timed("moe", [&] { inner_->moe(p); });
}
void ProfilingBackend::gather_rows(const GatherRowsParams& p) {
  timed("gather_rows", [&] { inner_->gather_rows(p); });
}
void ProfilingBackend::scale_logits(const ScaleLogitsParams& p) {
  timed("scale_logits", [&] { inner_->scale_logits(p); });
}
void ProfilingBackend::mask_logits(const MaskLogitsParams& p) {
  timed("mask_logits", [&] { inner_->mask_logits(p); });
}
void ProfilingBackend::sample(const SampleParams& p) {
  timed("sample", [&] { inner_->sample(p); });
}
void ProfilingBackend::copy_slots(const CopySlotsParams& p) {
  timed("copy_slots", [&] { inner_->copy_slots(p); });
}

void ProfilingBackend::copy_blocks(const CopyBlocksParams& p) {
  timed("copy_blocks", [&] { inner_->copy_blocks(p); });
}

}  // namespace taco
