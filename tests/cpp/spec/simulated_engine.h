// An engine in a nutshell: texts whose tokens a drafter guesses with known probabilities, and steps that take
// a known time. Everything is drawn from counters, so that two policies meet the same texts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "spec/draft_budget.h"

namespace taco::simulation {

inline double uniform(uint64_t a, uint64_t b, uint64_t c) {  // splitmix64 of a counter
  uint64_t x =
      a * 0x9E3779B97F4A7C15u + b * 0xD1B54A32D192ED03u + c * 0x8CB92BA72F3D8DD7u + 0x2545F4914F6CDD1Du;
  for (int i = 0; i < 2; ++i) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) * 0x1p-53;
}

struct World {
  int sequences = 1;
  int64_t kv_per_sequence = 600;
  bool runs_ahead = false;
  std::function<double(StepKind, const StepSize&)> seconds;
  double noise = 0.02;          // relative, of a step's time
  double outliers = 0.005;      // share of the steps that are measured 10 times too long
  double draft_seconds = 5e-6;  // for a sequence
  // What a clock shows in excess for a padded size's first runs (a speculative step's first, and an ordinary
  // one's first two: the second is recorded). They come once, and are not counted.
  std::vector<int> padding;  // none: there are no first runs
  double first_run = 0;
  int step_tokens = 8192;  // while a window begins
  // The probability that the drafter's first guess of the token at a position is right; its second guess is
  // right in half of the other cases that it has a chance in.
  std::function<double(uint64_t sequence, int64_t position, double time)> first_guess;
  // What it says instead of p.
  std::function<double(double p, double time)> estimate = [](double p, double) { return p; };
  uint64_t seed = 1;
};

struct Score {
  double tokens = 0, seconds = 0, ordinary_seconds = 0;
  double speedup() const { return ordinary_seconds / seconds; }
};

class Engine {
 public:
  explicit Engine(World world) : world_(std::move(world)), positions_(world_.sequences) {}

  // A policy without learning: nodes with p (the true one) of at least `least`; above 1: no speculation.
  Score run_fixed(int steps, double least) {
    Score score;
    for (int i = 0; i < steps; ++i) {
      const StepKind kind = least > 1 ? StepKind::kOrdinary : StepKind::kSpeculative;
      int drafts = 0;
      int64_t tokens = 0;
      for (int s = 0; s < world_.sequences; ++s) {
        DraftTree tree;
        draft(s, 0, true, tree);
        uint64_t keep = 1;
        for (int node = 1; node < tree.size; ++node)
          if (tree.p[node] >= least) keep |= uint64_t{1} << node;
        prune_and_lay_out(tree, keep);
        drafts += tree.num_drafts();
        tokens += verify(s, tree, nullptr);
      }
      const int n = world_.sequences;
      finish(score, kind, {n + drafts, n, world_.kv_per_sequence * n}, n, tokens,
             least > 1 ? 0 : world_.draft_seconds * n);
    }
    return score;
  }

  Score run(int steps, DraftBudget& budget) {
    Score score;
    for (int i = 0; i < steps; ++i) step(budget, world_.sequences, 0, score);
    return score;
  }

  // The same for requests that come together, of texts that were not there before: prompts are computed
  // first, as much of them in a step as there is room for, while those that are done with theirs generate.
  // Only the steps after that are counted.
  Score run_window(int steps, int prompt, DraftBudget& budget) {
    for (size_t s = 0; s < positions_.size(); ++s) {
      budget.end(id(static_cast<int>(s)));
      positions_[s] += 10000;
    }
    ++window_;
    Score start, score;
    const int64_t all = int64_t{prompt} * world_.sequences;
    for (int64_t computed = 0; computed < all;) {
      const int decoding = static_cast<int>(computed / prompt);
      const int64_t rows = std::min<int64_t>(all - computed, world_.step_tokens - decoding);
      step(budget, decoding, static_cast<int>(rows), start);
      computed += rows;
    }
    for (int i = 0; i < steps; ++i) step(budget, world_.sequences, 0, score);
    for (size_t s = 0; s < positions_.size(); ++s) budget.end(id(static_cast<int>(s)));
    return score;
  }
  int64_t drafts() const { return drafts_; }
  int64_t speculative_steps() const { return speculative_steps_; }
  double time() const { return time_; }

 private:
  uint64_t id(int sequence) const { return static_cast<uint64_t>(window_ * world_.sequences + sequence); }

