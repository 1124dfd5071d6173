#include "spec/draft_calibration.h"

#include <algorithm>
#include <bit>

namespace taco {
namespace {

// Also what makes a number of NaN.
float clamp_probability(float p) { return p > 0 ? std::min(p, 1.0f) : 0.0f; }

}  // namespace

void DraftCalibration::Count::add(float p, bool taken, float memory) {
  const float keep = 1 - 1 / memory;
  expected = expected * keep + p;
  accepted = accepted * keep + (taken ? 1.0f : 0.0f);
}

// The exponent and the first bit of the mantissa of a float number the half octaves.
int DraftCalibration::bin_of(float p) {
  constexpr int kOne = 127 << 1;  // 1.0f
  const int half_octave = static_cast<int>(std::bit_cast<uint32_t>(p) >> 22);
  return std::clamp(kOne - half_octave, 0, kBins - 1);
}

void DraftCalibration::observe(DraftSource source, float p, bool accepted) {
  p = clamp_probability(p);
  if (p == 0) return;
  const size_t s = static_cast<size_t>(source);
  bins_[s][bin_of(p)].add(p, accepted, kMemory);
  sources_[s].add(p, accepted, kSourceMemory);
}

void DraftCalibration::observe(const DraftTree& tree, uint64_t known, uint64_t accepted) {
  for (int i = 1; i < tree.size; ++i) {
    const uint64_t bit = uint64_t{1} << i;
    if (known & bit) observe(tree.source[i], tree.p[i], accepted & bit);
  }
}

float DraftCalibration::ratio(int source, int bin) const {
  const Count& all = sources_[source];
  const Count& mine = bins_[source][bin];
  const float prior = (all.accepted + kPrior) / (all.expected + kPrior);
  return (mine.accepted + kPrior * prior) / (mine.expected + kPrior);
}

float DraftCalibration::calibrated(DraftSource source, float p) const {
  p = clamp_probability(p);
  return std::min(1.0f, p * ratio(static_cast<int>(source), bin_of(p)));
}

void DraftCalibration::calibrate(const DraftTree& tree, std::span<float> p) const {
  if (tree.size == 0) return;
  p[0] = 1;
  for (int i = 1; i < tree.size; ++i)
    p[i] = std::min(calibrated(tree.source[i], tree.p[i]), p[tree.parent[i]]);
}

float DraftCalibration::raw(float p) const {
  float least = clamp_probability(p);
  if (least == 0) return 0;
  // The smallest estimate that some source's evidence lifts to p; sources never seen are believed.
  const float believed = least;
  float found = 1;
  bool any = false;
  for (int s = 1; s < kNumDraftSources; ++s) {
    if (sources_[s].expected == 0) continue;
    any = true;
    for (int bin = kBins - 1; bin >= 0; --bin) {
      const float r = ratio(s, bin);
      // The bin's estimates: (low, high].
      const float high =
          bin == 0 ? 1.0f : std::bit_cast<float>(static_cast<uint32_t>((127 << 1) - bin + 1) << 22);
      if (r <= 0 || high * r < p) continue;
      const float low = std::bit_cast<float>(static_cast<uint32_t>((127 << 1) - bin) << 22);
      found = std::min(found, bin == kBins - 1 ? p / r : std::max(low, p / r));
      break;
    }
  }
  return any ? found : believed;
}

}  // namespace taco
