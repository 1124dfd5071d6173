// How often a kind of guess comes true, learned from the text itself as it arrives.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace taco {

// A running frequency that forgets: events count half after some 4096 more.
struct Rate {
  float p, n;

  void learn(bool hit) {
    constexpr float kMemory = 5909.0f;  // 4096 / ln 2
    if (n < kMemory) n += 1.0f;
    p += ((hit ? 1.0f : 0.0f) - p) / n;
  }
};

// Rates of fine classes, each backed by the rate of the coarse class that it belongs to for as long as it has
// seen little itself.
class RateTable {
 public:
  RateTable(int coarse, int fine) : coarse_(coarse, {0.5f, kPrior}), fine_(fine, {0.0f, 0.0f}) {}

  void set_prior(int coarse, float p) { coarse_[coarse] = {p, kPrior}; }
  float estimate(int coarse, int fine) const {
    const Rate& c = coarse_[coarse];
    const Rate& f = fine_[fine];
    return (f.p * f.n + c.p * kPrior) / (f.n + kPrior);
  }
  // For saving: the coarse classes, then the fine ones.
  std::span<Rate> coarse() { return coarse_; }
  std::span<Rate> fine() { return fine_; }
  void learn(int coarse, int fine, bool hit) {
    coarse_[coarse].learn(hit);
    fine_[fine].learn(hit);
  }

 private:
  static constexpr float kPrior = 8.0f;  // events that a belief is worth before anything is seen

  std::vector<Rate> coarse_, fine_;
};

}  // namespace taco
