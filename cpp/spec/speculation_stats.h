// What speculation did: counters of a sequence and of the engine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "spec/draft_tree.h"

namespace taco {

// An iteration is a step of one sequence that gave it tokens; the one that ends its prompt is none.
struct SequenceSpeculation {
  uint32_t iterations = 0, hit_iterations = 0;  // hit: at least one drafted token was accepted
  uint32_t drafted = 0, accepted = 0;           // tokens; drafted counts all nodes of the verified trees
  // [d]: iterations that accepted at least d drafted tokens, [0] all of them. Empty: no iteration.
  std::vector<uint32_t> accepted_at_least;
};

// Means over the sequences so far, the unfinished included. A ratio is the mean of the sequences' ratios,
// over those that have one.
struct HitAverages {
  double num_iters = 0, hit_iters = 0;
  double hit_len = 0, invalid_len = 0;                           // accepted, and drafted in vain
  double hit_rate = 0;                                           // hit_iters / num_iters
  double global_average_hit_len = 0, valid_average_hit_len = 0;  // hit_len / num_iters, / hit_iters
  double hit_valid_rate = 0;                                     // hit_len / drafted
};

struct SpeculationStats {
  static constexpr int kHitLengths = 17;  // 0 to 15, and 16 or more

  uint64_t iterations = 0, drafted_iterations = 0, hit_iterations = 0;
  uint64_t drafted = 0, accepted = 0;
  uint64_t possible =
      0;  // tokens that the iterations had given if all of each tree's longest path were right
  std::array<uint64_t, kNumDraftSources> drafted_by_source{}, accepted_by_source{};
  // Iterations by the source of the first accepted token (kRoot: none was) and by the number accepted.
  std::array<std::array<uint64_t, kHitLengths>, kNumDraftSources> hit_lengths{};

  HitAverages averages;
  uint64_t reports = 0;  // multiples of the log interval that `iterations` has passed
  HitAverages reported;  // the averages at the last of them

  double draft_seconds = 0;  // that steps waited for drafts
  size_t cache_bytes = 0;    // held by the drafter
  // Step time per token without speculation over step time per token with it; 0: not known.
  double expected_speedup = 0, realised_speedup = 0;
  // Of the budget controller; draft_budget.h.
  uint64_t ordinary_steps = 0, speculative_steps = 0;
  double hidden_draft_seconds = 0, ordinary_step_seconds = 0, allowance = 0;
};

// Counts iterations. Belongs to the engine thread.
class SpeculationMeter {
 public:
  // log_interval: in iterations, for SpeculationStats::reports; 0: none.
  explicit SpeculationMeter(int64_t log_interval = 0) : log_interval_(log_interval) {}

  // One iteration of a sequence: the tree that was verified (the root alone: an ordinary step) and the
  // deepest node that was accepted (0: none).
  void count(SequenceSpeculation& sequence, const DraftTree& tree, int deepest_accepted);

  // averages, reports and all counters; draft_seconds, cache_bytes and speedups belong to the caller.
  SpeculationStats& stats() { return stats_; }

 private:
  struct Mean {  // of one value for each sequence, as it changes
    double sum = 0;
    uint64_t number = 0;
    double value() const { return number > 0 ? sum / static_cast<double>(number) : 0.0; }
    // The sequence's quotient was before (if its denominator was not 0) and is now.
    void replace(uint32_t old_dividend, uint32_t old_divisor, uint32_t dividend, uint32_t divisor);
  };
  void update_averages();

  int64_t log_interval_;
  uint64_t sequences_ = 0;
  Mean hit_rate_, global_length_, valid_length_, valid_rate_;
  SpeculationStats stats_;
};

}  // namespace taco
