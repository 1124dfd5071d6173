// Corrects a drafter's estimates by what became of its drafts.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "spec/draft_tree.h"

namespace taco {

// For each source and each range of estimates (half an octave wide) the ratio of accepted nodes to expected
// ones over the last few hundred; a range without evidence takes its source's ratio, a source without
// evidence is believed. Deterministic; one thread.
class DraftCalibration {
 public:
  // A node with this estimate, and whether the text went on with its path.
  void observe(DraftSource source, float p, bool accepted);
  // Every node but the root: accepted where its bit is set in `accepted`, left out where it is not in
  // `known`.
  void observe(const DraftTree& tree, uint64_t known, uint64_t accepted);

  float calibrated(DraftSource source, float p) const;
  // p of all nodes, [tree.size]: calibrated, within [0, 1], no node's above its parent's.
  void calibrate(const DraftTree& tree, std::span<float> p) const;

  // An estimate that is calibrated to less than this is below `raw(p)` from every source.
  float raw(float p) const;

 private:
  static constexpr int kBins = 20;       // the last: everything smaller
  static constexpr float kMemory = 384;  // nodes that a bin remembers
  static constexpr float kSourceMemory = 1536;
  static constexpr float kPrior = 2;  // accepted nodes that the prior counts for

  struct Count {
    float expected = 0, accepted = 0;
    void add(float p, bool taken, float memory);
  };
  static int bin_of(float p);
  float ratio(int source, int bin) const;

  std::array<std::array<Count, kBins>, kNumDraftSources> bins_{};
  std::array<Count, kNumDraftSources> sources_{};
};

}  // namespace taco
