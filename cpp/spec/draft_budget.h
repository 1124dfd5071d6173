// Decides for each step how many drafted tokens are worth verifying, down to none.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "spec/draft_calibration.h"
#include "spec/draft_tree.h"
#include "spec/speculation_config.h"
#include "spec/step_cost.h"

namespace taco {

// What the next step does about drafts.
enum class DraftMode : uint8_t {
  kNone,    // an ordinary step; nothing is drafted
  kShadow,  // trees are drafted and given to `select`, which takes them all away: an ordinary step, and what
            // would have become of the drafts is learnt from the text
  kDraft,   // trees are drafted, `select` prunes them, and the step verifies what is left
};

struct DraftDecision {
  bool speculative = false;     // some tree has drafts left
  int drafts = 0;               // of all trees
  double expected_tokens = 0;   // that the trees' sequences get from this step
  double expected_seconds = 0;  // of this step
  double expected_speedup = 1;  // of decoding, against ordinary steps
};

struct StepOutcome {
  // kSpeculative: drafts were verified, or the step could not run ahead because it might have verified some.
  StepKind kind = StepKind::kOrdinary;
  StepSize size;
  int decoding = 0;                 // sequences that got tokens
  int other_rows = 0;               // rows that are neither a decoding sequence's last token nor a draft
  int64_t tokens = 0;               // that the sequences got
  double seconds = 0;               // of the step; where steps overlap, from the end of the one before
  double draft_seconds = 0;         // spent on drafting for it before it began, not in `seconds`
  double hidden_draft_seconds = 0;  // spent while it ran
};

struct BudgetStats {
  uint64_t ordinary_steps = 0, speculative_steps = 0;
  uint64_t drafted = 0, accepted = 0, rejected = 0;  // nodes that steps verified; drafted is the sum
  uint64_t shadow_nodes = 0;                         // judged by the text without being verified
  double step_seconds = 0;
  double draft_seconds = 0, hidden_draft_seconds = 0;  // as in StepOutcome
  double ordinary_step_seconds = 0;  // what an ordinary step would have taken, at the last one
  double allowance = 1;              // what is left, as a share of what it begins with
  // Decoding speed against ordinary steps of the same sequences, over about the last 500 steps: as decisions
  // promised, and as it came out. Prompts' rows count on neither side.
  double expected_speedup = 1, realised_speedup = 1;
  double total_speedup = 1;  // realised, over all steps
};

// Goodput: a step of A sequences gives A + sum of p tokens (p: the probability that a node's whole path is
// accepted, so that sums over nodes are expected tokens) in T(rows) seconds. Nodes of all trees are taken in
// the order of p, as many as make goodput highest; none, if the gain over an ordinary step is less than a
// margin. Where prompts share the step, time is worth the tokens that the best step without them makes of it.
//
// Estimates are calibrated by outcomes, also by those of drafts that were not verified: the text that follows
// judges them at no cost. That is how the controller notices that drafting starts or stops to pay. Where
// ordinary steps run ahead of their results, speculation is a mode, entered and left with hysteresis, because
// each change drains the device.
//
// What guards against wrong estimates:
// - An allowance, the only way to lose time. A step that verifies drafts draws from it what it took longer
//   than ordinary steps do for the tokens that it gave, or puts back what it gained; and no step may cost
//   more than is left if none of its drafts is right. It begins with ten ordinary steps of one sequence, or
//   10 / sqrt(n) of n (so much less does chance decide with many), and fills up with half a percent of the
//   time; gains add to it up to four steps, and are forgotten when the number of sequences changes much.
// - Of more than a hundred sequences nothing is verified before the text has judged a few hundred drafts.
// - Ordinary steps of a size are measured in the running engine: at once where the sequences are many, and
//   until then drafts are only followed; after some steps where they are few. Now and then that is repeated,
//   and a step wider than what seems best is tried.
//
// With config.cost_model false every draft is verified. Deterministic; one thread, the engine's.
class DraftBudget {
 public:
  // cost outlives it. runs_ahead: ordinary steps are computed while the host plans the next.
  DraftBudget(const SpeculationConfig& config, StepCost* cost, bool runs_ahead);

  // Once for each step, first. sequences: those that get a token; kv_tokens: as in StepSize; other_rows: as
  // in StepOutcome, about.
  DraftMode next(int sequences, int64_t kv_tokens, int other_rows = 0);

  // DraftRequest::min_p for this step; lower now and then, to learn about unlikely drafts.
  float threshold(int sequences, int64_t kv_tokens);

