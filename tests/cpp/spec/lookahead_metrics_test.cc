// The figures of the log line, from counts worked out by hand.
#include "spec/lookahead/lookahead_metrics.h"

#include <gtest/gtest.h>

#include "spec/lookahead/lookahead_drafter.h"

namespace taco {
namespace {

TEST(LookaheadMetrics, TheLineIsByteForByteTheDocuments) {
  LookaheadStats stats;
  stats.num_iters = 10785;
  stats.hit_iters = 8836.445;
  stats.hit_len = 16887.065;
  stats.invalid_len = 3936.295;
  stats.hit_rate = 0.8249;
  stats.global_average_hit_len = 1.5883;
  stats.valid_average_hit_len = 1.9117;
  stats.hit_valid_rate = 0.8135;
  EXPECT_EQ(metrics_line(stats),
            "num_iters: 10785.0000, hit_iters:8836.4450, hit_len: 16887.0650, invalid_len: 3936.2950, "
            "hit_rate: 0.8249, global_average_hit_len: 1.5883, valid_average_hit_len: 1.9117, "
            "hit_valid_rate: 0.8135");
}

DraftTree chain(int drafts) {
  DraftTree tree;
  tree.reset(0);
  for (int i = 0; i < drafts; ++i) tree.add(i, i, 0.5f, DraftSource::kOther);
  return tree;
}

TEST(LookaheadMetrics, RatiosAreMeansOverSequences) {
  LookaheadConfig config;
  config.voc_size = 100;
  config.is_debug = true;
  config.log_interval = 6;
  LookaheadDrafter drafter(config, size_t{4} << 20);
  for (uint64_t id : {1, 2, 3, 4}) drafter.begin(id, 0, {});
  // 1: four iterations, two of them hit, 5 tokens of 10 drafted.
  drafter.verified(1, chain(4), 3);
  drafter.verified(1, chain(3), 2);
  drafter.verified(1, chain(3), 0);
  drafter.verified(1, chain(0), 0);
  drafter.end(1);
  // 2: one iteration, a hit, 1 token of 1. 3: one without a draft. 4: none at all.
  drafter.verified(2, chain(1), 1);
  EXPECT_TRUE(drafter.take_log_lines().empty());
  drafter.verified(3, chain(0), 0);
  const auto lines = drafter.take_log_lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0],
            "num_iters: 2.0000, hit_iters:1.0000, hit_len: 2.0000, invalid_len: 1.6667, hit_rate: 0.5000, "
            "global_average_hit_len: 0.7500, valid_average_hit_len: 1.7500, hit_valid_rate: 0.7500");
  EXPECT_TRUE(drafter.take_log_lines().empty());
  const LookaheadStats stats = drafter.stats();
  EXPECT_EQ(stats.sequences, 3);
  EXPECT_EQ(stats.total.iterations, 6);
  EXPECT_EQ(stats.total.hit_tokens, 6);
  EXPECT_EQ(stats.total.drafted, 11);
  EXPECT_EQ(stats.hit_lengths[0], 3);
  EXPECT_EQ(stats.hit_lengths[1], 1);
  EXPECT_EQ(stats.hit_lengths[3], 1);
  // Lines that nobody fetches do not pile up.
  for (int i = 0; i < 600; ++i) drafter.verified(2, chain(1), 1);
  EXPECT_EQ(drafter.take_log_lines().size(), 16u);
}

}  // namespace
}  // namespace taco
