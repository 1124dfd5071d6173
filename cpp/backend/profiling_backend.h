// A backend that times every op of another one.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backend/forwarding_backend.h"

namespace taco {

struct OpTime {
  int64_t calls = 0;
  double seconds = 0;
};

// Synchronises after each op, so the sum is a little above the unprofiled run. Linears are told apart by
// their shape ("linear 576x1536") and everything else by its name.
class ProfilingBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  const std::map<std::string, OpTime>& times() const { return times_; }
  void reset() { times_.clear(); }

  std::string description() const override { return inner_->description() + ", profiling"; }
  void host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) override;
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
  void sample(const SampleParams&) override;

 private:
  template <typename Fn>
  void timed(const std::string& op, Fn&& fn);

  std::map<std::string, OpTime> times_;
};

}  // namespace taco