  // Prunes the trees to what is worth verifying in a step of one root for each tree, `other_rows` other rows
  // and at most max_rows in all. sequences: whose trees they are. Nodes' p stays as the drafter estimated it;
  // a p above the parent's counts as the parent's.
  void select(std::span<DraftTree* const> trees, std::span<const uint64_t> sequences, int other_rows,
              int64_t kv_tokens, int max_rows, DraftDecision& out);

  // Tokens that a sequence got, in order, each exactly once.
  void committed(uint64_t sequence, std::span<const int32_t> tokens);
  void end(uint64_t sequence);

  // A tree as it was verified, and the deepest node that is part of the text now (0: none).
  void verified(uint64_t sequence, const DraftTree& tree, int deepest_accepted);

  void observe(const StepOutcome& step);

  const BudgetStats& stats() const { return stats_; }

 private:
  // Decaying sums: a number of tokens, and the seconds that they take one way and the other.
  struct Rate {
    double seconds = 0, base_seconds = 0, weight = 0;

    void add(double share, double seconds_taken, double seconds_without);
    double speedup() const { return seconds > 0 ? base_seconds / seconds : 1; }
  };
  // A tree followed through the text.
  struct Followed {
    DraftTree tree;
    bool open = false;
    bool fresh = false;  // taken from this step's trees
    bool verified = false;
    bool left = false;      // the text went another way
    int node = 0;           // where the text stands in the tree
    uint64_t accepted = 0;  // nodes that it went through
    int64_t position = 0;   // tokens committed
    int64_t next_root = 0;  // no tree before this position is followed
  };
  struct Choice {
    int drafts = 0;
    double sum_p = 0;    // of those
    double seconds = 0;  // of the step
  };

  double seconds(StepKind kind, int sequences, int other_rows, int drafts, int64_t kv_tokens) const;
  // Of a step that drafted and then verifies nothing: where steps run ahead, this one could not.
  StepKind idle_kind() const;
  // Seconds that ordinary steps need for as many tokens.
  double ordinary_seconds(int sequences, int64_t kv_tokens, double tokens) const;
  // The part of a step's seconds that is due to other rows.
  double other_seconds(int sequences, int other_rows, int64_t kv_tokens) const;
  int interval(int sequences, int64_t kv_tokens) const;
  void sort_into_bins(std::span<DraftTree* const> trees);
  template <class Value>
  Choice search(int sequences, int other_rows, int64_t kv_tokens, int max_drafts, double max_seconds,
                Value&& value) const;
  Choice likeliest(int sequences, int other_rows, int64_t kv_tokens, int drafts) const;
  void widen(int sequences, int other_rows, int64_t kv_tokens, int max_drafts, double max_seconds,
             Choice& choice);
  void prune(std::span<DraftTree* const> trees, int drafts);
  void follow(uint64_t sequence, const DraftTree& tree, bool verifying);
  void judge(Followed& followed, bool ended);
  int probe_steps(int sequences) const;
  void force_ordinary(int steps);
  // Seconds that a step may take beyond an ordinary one.
  double allowed_seconds(int sequences, int64_t kv_tokens) const;
  void draw(int sequences, int64_t kv_tokens, double seconds);

  const SpeculationConfig config_;
  StepCost* cost_;
  const bool runs_ahead_;
  DraftCalibration calibration_;
  std::unordered_map<uint64_t, Followed> followed_;
  BudgetStats stats_;

  bool speculating_ = true;  // of the two modes; without running ahead always
  DraftMode step_mode_ = DraftMode::kNone;
  int since_draft_ = 0;      // steps
  int forced_ordinary_ = 0;  // steps without drafts still to come
  double allowance_ = 1;     // as a share of what it begins with
  int since_change_ = 0;     // steps since the number of sequences changed much
  int since_ordinary_ = 0;   // steps since one was last measured
  int since_probe_ = 48;     // steps since ordinary ones were ordered to measure a new size; not at once
  int ordinary_run_ = 0;     // ordinary steps without a break
  int since_wide_ = 0;       // steps with drafts since a wider one than seemed best
  bool widening_ = false;
  uint64_t thresholds_ = 0;

  Rate promised_;  // of decisions, also those of the shadow: the mode follows it
  int promised_sequences_ = 0;
  Rate expected_, realised_;  // for the statistics
  double total_seconds_ = 0, total_without_ = 0;
  double draft_seconds_ = 0;      // for one sequence, recently
  double tokens_ = 1, rows_ = 1;  // of a sequence in a step, recently: expected and computed

  // Of the step at hand: all nodes by calibrated p, in bins of 1/64 of an octave or less, likeliest first.
  struct Bin {
    int32_t nodes = 0;
    float sum = 0;
  };
  std::vector<Bin> bins_;
  std::vector<float> p_;  // of all nodes, tree by tree; also the roots'
};

}  // namespace taco
