#include "spec/speculation_stats.h"

#include <gtest/gtest.h>

namespace taco {
namespace {

// A chain of `length` drafts, the last one at node `length`.
DraftTree chain(int length, DraftSource source = DraftSource::kTurboLocal) {
  DraftTree tree;
  tree.reset(1);
  for (int i = 0; i < length; ++i) tree.add(i, 10 + i, 0.5f, source);
  return tree;
}

TEST(SpeculationMeter, MeansOverSequencesOfRatiosNotRatiosOfMeans) {
  SpeculationMeter meter;
  SequenceSpeculation a, b, c;
  meter.count(a, chain(4), 4);  // a: 2 iterations, 1 hit, 4 of 6 drafted
  meter.count(a, chain(2), 0);
  for (int i = 0; i < 4; ++i) meter.count(b, chain(0), 0);  // b: 4 iterations, 1 of 1 drafted in a fifth
  meter.count(b, chain(1), 1);
  meter.count(c, chain(0), 0);  // c: nothing was ever drafted

  const HitAverages& m = meter.stats().averages;
  EXPECT_DOUBLE_EQ(m.num_iters, 8.0 / 3);
  EXPECT_DOUBLE_EQ(m.hit_iters, 2.0 / 3);
  EXPECT_DOUBLE_EQ(m.hit_len, 5.0 / 3);
  EXPECT_DOUBLE_EQ(m.invalid_len, 2.0 / 3);
  EXPECT_DOUBLE_EQ(m.hit_rate, (1.0 / 2 + 1.0 / 5 + 0) / 3);
  EXPECT_DOUBLE_EQ(m.global_average_hit_len, (4.0 / 2 + 1.0 / 5 + 0) / 3);
  EXPECT_DOUBLE_EQ(m.valid_average_hit_len, (4.0 + 1.0) / 2);  // c has no hit: it does not count
  EXPECT_DOUBLE_EQ(m.hit_valid_rate, (4.0 / 6 + 1.0) / 2);     // nor drafts
}

TEST(SpeculationMeter, ASequenceKeepsItsOwnFigures) {
  SpeculationMeter meter;
  SequenceSpeculation s;
  meter.count(s, chain(3), 3);
  meter.count(s, chain(3), 1);
  meter.count(s, chain(2), 0);
  meter.count(s, chain(0), 0);
  EXPECT_EQ(s.iterations, 4u);
  EXPECT_EQ(s.hit_iterations, 2u);
  EXPECT_EQ(s.drafted, 8u);
  EXPECT_EQ(s.accepted, 4u);
  EXPECT_EQ(s.accepted_at_least, (std::vector<uint32_t>{4, 2, 1, 1}));
}

TEST(SpeculationMeter, CountsNodesBySourceAndHitsByTheSourceOfTheFirst) {
  DraftTree tree;
  tree.reset(1);
  const int a = tree.add(0, 5, 0.6f, DraftSource::kTurboLocal);
  const int b = tree.add(a, 6, 0.5f, DraftSource::kTurboGlobal);
  tree.add(0, 7, 0.2f, DraftSource::kRawGlobal);
  SpeculationMeter meter;
  SequenceSpeculation s;
  meter.count(s, tree, b);
  meter.count(s, tree, 3);
  meter.count(s, tree, 0);

  const SpeculationStats& stats = meter.stats();
  auto at = [](const auto& array, DraftSource source) { return array[static_cast<size_t>(source)]; };
  EXPECT_EQ(stats.drafted, 9u);
  EXPECT_EQ(stats.accepted, 3u);
  EXPECT_EQ(stats.possible, 9u);  // three times 1 + 2
  EXPECT_EQ(at(stats.drafted_by_source, DraftSource::kTurboLocal), 3u);
  EXPECT_EQ(at(stats.drafted_by_source, DraftSource::kTurboGlobal), 3u);
  EXPECT_EQ(at(stats.accepted_by_source, DraftSource::kTurboLocal), 1u);
  EXPECT_EQ(at(stats.accepted_by_source, DraftSource::kTurboGlobal), 1u);
  EXPECT_EQ(at(stats.accepted_by_source, DraftSource::kRawGlobal), 1u);
  EXPECT_EQ(at(stats.hit_lengths, DraftSource::kTurboLocal)[2], 1u);
  EXPECT_EQ(at(stats.hit_lengths, DraftSource::kRawGlobal)[1], 1u);
  EXPECT_EQ(at(stats.hit_lengths, DraftSource::kRoot)[0], 1u);
}

TEST(SpeculationMeter, LongHitsShareTheLastBucket) {
  SpeculationMeter meter;
  SequenceSpeculation s;
  meter.count(s, chain(16), 16);
  meter.count(s, chain(63), 63);
  EXPECT_EQ(meter.stats().hit_lengths[static_cast<size_t>(DraftSource::kTurboLocal)][16], 2u);
  EXPECT_EQ(s.accepted_at_least.size(), 64u);
}

TEST(SpeculationMeter, ReportsAtMultiplesOfTheInterval) {
  SpeculationMeter meter(3);
  SequenceSpeculation a, b;
  for (int i = 0; i < 3; ++i) meter.count(a, chain(2), 2);
  EXPECT_EQ(meter.stats().reports, 1u);
  EXPECT_DOUBLE_EQ(meter.stats().reported.num_iters, 3.0);
  meter.count(b, chain(2), 0);
  meter.count(b, chain(2), 0);
  EXPECT_EQ(meter.stats().reports, 1u);
  EXPECT_DOUBLE_EQ(meter.stats().reported.num_iters, 3.0);  // as it was then
  EXPECT_DOUBLE_EQ(meter.stats().averages.num_iters, 2.5);
  meter.count(b, chain(2), 0);
  EXPECT_EQ(meter.stats().reports, 2u);
  EXPECT_DOUBLE_EQ(meter.stats().reported.hit_rate, 0.5);
}

TEST(SpeculationMeter, MeansStayExactOverManyChanges) {
  SpeculationMeter meter;
  std::vector<SequenceSpeculation> sequences(100);
  uint64_t state = 1;
  for (int i = 0; i < 200000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const int drafted = static_cast<int>(state >> 60);
    const int accepted =
        drafted > 0 ? static_cast<int>((state >> 40) % static_cast<uint64_t>(drafted + 1)) : 0;
    meter.count(sequences[(state >> 20) % 100], chain(drafted), accepted);
  }
  double rate = 0;
  for (const SequenceSpeculation& s : sequences) rate += static_cast<double>(s.accepted) / s.drafted / 100;
  EXPECT_NEAR(meter.stats().averages.hit_valid_rate, rate, 1e-9);
}

}  // namespace
}  // namespace taco
