// Choosing a step's tokens on the device: what the host must say beforehand, and what comes back.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "exec/executor.h"

namespace taco {

class DeviceSampler {
 public:
  // max_rows: tokens that one step chooses at most.
  DeviceSampler(std::shared_ptr<Backend> backend, int vocab_size, int max_rows);

  // Whether every rule of this sequence can be met on the device.
  static bool can_sample(const SamplingParams& params) { return params.logits_processor == nullptr; }

  struct Pick {
    const Sequence* sequence;
    int32_t logits_row;                // of the logits buffer
    const DraftTree* draft = nullptr;  // the token after the path to `node`, as if the sequence had taken it
    int node = 0;
  };
  // Queues the choice of one token for each pick and the way back of the results.
  void submit(const std::vector<Pick>& picks, const float* logits);
  // The results of the oldest submit; waits for it. `samples`: in the order of its picks.
  void collect(std::vector<SampledToken>& samples);

  // Results on the device, of the last submit, in the order of its picks.
  const SampleResult* results() const { return static_cast<const SampleResult*>(d_results_.get()); }

 private:
  static constexpr int kSlots = 2;
  struct Slot {
    std::shared_ptr<void> rows, results, top, lists;
    size_t top_capacity = 0, lists_capacity = 0;
    std::vector<std::pair<SeqId, int>> sequences;  // and the number of logprobs wanted
    int top_width = 0;
    uint64_t mark = 0;
  };
  // depth: drafted tokens that `sequence` lacks, and its rules do not look at.
  void describe(const Sequence& sequence, int depth, SampleRow& row);
  void add_penalties(const Sequence& sequence, SampleRow& row);

  std::shared_ptr<Backend> backend_;
  int vocab_size_, max_rows_;
  std::shared_ptr<void> d_rows_, d_results_, d_top_, d_lists_;
  size_t d_top_capacity_ = 0, d_lists_capacity_ = 0;
  Slot slots_[kSlots];
  int submitted_ = 0, collected_ = 0;
  // Of the submit at hand.
  std::vector<int32_t> allowed_;
  std::vector<TokenEdit> edits_;
  std::vector<TokenCount> counts_;
  std::vector<int32_t> seen_at_;  // [vocab] places in counts_, -1 between calls; empty until needed
};

}  // namespace taco
