// How well drafts hit: sums for each sequence, and the figures that the log line shows.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>

#include "spec/draft_tree.h"

namespace taco {

// Of one sequence. Iterations are its steps after the prompt.
struct HitCounts {
  int64_t iterations = 0;
  int64_t hit_iterations = 0;  // in which at least one drafted token was taken
  int64_t hit_tokens = 0;      // drafted tokens that were taken
  int64_t drafted = 0;         // nodes that were verified

  void count(const DraftTree& tree, int accepted) {
    ++iterations;
    hit_iterations += accepted > 0;
    hit_tokens += accepted;
    drafted += tree.num_drafts();
  }
};

// Over sequences. The means are those of the log line: means over sequences of a sequence's sums and ratios,
// where a ratio without a denominator is left out.
struct LookaheadStats {
  int64_t sequences = 0;  // that had an iteration
  HitCounts total;        // sums: hit_tokens / iterations is the ratio over all steps
  double num_iters = 0, hit_iters = 0, hit_len = 0, invalid_len = 0;
  double hit_rate = 0, global_average_hit_len = 0, valid_average_hit_len = 0, hit_valid_rate = 0;
  std::array<int64_t, DraftTree::kMaxNodes> hit_lengths{};  // iterations by the number of tokens taken
  std::array<int64_t, kNumDraftSources> drafted_by_source{};
  std::array<int64_t, kNumDraftSources> accepted_by_source{};
  // Of the caches.
  int64_t global_keys = 0, evictions = 0;
  size_t bytes = 0, peak_bytes = 0, local_bytes = 0;
  int64_t learned_tokens = 0, waiting_tokens = 0;  // of texts, by the cache that sequences share
};

// Sums and ratios of many sequences.
class HitSums {
 public:
  void add(const HitCounts& counts);
  // Fills the totals and the means.
  void tell(LookaheadStats& stats) const;

 private:
  int64_t sequences_ = 0;
  HitCounts total_;
  double hit_rate_ = 0, average_hit_ = 0, valid_hit_ = 0, valid_rate_ = 0;
  int64_t with_hits_ = 0, with_drafts_ = 0;
};

// "num_iters: 10785.0000, hit_iters:8836.4450, hit_len: 16887.0650, invalid_len: 3936.2950, hit_rate: 0.8249,
// global_average_hit_len: 1.5883, valid_average_hit_len: 1.9117, hit_valid_rate: 0.8135", in one line.
std::string metrics_line(const LookaheadStats& stats);

}  // namespace taco
