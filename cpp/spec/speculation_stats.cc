#include "spec/speculation_stats.h"

#include <algorithm>

#include "base/error.h"

namespace taco {

void SpeculationMeter::Mean::replace(uint32_t old_dividend, uint32_t old_divisor, uint32_t dividend,
                                     uint32_t divisor) {
  if (old_divisor > 0)
    sum -= static_cast<double>(old_dividend) / old_divisor;
  else if (divisor > 0)
    ++number;
  if (divisor > 0) sum += static_cast<double>(dividend) / divisor;
}

void SpeculationMeter::count(SequenceSpeculation& sequence, const DraftTree& tree, int deepest_accepted) {
  TACO_CHECK(deepest_accepted >= 0 && deepest_accepted < std::max(tree.size, 1));
  const uint32_t drafted = static_cast<uint32_t>(tree.num_drafts());
  const uint32_t length = tree.size > 0 ? tree.depth[deepest_accepted] : 0;
  int longest = 0;
  DraftSource first = DraftSource::kRoot;
  for (int i = 1; i < tree.size; ++i) {
    const auto source = static_cast<size_t>(tree.source[i]);
    const bool accepted = tree.ancestors[deepest_accepted] >> i & 1;
    longest = std::max<int>(longest, tree.depth[i]);
    ++stats_.drafted_by_source[source];
    if (accepted) ++stats_.accepted_by_source[source];
    if (accepted && tree.parent[i] == 0) first = tree.source[i];
  }

  const uint32_t old_iterations = sequence.iterations, old_hits = sequence.hit_iterations;
  const uint32_t old_drafted = sequence.drafted, old_accepted = sequence.accepted;
  if (old_iterations == 0) ++sequences_;
  ++sequence.iterations;
  sequence.hit_iterations += length > 0;
  sequence.drafted += drafted;
  sequence.accepted += length;
  if (sequence.accepted_at_least.size() <= length) sequence.accepted_at_least.resize(length + 1);
  for (uint32_t d = 0; d <= length; ++d) ++sequence.accepted_at_least[d];

  ++stats_.iterations;
  stats_.drafted_iterations += drafted > 0;
  stats_.hit_iterations += length > 0;
  stats_.drafted += drafted;
  stats_.accepted += length;
  stats_.possible += 1 + static_cast<uint64_t>(longest);
  const uint32_t bucket = std::min<uint32_t>(length, SpeculationStats::kHitLengths - 1);
  ++stats_.hit_lengths[static_cast<size_t>(first)][bucket];

  hit_rate_.replace(old_hits, old_iterations, sequence.hit_iterations, sequence.iterations);
  global_length_.replace(old_accepted, old_iterations, sequence.accepted, sequence.iterations);
  valid_length_.replace(old_accepted, old_hits, sequence.accepted, sequence.hit_iterations);
  valid_rate_.replace(old_accepted, old_drafted, sequence.accepted, sequence.drafted);
  update_averages();
  if (log_interval_ > 0 && stats_.iterations % static_cast<uint64_t>(log_interval_) == 0) {
    ++stats_.reports;
    stats_.reported = stats_.averages;
  }
}

void SpeculationMeter::update_averages() {
  const auto number = static_cast<double>(sequences_);
  HitAverages& a = stats_.averages;
  a.num_iters = static_cast<double>(stats_.iterations) / number;
  a.hit_iters = static_cast<double>(stats_.hit_iterations) / number;
  a.hit_len = static_cast<double>(stats_.accepted) / number;
  a.invalid_len = static_cast<double>(stats_.drafted - stats_.accepted) / number;
  a.hit_rate = hit_rate_.value();
  a.global_average_hit_len = global_length_.value();
  a.valid_average_hit_len = valid_length_.value();
  a.hit_valid_rate = valid_rate_.value();
}

}  // namespace taco
