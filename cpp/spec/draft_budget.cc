#include "spec/draft_budget.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace taco {
namespace {

// A gain below this is not worth the risk that the model of time is off by as much.
constexpr double kMargin = 1.01;
// Of the speculative mode on a device that runs ahead.
constexpr double kEnter = 1.03, kLeave = 1.005;
// Share of an ordinary step that drafting may take while it gains nothing.
constexpr double kIdleDraftShare = 0.004;
constexpr int kMaxInterval = 64;
// Ordinary steps that are not the device's steady state after a change of the mode.
constexpr int kUnsteady = 2;
// Ordinary steps of about this size that must have been measured by the running engine, and the least
// distance of attempts to get them.
constexpr int kMeasured = 3, kProbeDistance = 64;
// One of so many speculative steps may be wider than what seems best, if no step of that width was measured
// yet.
constexpr int kWidenDistance = 32;
// What the guard looks at together: steps of up to four sequences, or as many fewer as they have more (many
// sequences tell as much in one step as one does in many). The shortest and longest stretch without drafts
// that it orders.
constexpr double kGuardSteps = 256, kGuardSequences = 4, kGuardMostAtOnce = 32;
constexpr int kMinPenalty = 64, kMaxPenalty = 8192;
// Statistics look back so many steps.
constexpr double kStatsSteps = 500;

constexpr int kBins = 16 * 64 + 1;  // 16 octaves of p; what is smaller falls into the last

// The exponent and six bits of the mantissa number the bins.
int bin_of(float p) {
  constexpr int kOne = 127 << 6;
  return std::clamp(kOne - static_cast<int>(std::bit_cast<uint32_t>(p) >> 17), 0, kBins - 1);
}

uint64_t bits_below(int n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

}  // namespace

void DraftBudget::Rate::add(double share, double taken, double without) {
  weight = std::min(1.0, weight + share);
  share /= weight;  // the first ones count alike
  seconds += share * (taken - seconds);
  base_seconds += share * (without - base_seconds);
}

DraftBudget::DraftBudget(const SpeculationConfig& config, StepCost* cost, bool runs_ahead)
    : config_(config), cost_(cost), runs_ahead_(runs_ahead), bins_(kBins) {}

double DraftBudget::seconds(StepKind kind, int sequences, int other_rows, int drafts,
                            int64_t kv_tokens) const {
  return cost_->seconds(kind, {sequences + other_rows + drafts, sequences, kv_tokens});
}

StepKind DraftBudget::idle_kind() const { return runs_ahead_ ? StepKind::kSpeculative : StepKind::kOrdinary; }

double DraftBudget::ordinary_seconds(int sequences, int64_t kv_tokens, double tokens) const {
  return tokens / sequences * seconds(StepKind::kOrdinary, sequences, 0, 0, kv_tokens);
}

double DraftBudget::other_seconds(int sequences, int other_rows, int64_t kv_tokens) const {
  if (other_rows == 0) return 0;
  return seconds(StepKind::kOrdinary, sequences, other_rows, 0, kv_tokens) -
         seconds(StepKind::kOrdinary, sequences, 0, 0, kv_tokens);
}

// Steps between attempts that cost kIdleDraftShare of them.
int DraftBudget::interval(int sequences, int64_t kv_tokens) const {
  const double step = seconds(StepKind::kOrdinary, sequences, 0, 0, kv_tokens);
  const double steps = std::ceil(draft_seconds_ * sequences / (kIdleDraftShare * step));
  return static_cast<int>(std::clamp(steps, 1.0, static_cast<double>(kMaxInterval)));
}

DraftMode DraftBudget::next(int sequences, int64_t kv_tokens) {
  step_mode_ = DraftMode::kNone;
  if (sequences < 1) return step_mode_;
  if (config_.disable_by_batch_size > 0 && sequences > config_.disable_by_batch_size) return step_mode_;
  if (!config_.cost_model) return step_mode_ = DraftMode::kDraft;

  // What was learnt at another batch size says little.
  if (sequences > promised_sequences_ * 3 / 2 || sequences * 3 / 2 < promised_sequences_) {
    promised_sequences_ = sequences;
    promised_.weight *= 0.25;
  }
  ++since_draft_;
  ++since_probe_;
  if (since_probe_ >= kProbeDistance && cost_->observed(StepKind::kOrdinary, sequences) < kMeasured) {
    since_probe_ = 0;
    force_ordinary(probe_steps());
  }
  const bool forced = forced_ordinary_ > 0;
  if (forced) --forced_ordinary_;

  const bool known = promised_.weight > 0.5;
  if (runs_ahead_ && known && !forced) {
    if (speculating_ && promised_.speedup() < kLeave) speculating_ = false;
    if (!speculating_ && promised_.speedup() > kEnter) speculating_ = true;
  }
  const bool paying = speculating_ && (!known || promised_.speedup() > kLeave);
  if ((forced || !paying) && since_draft_ < interval(sequences, kv_tokens)) return step_mode_;
  since_draft_ = 0;
  step_mode_ = forced || !speculating_ ? DraftMode::kShadow : DraftMode::kDraft;
  widening_ = step_mode_ == DraftMode::kDraft && ++since_wide_ >= kWidenDistance;
  return step_mode_;
}

float DraftBudget::threshold(int sequences, int64_t kv_tokens) {
  if (!config_.cost_model || sequences < 1) return 0;
  // Marginal cost times goodput, around the rows that steps have had lately.
  const int rows = static_cast<int>(sequences * rows_);
  const int more = std::max(8, rows / 2);
  const double here = seconds(StepKind::kSpeculative, sequences, 0, rows - sequences, kv_tokens);
  const double there = seconds(StepKind::kSpeculative, sequences, 0, rows - sequences + more, kv_tokens);
  const double goodput =
      sequences * std::max(tokens_ / here, 1 / seconds(StepKind::kOrdinary, sequences, 0, 0, kv_tokens));
  // Half of it: rows up to the next padded size are free, and an estimate may turn out too low.
  double p = 0.5 * (there - here) / more * goodput;
  if (++thresholds_ % 8 == 0 || widening_) p *= 0.25;
  return std::clamp(calibration_.raw(static_cast<float>(std::clamp(p, 0.003, 1.0))), 0.003f, 0.5f);
}

void DraftBudget::sort_into_bins(std::span<DraftTree* const> trees) {
  std::fill(bins_.begin(), bins_.end(), Bin{});
  size_t nodes = 0;
  for (const DraftTree* tree : trees) nodes += static_cast<size_t>(tree->size);
  p_.resize(nodes);
  size_t first = 0;
  for (const DraftTree* tree : trees) {
    const std::span<float> p(p_.data() + first, static_cast<size_t>(tree->size));
    calibration_.calibrate(*tree, p);
    for (int i = 1; i < tree->size; ++i) {
      if (p[i] <= 0) continue;
      Bin& bin = bins_[bin_of(p[i])];
      ++bin.nodes;
      bin.sum += p[i];
    }
    first += p.size();
  }
}

DraftBudget::Choice DraftBudget::choose(int sequences, int other_rows, int64_t kv_tokens,
                                        int max_drafts) const {
  // Of the numbers of drafts at which goodput can have its maximum (ends of bins, bends of the cost), the one
  // where value(tokens, seconds) is highest.
  const auto search = [&](int others, auto&& value) {
    Choice best{0, 0, seconds(idle_kind(), sequences, others, 0, kv_tokens)};
    double most = value(sequences, best.seconds);
    bool drafting = false;
    int drafts = 0;
    double sum = 0;
    for (const Bin& bin : bins_) {
      if (drafts >= max_drafts) break;
      const double p = bin.nodes > 0 ? bin.sum / bin.nodes : 0;
      for (int left = bin.nodes; left > 0 && drafts < max_drafts;) {
        const int rows = sequences + others + drafts;
        const int take =
            std::min({left, max_drafts - drafts, cost_->next_bend(StepKind::kSpeculative, rows) - rows});
        left -= take;
        drafts += take;
        sum += take * p;
        const double s = seconds(StepKind::kSpeculative, sequences, others, drafts, kv_tokens);
        const double worth = value(sequences + sum, s);
        // The margin is for leaving zero.
        if (worth <= most) continue;
        if (!drafting && value((sequences + sum) / kMargin, s) <= most) continue;
        drafting = true;
        most = worth;
        best = {drafts, sum, s};
      }
    }
    return best;
  };
  const Choice alone = search(0, [](double tokens, double s) { return tokens / s; });
  if (other_rows == 0) return alone;
  const double goodput = (sequences + alone.sum_p) / alone.seconds;
  return search(other_rows, [&](double tokens, double s) { return tokens - goodput * s; });
}

// What start-up found for wider steps may be wrong, and would never be corrected if they were never made.
void DraftBudget::widen(int sequences, int other_rows, int64_t kv_tokens, int max_drafts, Choice& choice) {
  const int rows = sequences + other_rows + choice.drafts;
  const int most = std::min(2 * choice.drafts, max_drafts);
  int wanted = choice.drafts + 1;
  while (wanted <= most &&
         cost_->observed(StepKind::kSpeculative, rows + wanted - choice.drafts) >= kMeasured)
    ++wanted;
  if (wanted > most) return;
  Choice wide;
  for (const Bin& bin : bins_) {
    const int take = std::min(bin.nodes, wanted - wide.drafts);
    if (take <= 0) continue;
    wide.drafts += take;
    wide.sum_p += take * static_cast<double>(bin.sum) / bin.nodes;
  }
  if (wide.drafts < wanted) return;
  wide.seconds = seconds(StepKind::kSpeculative, sequences, other_rows, wide.drafts, kv_tokens);
  choice = wide;
  since_wide_ = 0;
}

void DraftBudget::prune(std::span<DraftTree* const> trees, int drafts) {
  // All of the bins before `last`, and `partial` nodes of that one.
  int last = 0, partial = drafts;
  while (last < kBins && partial >= bins_[last].nodes) partial -= bins_[last++].nodes;
  size_t first = 0;
  for (DraftTree* tree : trees) {
    const float* p = p_.data() + first;
    first += static_cast<size_t>(tree->size);
    uint64_t keep = 1;
    // A parent stands before its children and in no later bin, so what is kept is closed under parents.
    for (int i = 1; i < tree->size; ++i) {
      if (p[i] <= 0) continue;
      const int bin = bin_of(p[i]);
      if (bin < last || (bin == last && partial > 0)) {
        keep |= uint64_t{1} << i;
        if (bin == last) --partial;
      }
    }
    prune_and_lay_out(*tree, keep);
  }
}

void DraftBudget::select(std::span<DraftTree* const> trees, std::span<const uint64_t> sequences,
                         int other_rows, int64_t kv_tokens, int max_rows, DraftDecision& out) {
  TACO_CHECK(trees.size() == sequences.size());
  const int n = static_cast<int>(trees.size());
  out = {};
  if (n == 0) return;
  const bool too_many = config_.disable_by_batch_size > 0 && n > config_.disable_by_batch_size;
  const int max_drafts = too_many ? 0 : std::max(0, max_rows - other_rows - n);
  sort_into_bins(trees);
  Choice choice;
  if (config_.cost_model) {
    choice = choose(n, other_rows, kv_tokens, max_drafts);
    if (widening_ && choice.drafts > 0) widen(n, other_rows, kv_tokens, max_drafts, choice);
  } else {
    for (const Bin& bin : bins_) {
      const int take = std::min(bin.nodes, max_drafts - choice.drafts);
      if (take <= 0) continue;
      choice.drafts += take;
      choice.sum_p += take * static_cast<double>(bin.sum) / bin.nodes;
    }
    choice.seconds = seconds(choice.drafts > 0 ? StepKind::kSpeculative : StepKind::kOrdinary, n, other_rows,
                             choice.drafts, kv_tokens);
  }

  const double tokens = n + choice.sum_p;
  const double taken =
      std::max(1e-9, choice.seconds - other_seconds(n, other_rows, kv_tokens)) + draft_seconds_ * n;
  const double without = ordinary_seconds(n, kv_tokens, tokens);
  // Many sequences tell as much in one step as one does in many.
  promised_.add(std::clamp(n / 64.0, 1 / 64.0, 1 / 8.0), taken, without);
  const bool shadow = step_mode_ != DraftMode::kDraft;
  for (size_t i = 0; i < trees.size(); ++i)
    if (trees[i]->size > 1) follow(sequences[i], *trees[i], !shadow);
  tokens_ += 0.1 * (tokens / n - tokens_);
  rows_ += 0.1 * (1 + static_cast<double>(choice.drafts) / n - rows_);
  if (shadow) choice = {0, 0, seconds(StepKind::kOrdinary, n, other_rows, 0, kv_tokens)};
  prune(trees, choice.drafts);

  out.speculative = choice.drafts > 0;
  out.drafts = choice.drafts;
  out.expected_tokens = n + choice.sum_p;
  out.expected_seconds = choice.seconds;
  out.expected_speedup = shadow ? 1 : without / taken;
  expected_.add(1 / kStatsSteps, shadow ? without : taken, without);
  stats_.expected_speedup = expected_.speedup();
}

void DraftBudget::follow(uint64_t sequence, const DraftTree& tree, bool verifying) {
  Followed& f = followed_[sequence];
  f.fresh = false;
  // Which trees are followed may not depend on what became of earlier ones, or the likely to fail would be
  // judged more often: the next one is the first after the longest path of this one, however that went.
  if (f.position < f.next_root) return;
  if (f.open) judge(f, true);
  int depth = 0;
  for (int i = 1; i < tree.size; ++i) depth = std::max(depth, static_cast<int>(tree.depth[i]));
  f.next_root = f.position + depth + 1;
  f.tree = tree;
  f.open = true;
  f.fresh = verifying;
  f.node = 0;
  f.accepted = 0;
}

void DraftBudget::committed(uint64_t sequence, std::span<const int32_t> tokens) {
  const auto at = followed_.find(sequence);
  if (at == followed_.end()) return;
  Followed& f = at->second;
  f.position += static_cast<int64_t>(tokens.size());
  for (const int32_t token : tokens) {
    if (!f.open) return;
    const int child = f.tree.find_child(f.node, token);
    if (child < 0) {
      judge(f, false);
      return;
    }
    f.node = child;
    f.accepted |= uint64_t{1} << child;
  }
}

// ended: the text does not say what comes after f.node.
void DraftBudget::judge(Followed& f, bool ended) {
  uint64_t known = bits_below(f.tree.size);
  if (ended)
    for (int i = 1; i < f.tree.size; ++i)
      if (i != f.node && f.tree.ancestors[i] >> f.node & 1) known &= ~(uint64_t{1} << i);
  calibration_.observe(f.tree, known, f.accepted);
  stats_.shadow_nodes += static_cast<uint64_t>(std::popcount(known & ~uint64_t{1}));
  f.open = false;
}

void DraftBudget::end(uint64_t sequence) {
  const auto at = followed_.find(sequence);
  if (at == followed_.end()) return;
  if (at->second.open) judge(at->second, true);
  followed_.erase(at);
}

void DraftBudget::verified(uint64_t sequence, const DraftTree& tree, int deepest_accepted) {
  if (tree.size < 2) return;
  TACO_CHECK(deepest_accepted >= 0 && deepest_accepted < tree.size);
  const uint64_t nodes = bits_below(tree.size) & ~uint64_t{1};
  const uint64_t accepted = tree.ancestors[deepest_accepted] & nodes;
  const uint64_t taken = static_cast<uint64_t>(std::popcount(accepted));
  stats_.drafted += static_cast<uint64_t>(tree.num_drafts());
  stats_.accepted += taken;
  stats_.rejected += static_cast<uint64_t>(tree.num_drafts()) - taken;
  const auto at = followed_.find(sequence);
  if (at != followed_.end() && at->second.fresh) {
    at->second.fresh = false;  // the text judges the whole of it
    return;
  }
  calibration_.observe(tree, nodes, accepted);
}

int DraftBudget::probe_steps() const { return kMeasured + (runs_ahead_ ? kUnsteady + 1 : 0); }

void DraftBudget::force_ordinary(int steps) { forced_ordinary_ = std::max(forced_ordinary_, steps); }

void DraftBudget::guard(int sequences, double taken, double without) {
  guarded_.seconds += taken;
  guarded_.base_seconds += without;
  guarded_.weight += std::clamp(sequences / kGuardSequences, 1.0, kGuardMostAtOnce);
  if (guarded_.weight < kGuardSteps) return;
  if (guarded_.speedup() < 0.995) {
    penalty_ = std::clamp(2 * penalty_, kMinPenalty, kMaxPenalty);
    force_ordinary(penalty_);
  } else if (guarded_.speedup() > kMargin) {
    penalty_ /= 2;
  }
  guarded_ = {};
}

void DraftBudget::observe(const StepOutcome& step) {
  const bool speculative = step.kind == StepKind::kSpeculative;
  ++(speculative ? stats_.speculative_steps : stats_.ordinary_steps);
  stats_.step_seconds += step.seconds;
  stats_.draft_seconds += step.draft_seconds;
  ordinary_run_ = speculative ? 0 : ordinary_run_ + 1;
  const bool steady = speculative || !runs_ahead_ || ordinary_run_ > kUnsteady;
  if (steady) cost_->observe(step.kind, step.size, step.seconds);
  if (step.decoding < 1) return;
  if (step.draft_seconds > 0) {
    // A machine that was descheduled meanwhile may not make drafting look dear for long.
    const double each = step.draft_seconds / step.decoding;
    draft_seconds_ += 0.05 * (std::min(each, 4 * draft_seconds_ + 1e-6) - draft_seconds_);
  }

  since_ordinary_ = speculative ? since_ordinary_ + 1 : 0;
  if (config_.cost_model && since_ordinary_ > (promised_.speedup() < 1.25 ? 512 : 4096)) {
    since_ordinary_ = 0;
    force_ordinary(probe_steps());
  }
  // What prompts in the step cost is too uncertain to judge drafts by.
  if (step.other_rows > step.decoding) return;
  const double other = other_seconds(step.decoding, step.other_rows, step.size.kv_tokens);
  // An interruption of the machine would have met an ordinary step as well.
  const double usual = cost_->seconds(step.kind, step.size);
  const double measured = step.seconds > 4 * usual ? usual : step.seconds;
  const double taken = std::max(1e-9, measured - other) + step.draft_seconds;
  const double base = ordinary_seconds(step.decoding, step.size.kv_tokens, static_cast<double>(step.tokens));
  // An ordinary step is its own measure.
  const double without = speculative ? base : std::max(1e-9, taken - step.draft_seconds);
  realised_.add(1 / kStatsSteps, taken, without);
  total_seconds_ += taken;
  total_without_ += without;
  stats_.realised_speedup = realised_.speedup();
  stats_.total_speedup = total_without_ / total_seconds_;
  if (config_.cost_model && speculative) guard(step.decoding, taken, without);
}

}  // namespace taco
