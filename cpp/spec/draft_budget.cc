#include "spec/draft_budget.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace taco {
namespace {

// A gain below this is not worth the risk that the model of time is off by as much.
constexpr double kMargin = 1.01;
// Of the speculative mode on a device that runs ahead.
constexpr double kEnter = 1.03, kLeave = 1.005;
// Share of an ordinary step that drafting may take while it gains nothing.
constexpr double kIdleDraftShare = 0.004;
// The same where the device does not wait for it.
constexpr double kHiddenDraftShare = 0.05;
constexpr int kMaxInterval = 64;
// Ordinary steps that nothing ran ahead of after a change of the mode.
constexpr int kUnsteady = 1;
// Ordinary steps of about this size that must have been measured by the running engine, and the least
// distance of attempts to get them.
constexpr int kMeasured = 3, kProbeDistance = 64;
// One of so many speculative steps may be wider than what seems best, if no step of that width was measured
// yet, and if what it seems to lose is at most this share of the steps since the last one (of many sequences,
// whose steps tell more: divided by the root of their number).
constexpr int kWidenDistance = 32;
constexpr double kWidenShare = 0.05;
// With more sequences than this a step that does not pay costs more than finding out first: attempts to
// measure ordinary steps come sooner, and for so many steps after a change of their number drafts wait.
constexpr int kMany = 16, kProbeDistanceOfMany = 16, kPatience = 32;
// Of more sequences than this one wrong step takes most of the allowance: drafts are only followed until so
// many nodes have been judged.
constexpr int kVeryMany = 100;
constexpr uint64_t kJudged = 256;
// The allowance in ordinary steps of one sequence, what each step adds to it, and the most that gains make of
// it.
constexpr double kAllowance = 10, kRefill = 0.005, kMostAllowance = 4;
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
  const double share = runs_ahead_ ? kHiddenDraftShare : kIdleDraftShare;
  const double steps = std::ceil(draft_seconds_ * sequences / (share * step));
  return static_cast<int>(std::clamp(steps, 1.0, static_cast<double>(kMaxInterval)));
}

