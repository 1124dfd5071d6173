#include "spec/lookahead/lookahead_metrics.h"

#include <cstdio>

namespace taco {
namespace {

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

}  // namespace

void HitSums::add(const HitCounts& counts) {
  if (counts.iterations == 0) return;
  ++sequences_;
  total_.iterations += counts.iterations;
  total_.hit_iterations += counts.hit_iterations;
  total_.hit_tokens += counts.hit_tokens;
  total_.drafted += counts.drafted;
  const auto iterations = static_cast<double>(counts.iterations),
             hits = static_cast<double>(counts.hit_tokens);
  hit_rate_ += static_cast<double>(counts.hit_iterations) / iterations;
  average_hit_ += hits / iterations;
  if (counts.hit_iterations > 0) {
    ++with_hits_;
    valid_hit_ += hits / static_cast<double>(counts.hit_iterations);
  }
  if (counts.drafted > 0) {
    ++with_drafts_;
    valid_rate_ += hits / static_cast<double>(counts.drafted);
  }
}

void HitSums::tell(LookaheadStats& stats) const {
  const auto n = static_cast<double>(sequences_);
  stats.sequences = sequences_;
  stats.total = total_;
  stats.num_iters = ratio(static_cast<double>(total_.iterations), n);
  stats.hit_iters = ratio(static_cast<double>(total_.hit_iterations), n);
  stats.hit_len = ratio(static_cast<double>(total_.hit_tokens), n);
  stats.invalid_len = ratio(static_cast<double>(total_.drafted - total_.hit_tokens), n);
  stats.hit_rate = ratio(hit_rate_, n);
  stats.global_average_hit_len = ratio(average_hit_, n);
  stats.valid_average_hit_len = ratio(valid_hit_, static_cast<double>(with_hits_));
  stats.hit_valid_rate = ratio(valid_rate_, static_cast<double>(with_drafts_));
}

std::string metrics_line(const LookaheadStats& s) {
  char line[512];
  const int n =
      std::snprintf(line, sizeof(line),
                    "num_iters: %.4f, hit_iters:%.4f, hit_len: %.4f, invalid_len: %.4f, hit_rate: %.4f, "
                    "global_average_hit_len: %.4f, valid_average_hit_len: %.4f, hit_valid_rate: %.4f",
                    s.num_iters, s.hit_iters, s.hit_len, s.invalid_len, s.hit_rate, s.global_average_hit_len,
                    s.valid_average_hit_len, s.hit_valid_rate);
  return std::string(line, n);
}

}  // namespace taco