  // The first `decoding` sequences get tokens; `prompt_rows` other rows.
  void step(DraftBudget& budget, int decoding, int prompt_rows, Score& score) {
    trees_.resize(static_cast<size_t>(decoding));
    pointers_.clear();
    ids_.clear();
    for (int s = 0; s < decoding; ++s) {
      trees_[s].reset(0);
      pointers_.push_back(&trees_[s]);
      ids_.push_back(id(s));
    }
    const int64_t kv = world_.kv_per_sequence * decoding;
    const DraftMode mode = budget.next(decoding, kv, prompt_rows);
    DraftDecision decision;
    double drafting = 0;
    if (mode != DraftMode::kNone) {
      const float least = budget.threshold(decoding, kv);
      for (int s = 0; s < decoding; ++s) draft(s, least, false, trees_[s]);
      drafting = world_.draft_seconds * decoding;
      budget.select(pointers_, ids_, prompt_rows, kv, 4096, decision);
    }
    StepOutcome outcome;
    std::vector<int32_t> committed;
    for (int s = 0; s < decoding; ++s) {
      committed.clear();
      int accepted = 0;
      outcome.tokens += verify(s, trees_[s], &accepted, &committed);
      budget.committed(ids_[s], committed);
      budget.verified(ids_[s], trees_[s], accepted);
    }
    const bool speculative = decision.speculative || (world_.runs_ahead && mode == DraftMode::kDraft);
    outcome.kind = speculative ? StepKind::kSpeculative : StepKind::kOrdinary;
    outcome.size = {decoding + prompt_rows + decision.drafts, decoding + (prompt_rows > 0), kv};
    outcome.decoding = decoding;
    outcome.other_rows = prompt_rows;
    // Shadows are made while the step runs, where anything is.
    const bool hidden = world_.runs_ahead && !speculative;
    (hidden ? outcome.hidden_draft_seconds : outcome.draft_seconds) = drafting;
    if (hidden) drafting = 0;
    outcome.seconds = finish(score, outcome.kind, outcome.size, decoding, outcome.tokens, drafting);
    budget.observe(outcome);
    drafts_ += decision.drafts;
    speculative_steps_ += speculative;
  }

  // 0: the first guess at this position is right, 1: the second, 2: neither.
  int outcome(int sequence, int64_t position) const {
    const double first = world_.first_guess(static_cast<uint64_t>(sequence), position, time_);
    const double u = uniform(world_.seed, static_cast<uint64_t>(sequence), static_cast<uint64_t>(position));
    return u < first ? 0 : u < first + (1 - first) / 4 ? 1 : 2;
  }
  // The token at a position, and guesses of it: numbered by the rank of the guess.
  static int32_t guess(int64_t position, int rank) { return static_cast<int32_t>(3 * position + rank); }

  void draft(int sequence, double least, bool truth, DraftTree& tree) {
    tree.reset(0);
    std::vector<double> p = {1.0};
    for (int node = 0; node < tree.size && tree.size < 32; ++node) {
      if (tree.depth[node] == 7) continue;
      const int64_t position = positions_[sequence] + tree.depth[node] + 1;
      const double first = world_.first_guess(static_cast<uint64_t>(sequence), position, time_);
      for (int rank = 0; rank < 2 && tree.size < 32; ++rank) {
        const double child = p[node] * (rank == 0 ? first : (1 - first) / 4);
        const double said = truth ? child : std::min(1.0, world_.estimate(child, time_));
        if (said < std::max(least, 0.002)) continue;
        tree.add(node, guess(position, rank), static_cast<float>(said), DraftSource::kTurboLocal);
        p.push_back(child);
      }
    }
  }

  int64_t verify(int sequence, const DraftTree& tree, int* deepest, std::vector<int32_t>* tokens = nullptr) {
    int64_t got = 0;
    for (int node = 0; node >= 0;) {
      const int64_t position = positions_[sequence] + ++got;
      const int32_t token = guess(position, outcome(sequence, position));
      if (tokens) tokens->push_back(token);
      node = tree.find_child(node, token);
      if (node > 0 && deepest) *deepest = node;
    }
    positions_[sequence] += got;
    return got;
  }

  // Returns what a clock would have shown.
  double finish(Score& score, StepKind kind, const StepSize& size, int decoding, int64_t tokens,
                double drafting) {
    // Running ahead begins with a step that nothing ran ahead of.
    const bool alone = world_.runs_ahead && after_speculative_;
    after_speculative_ = kind == StepKind::kSpeculative;
    double exact = world_.seconds(alone ? StepKind::kSpeculative : kind, size);
    const auto padded = std::lower_bound(world_.padding.begin(), world_.padding.end(), size.rows);
    double excess = 0;
    if (padded != world_.padding.end()) {
      int& runs = runs_[{kind, *padded}];
      if (++runs <= (kind == StepKind::kOrdinary ? 2 : 1)) excess = world_.first_run;
    }
    const double u = uniform(world_.seed + 77, ++clock_, 0), v = uniform(world_.seed + 78, clock_, 0);
    score.tokens += static_cast<double>(tokens);
    score.seconds += exact + drafting;
    if (decoding > 0) {
      const StepSize bare{decoding, decoding, size.kv_tokens};
      score.ordinary_seconds += world_.seconds(StepKind::kOrdinary, bare) * tokens / decoding;
    }
    time_ += exact + drafting;
    return (exact + excess) * (1 + world_.noise * (2 * u - 1)) * (v < world_.outliers ? 10 : 1);
  }

  World world_;
  std::vector<int64_t> positions_;
  uint64_t clock_ = 0;
  double time_ = 0;
  int64_t drafts_ = 0, speculative_steps_ = 0;
  bool after_speculative_ = false;
  int64_t window_ = 0;
  std::map<std::pair<StepKind, int>, int> runs_;
  std::vector<DraftTree> trees_;
  std::vector<DraftTree*> pointers_;
  std::vector<uint64_t> ids_;
};

}  // namespace taco::simulation