DraftMode DraftBudget::next(int sequences, int64_t kv_tokens, int other_rows) {
  step_mode_ = DraftMode::kNone;
  if (sequences < 1) return step_mode_;
  if (config_.disable_by_batch_size > 0 && sequences > config_.disable_by_batch_size) return step_mode_;
  if (!config_.cost_model) return step_mode_ = DraftMode::kDraft;

  ++since_change_;
  ++since_draft_;
  ++since_probe_;
  // What was learnt at another batch size says little.
  if (sequences > promised_sequences_ * 3 / 2 || sequences * 3 / 2 < promised_sequences_) {
    promised_sequences_ = sequences;
    promised_.weight *= 0.25;
    allowance_ = std::min(allowance_, 1.0);
    since_change_ = 0;
  }
  const bool many = sequences > kMany;
  const bool blind = cost_->observed(StepKind::kOrdinary, sequences) < kMeasured;
  if (blind && other_rows <= sequences && since_probe_ >= (many ? kProbeDistanceOfMany : kProbeDistance)) {
    since_probe_ = 0;
    force_ordinary(probe_steps(sequences));
  }
  const bool forced = forced_ordinary_ > 0;
  if (forced) --forced_ordinary_;

  const bool known = promised_.weight > 0.5;
  if (runs_ahead_ && known && !forced) {
    if (speculating_ && promised_.speedup() < kLeave) speculating_ = false;
    if (!speculating_ && promised_.speedup() > kEnter) speculating_ = true;
  }
  const double least = seconds(StepKind::kSpeculative, sequences, 0, 1, kv_tokens) +
                       draft_seconds_ * sequences - seconds(StepKind::kOrdinary, sequences, 0, 0, kv_tokens);
  const bool unjudged = sequences > kVeryMany && stats_.drafted + stats_.shadow_nodes < kJudged;
  const bool wait = forced || unjudged || (many && blind && since_change_ < kPatience) ||
                    least > allowed_seconds(sequences, kv_tokens);
  const bool paying = speculating_ && (!known || promised_.speedup() > kLeave);
  if ((wait || !paying) && since_draft_ < interval(sequences, kv_tokens)) return step_mode_;
  since_draft_ = 0;
  step_mode_ = wait || !speculating_ ? DraftMode::kShadow : DraftMode::kDraft;
  widening_ = step_mode_ == DraftMode::kDraft && ++since_wide_ % kWidenDistance == 0;
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

// Of the numbers of drafts at which goodput can have its maximum (ends of bins, bends of the cost), the one
// where value(tokens, seconds) is highest, in at most max_seconds.
template <class Value>
DraftBudget::Choice DraftBudget::search(int sequences, int other_rows, int64_t kv_tokens, int max_drafts,
                                        double max_seconds, Value&& value) const {
  Choice best{0, 0, seconds(idle_kind(), sequences, other_rows, 0, kv_tokens)};
  double most = value(sequences, best.seconds);
  bool drafting = false;
  int drafts = 0;
  double sum = 0;
  for (const Bin& bin : bins_) {
    if (drafts >= max_drafts) break;
    const double p = bin.nodes > 0 ? bin.sum / bin.nodes : 0;
    for (int left = bin.nodes; left > 0 && drafts < max_drafts;) {
      const int rows = sequences + other_rows + drafts;
      const int take =
          std::min({left, max_drafts - drafts, cost_->next_bend(StepKind::kSpeculative, rows) - rows});
      left -= take;
      drafts += take;
      sum += take * p;
      const double s = seconds(StepKind::kSpeculative, sequences, other_rows, drafts, kv_tokens);
      if (s > max_seconds) return best;
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
}

// All nodes in the order of p, as many as may be.
DraftBudget::Choice DraftBudget::likeliest(int sequences, int other_rows, int64_t kv_tokens,
                                           int drafts) const {
  Choice choice;
  for (const Bin& bin : bins_) {
    const int take = std::min(bin.nodes, drafts - choice.drafts);
    if (take <= 0) continue;
    choice.drafts += take;
    choice.sum_p += take * static_cast<double>(bin.sum) / bin.nodes;
  }
  const StepKind kind = choice.drafts > 0 ? StepKind::kSpeculative : StepKind::kOrdinary;
  choice.seconds = seconds(kind, sequences, other_rows, choice.drafts, kv_tokens);
  return choice;
}

// What start-up found for wider steps may be wrong, and would never be corrected if they were never made.
void DraftBudget::widen(int sequences, int other_rows, int64_t kv_tokens, int max_drafts, double max_seconds,
                        Choice& choice) {
  const int rows = sequences + other_rows + choice.drafts;
  const int most = std::min(2 * choice.drafts, max_drafts);
  int wanted = choice.drafts + 1;
  while (wanted <= most &&
         cost_->observed(StepKind::kSpeculative, rows + wanted - choice.drafts) >= kMeasured)
    ++wanted;
  if (wanted > most) return;
  const Choice wide = likeliest(sequences, other_rows, kv_tokens, wanted);
  if (wide.drafts < wanted || wide.seconds > max_seconds) return;
  const double steps = wide.seconds / choice.seconds - (sequences + wide.sum_p) / (sequences + choice.sum_p);
  if (steps > kWidenShare * since_wide_ / std::sqrt(sequences)) return;
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
  const bool shadow = step_mode_ != DraftMode::kDraft;
  const auto goodput = [](double tokens, double s) { return tokens / s; };
  constexpr double kAnySeconds = std::numeric_limits<double>::infinity();
  // What the trees are worth, other rows and the allowance aside.
  const Choice alone = config_.cost_model ? search(n, 0, kv_tokens, max_drafts, kAnySeconds, goodput)
                                          : likeliest(n, 0, kv_tokens, max_drafts);
  // Many sequences tell as much in one step as one does in many.
  promised_.add(std::clamp(n / 64.0, 1 / 64.0, 1 / 4.0), alone.seconds + draft_seconds_ * n,
                ordinary_seconds(n, kv_tokens, n + alone.sum_p));
  tokens_ += 0.1 * (1 + alone.sum_p / n - tokens_);
  rows_ += 0.1 * (1 + static_cast<double>(alone.drafts) / n - rows_);

  const double ordinary = seconds(StepKind::kOrdinary, n, other_rows, 0, kv_tokens);
  Choice choice = alone;
  if (shadow) {
    choice = {0, 0, ordinary};
  } else if (!config_.cost_model) {
    choice = likeliest(n, other_rows, kv_tokens, max_drafts);
  } else {
    const double most = ordinary + allowed_seconds(n, kv_tokens) - draft_seconds_ * n;
    const double rate = goodput(n + alone.sum_p, alone.seconds);
    if (other_rows > 0) {
      choice = search(n, other_rows, kv_tokens, max_drafts, most,
                      [rate](double tokens, double s) { return tokens - rate * s; });
    } else if (alone.seconds > most) {
      choice = search(n, 0, kv_tokens, max_drafts, most, goodput);
    }
    if (widening_ && choice.drafts > 0) widen(n, other_rows, kv_tokens, max_drafts, most, choice);
  }

  for (size_t i = 0; i < trees.size(); ++i)
    if (trees[i]->size > 1) follow(sequences[i], *trees[i], !shadow);
  prune(trees, choice.drafts);

  const double taken =
      std::max(1e-9, choice.seconds - other_seconds(n, other_rows, kv_tokens)) + draft_seconds_ * n;
  const double without = ordinary_seconds(n, kv_tokens, n + choice.sum_p);
  out.speculative = choice.drafts > 0;
  out.drafts = choice.drafts;
  out.expected_tokens = n + choice.sum_p;
  out.expected_seconds = choice.seconds;
  out.expected_speedup = shadow ? 1 : without / taken;
  if (!cost_->known()) return;
  expected_.add(1 / kStatsSteps, shadow ? without : taken, without);
  stats_.expected_speedup = expected_.speedup();
}

void DraftBudget::follow(uint64_t sequence, const DraftTree& tree, bool verifying) {
  Followed& f = followed_[sequence];
  f.fresh = false;
  // Which trees are followed may not depend on what became of earlier ones, or the likely to fail would be
  // judged more often: the next one is the first after the longest path of this one, however that went.
  if (f.position < f.next_root) return;
  if (f.open) judge(f, !f.left);
  int depth = 0;
  for (int i = 1; i < tree.size; ++i) depth = std::max(depth, static_cast<int>(tree.depth[i]));
  f.next_root = f.position + depth + 1;
  f.tree = tree;
  f.open = true;
  f.left = false;
  f.verified = f.fresh = verifying;
  f.node = 0;
  f.accepted = 0;
}

void DraftBudget::committed(uint64_t sequence, std::span<const int32_t> tokens) {
  const auto at = followed_.find(sequence);
  if (at == followed_.end()) return;
  Followed& f = at->second;
  f.position += static_cast<int64_t>(tokens.size());
  for (const int32_t token : tokens) {
    if (!f.open || f.left) break;
    const int child = f.tree.find_child(f.node, token);
    f.left = child < 0;
    if (f.left) break;
    f.node = child;
    f.accepted |= uint64_t{1} << child;
  }
  // Ordinary steps find failures first: among trees that were made together, hits would be missing until the
  // last of them is known.
  if (f.open && f.left && (f.verified || f.position >= f.next_root)) judge(f, false);
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
  if (at->second.open) judge(at->second, !at->second.left);
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

int DraftBudget::probe_steps(int sequences) const {
  return kMeasured + (runs_ahead_ ? kUnsteady : 0) + cost_->first_runs(StepKind::kOrdinary, sequences);
}

void DraftBudget::force_ordinary(int steps) { forced_ordinary_ = std::max(forced_ordinary_, steps); }

double DraftBudget::allowed_seconds(int sequences, int64_t kv_tokens) const {
  return std::max(0.0, allowance_) * kAllowance / std::sqrt(sequences) *
         seconds(StepKind::kOrdinary, sequences, 0, 0, kv_tokens);
}

void DraftBudget::draw(int sequences, int64_t kv_tokens, double taken) {
  const double begin = kAllowance / std::sqrt(sequences);
  const double steps = taken / seconds(StepKind::kOrdinary, sequences, 0, 0, kv_tokens);
  allowance_ = std::clamp(allowance_ - steps / begin, -1.0, std::max(1.0, kMostAllowance / begin));
}

void DraftBudget::observe(const StepOutcome& step) {
  const bool speculative = step.kind == StepKind::kSpeculative;
  ++(speculative ? stats_.speculative_steps : stats_.ordinary_steps);
  stats_.step_seconds += step.seconds;
  ordinary_run_ = speculative ? 0 : ordinary_run_ + 1;
  const bool steady = speculative || !runs_ahead_ || ordinary_run_ > kUnsteady;
  const bool settled = cost_->first_runs(step.kind, step.size.rows) == 0;
  if (steady) cost_->observe(step.kind, step.size, step.seconds);
  stats_.draft_seconds += step.draft_seconds;
  stats_.hidden_draft_seconds += step.hidden_draft_seconds;
  if (step.decoding < 1) return;
  if (const double drafting = step.draft_seconds + step.hidden_draft_seconds; drafting > 0) {
    // A machine that was descheduled meanwhile may not make drafting look dear for long.
    const double each = drafting / step.decoding;
    draft_seconds_ += 0.05 * (std::min(each, 4 * draft_seconds_ + 1e-6) - draft_seconds_);
  }

  since_ordinary_ = speculative ? since_ordinary_ + 1 : 0;
  if (config_.cost_model && since_ordinary_ > (promised_.speedup() < 1.25 ? 512 : 4096)) {
    since_ordinary_ = 0;
    force_ordinary(probe_steps(step.decoding));
  }
  stats_.ordinary_step_seconds = ordinary_seconds(step.decoding, step.size.kv_tokens, step.decoding);
  // What prompts in the step cost is too uncertain to judge drafts by.
  if (step.other_rows > step.decoding) return;
  const double other = other_seconds(step.decoding, step.other_rows, step.size.kv_tokens);
  // An interruption of the machine or a size's first run would have met an ordinary step as well.
  const double usual = cost_->seconds(step.kind, step.size);
  const double measured = !settled || step.seconds > 4 * usual ? usual : step.seconds;
  const double taken = std::max(1e-9, measured - other) + step.draft_seconds;
  const double base = ordinary_seconds(step.decoding, step.size.kv_tokens, static_cast<double>(step.tokens));
  if (cost_->known()) {
    // An ordinary step is its own measure, and no other is faster than one for each of its tokens.
    const double fastest = taken * static_cast<double>(step.tokens) / step.decoding;
    const double without = speculative ? std::min(base, fastest) : std::max(1e-9, taken - step.draft_seconds);
    realised_.add(1 / kStatsSteps, taken, without);
    total_seconds_ += taken;
    total_without_ += without;
    stats_.realised_speedup = realised_.speedup();
    stats_.total_speedup = total_without_ / total_seconds_;
  }

  // The first ordinary step after speculative ones does not run ahead yet: that is a price of those.
  const bool charged = speculative || (runs_ahead_ && ordinary_run_ <= kUnsteady);
  if (charged) draw(step.decoding, step.size.kv_tokens, taken - base);
  if (allowance_ < 1) {
    const double begin = kAllowance / std::sqrt(step.decoding);
    allowance_ = std::min(1.0, allowance_ + kRefill / begin);
  }
  stats_.allowance = allowance_;
}

}  // namespace taco
