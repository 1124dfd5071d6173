#include "engine/speculator.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "engine/engine_request.h"

namespace taco {
namespace {

// Whether the sequence's next step computes one known token and samples: only then is a draft of use.
bool is_generating(const SeqState& seq) { return seq.len() - seq.num_computed == 1 && seq.owner->forked; }

}  // namespace

Speculator::Speculator(const SpeculationConfig& config, std::shared_ptr<Drafter> drafter, Executor& executor,
                       int max_num_batched_tokens, int max_num_seqs)
    : drafter_(std::move(drafter)),
      device_(executor.max_in_flight() > 1),
      budget_(config, &cost_, device_),
      meter_(config.lookahead.log_interval),
      vocab_size_(executor.vocab_size()),
      max_rows_(std::min(executor.max_sampled_rows(), max_num_batched_tokens)) {
  TACO_REQUIRE(max_rows_ > 1, "the executor takes no drafts: give it max_draft_rows");
  if (device_) drafter_->use_other_cores();
  if (!config.cost_model) return;
  for (StepKind kind : {StepKind::kOrdinary, StepKind::kSpeculative})
    cost_.set_padding(kind, executor.step_sizes());
  measure(executor, max_num_seqs);
}

// What steps cost, before the first request: small ones first, for as long as start-up may take. A device's
// wide steps are what decides at many sequences, and cannot be guessed from narrow ones; and each size that
// its steps are padded to runs with drafts here first.
void Speculator::measure(Executor& executor, int most_sequences) {
  struct Size {
    int sequences, drafts, context;
    int rows() const { return sequences + drafts; }
  };
  const double budget = device_ ? 5.0 : 1.5;  // seconds
  std::vector<Size> sizes;
  for (const int context : {128, 1024}) {
    std::vector<Size> part;
    for (const int sequences : {1, 4, 16, 64, 256})
      for (const int rows : {1, 2, 4, 8, 16})
        // At the longer context only what tells the price of it.
        if (context == 128 ? rows * sequences <= 2048 : rows == 1 || rows == 8)
          part.push_back({sequences, sequences * (rows - 1), context});
    if (context == 128) {
      // The first step with drafts of a padded size must not be a request's: products are tuned then. And a
      // few drafts of many sequences cost more than as many rows of few.
      for (const int rows : executor.step_sizes()) {
        const auto same = [&](const Size& size) { return size.rows() == rows; };
        if (rows == 1 || (rows <= 64 && std::any_of(part.begin(), part.end(), same))) continue;
        const int sequences = std::min(rows > 64 ? rows - rows / 4 : (rows + 3) / 4, most_sequences);
        part.push_back({sequences, rows - sequences, context});
      }
    }
    std::stable_sort(part.begin(), part.end(),
                     [](const Size& a, const Size& b) { return a.rows() < b.rows(); });
    sizes.insert(sizes.end(), part.begin(), part.end());
  }
  // What small steps cost decides most, and what disturbs them passes.
  for (int round = 0; round < 2; ++round)
    for (const int sequences : {1, 4})
      for (const int rows : {1, 2, 4, 8, 16}) sizes.push_back({sequences, sequences * (rows - 1), 128});

  // Runs that a size takes about, with those that set it up. The very first one of all may take far longer.
  constexpr double kRuns = 8;
  const double begin = monotonic_seconds();
  std::vector<StepMeasurement> measured;
  StepMeasurement widest{.size = {.rows = 1}};
  for (const Size& size : sizes) {
    const int rows = size.rows();
    if (rows > max_rows_) continue;
    // At worst a step takes so many times as long as another, as it has times its rows.
    const double expected = widest.seconds * std::max(1.0, static_cast<double>(rows) / widest.size.rows);
    if (monotonic_seconds() + kRuns * expected > begin + budget) continue;
    const double seconds = executor.time_step(size.sequences, size.drafts, size.context);
    if (seconds <= 0) continue;
    const int64_t kv = int64_t{size.sequences} * size.context + rows;
    measured.push_back({size.drafts > 0 ? StepKind::kSpeculative : StepKind::kOrdinary,
                        {.rows = rows, .sequences = size.sequences, .kv_tokens = kv},
                        seconds});
    if (rows >= widest.size.rows) widest = measured.back();
  }
  if (!measured.empty()) cost_.set_measurements(measured);
}

DraftMode Speculator::next(const Scheduler& scheduler) {
  forget_ended();
  sequences_ = 0;
  kv_tokens_ = 0;
  const SchedulerConfig& limits = scheduler.config();
  int64_t prompt_rows = 0;  // of the next step, about
  for (const SeqState* seq : scheduler.running()) {
    if (!is_generating(*seq)) {
      prompt_rows += seq->len() - seq->num_computed;
      continue;
    }
    ++sequences_;
    kv_tokens_ += seq->len();
  }
  int free_slots = limits.max_num_seqs - scheduler.num_slots();
  for (const SeqState* seq : scheduler.waiting()) {
    if ((free_slots -= slots_of(*seq)) < 0 || prompt_rows >= limits.max_num_batched_tokens) break;
    prompt_rows += seq->len() - seq->num_computed;
  }
  const int64_t room = std::max(0, limits.max_num_batched_tokens - sequences_);
  prompt_rows_ = static_cast<int>(std::min(prompt_rows, room));
  return budget_.next(sequences_, kv_tokens_, prompt_rows_);
}

// One for each generating sequence that may get more than a token from its next step. Trees are the
// sequences' own, or, where a token is pending, shadows that begin at the last known one.
void Speculator::collect_requests(const Scheduler& scheduler, float min_p) {
  requests_.clear();
  trees_.clear();
  ids_.clear();
  for (SeqState* seq : scheduler.running()) {
    if (!is_generating(*seq) || !seq->known_to_drafter) continue;
    const bool pending = seq->tokens.back() == kPendingToken;
    const int64_t room =
        std::min<int64_t>(seq->params->max_tokens - seq->output_len(), scheduler.max_len() - seq->len());
    const int depth = static_cast<int>(std::min<int64_t>(room - 1, DraftTree::kMaxNodes - 1));
    if (depth < 1) continue;
    DraftTree* tree;
    if (pending) {
      if (shadows_.size() <= trees_.size()) shadows_.resize(trees_.size() + 1);
      auto& shadow = shadows_[trees_.size()];
      if (!shadow) shadow = std::make_unique<DraftTree>();
      tree = shadow.get();
    } else {
      if (!seq->draft) seq->draft = std::make_unique<DraftTree>();
      tree = seq->draft.get();
    }
    tree->reset(pending ? seq->tokens[seq->tokens.size() - 2] : seq->tokens.back());
    requests_.push_back({.sequence = seq->id,
                         .max_depth = depth,
                         .max_nodes = DraftTree::kMaxNodes - 1,
                         .min_p = min_p,
                         .tree = tree});
    trees_.push_back(tree);
    ids_.push_back(seq->id);
  }
  drafter_->draft(requests_);
  for (const DraftRequest& request : requests_) {
    const DraftTree& tree = *request.tree;
    for (int i = 1; i < tree.size; ++i) {
      TACO_CHECK(tree.token[i] >= 0 && tree.token[i] < vocab_size_ && tree.depth[i] <= request.max_depth,
                 "a drafter proposed token ", tree.token[i], " at depth ", int{tree.depth[i]});
    }
  }
}

void Speculator::drop_drafts(const Scheduler& scheduler) {
  for (SeqState* seq : scheduler.running())
    if (seq->draft) seq->draft->size = 0;
}

void Speculator::draft(const Scheduler& scheduler) {
  drop_drafts(scheduler);
  propose(scheduler);
  drafting_ = true;
}

void Speculator::shadow(const Scheduler& scheduler) {
  propose(scheduler);
  for (DraftTree* tree : trees_) tree->size = 0;
}

void Speculator::propose(const Scheduler& scheduler) {
  const double begin = monotonic_seconds();
  collect_requests(scheduler, budget_.threshold(sequences_, kv_tokens_));
  // Sampled rows are limited, and so is the sum of all.
  const int undrafted = sequences_ - static_cast<int>(requests_.size());
  const int rows = std::min(max_rows_ - undrafted + prompt_rows_, scheduler.config().max_num_batched_tokens);
  DraftDecision decision;
  budget_.select(trees_, ids_, prompt_rows_, kv_tokens_, rows, decision);
  (in_flight_.empty() ? draft_seconds_ : hidden_draft_seconds_) += monotonic_seconds() - begin;
}

void Speculator::submitted(const StepPlan& plan) {
  StepOutcome& out = in_flight_.emplace_back();
  for (const SeqStep& part : plan.seqs) {
    out.size.rows += part.count;
    ++out.size.sequences;
    out.size.kv_tokens += part.start + part.count;
    if (!part.decodes()) out.other_rows += part.count;
  }
  if (drafting_) out.kind = StepKind::kSpeculative;
  drafting_ = false;
  out.draft_seconds = draft_seconds_;
  draft_seconds_ = 0;
  // While the step runs, where it runs elsewhere.
  drafter_->catch_up(tokens_to_learn(out.size.rows, budget_.stats().ordinary_step_seconds, device_));
}

void Speculator::committed(SeqState& seq, std::span<const int32_t> tokens, const DraftTree* draft) {
  StepOutcome& out = in_flight_.front();
  ++out.decoding;
  out.tokens += static_cast<int64_t>(tokens.size());
  if (!seq.known_to_drafter) {  // the step that ended its prompt
    seq.known_to_drafter = true;
    drafter_->begin(seq.id, seq.owner->name_space, seq.prompt());
  } else {
    DraftTree root;
    if (!draft) root.reset(tokens.front());
    const DraftTree& tree = draft ? *draft : root;
    int deepest = 0;
    for (int32_t token : tokens) {
      const int node = tree.find_child(deepest, token);
      if (node < 0) break;
      deepest = node;
    }
    if (draft) budget_.verified(seq.id, tree, deepest);
    drafter_->verified(seq.id, tree, tree.depth[deepest]);
    meter_.count(seq.speculated, tree, deepest);
  }
  drafter_->commit(seq.id, tokens);
  budget_.committed(seq.id, tokens);
}

void Speculator::completed(const std::optional<StepTime>& time) {
  StepOutcome outcome = in_flight_.front();
  in_flight_.erase(in_flight_.begin());
  // What was drafted before the step is in the time since it was planned. A step that ended with others says
  // nothing of its own size.
  if (time && time->steps == 1) {
    outcome.seconds = std::max(0.0, time->seconds - outcome.draft_seconds);
    outcome.hidden_draft_seconds = std::exchange(hidden_draft_seconds_, 0.0);
    budget_.observe(outcome);
  }
  forget_ended();
}

const SpeculationStats& Speculator::stats() {
  SpeculationStats& out = meter_.stats();
  const BudgetStats& budget = budget_.stats();
  out.draft_seconds = budget.draft_seconds;
  out.expected_speedup = budget.expected_speedup;
  out.realised_speedup = budget.realised_speedup;
  out.ordinary_steps = budget.ordinary_steps;
  out.speculative_steps = budget.speculative_steps;
  out.hidden_draft_seconds = budget.hidden_draft_seconds;
  out.ordinary_step_seconds = budget.ordinary_step_seconds;
  out.allowance = budget.allowance;
  out.cache_bytes = drafter_->memory_bytes();
  return out;
}

void Speculator::ended(const SeqState& seq) { ended_.push_back(seq.id); }

void Speculator::forget_ended() {
  for (uint64_t id : ended_) {
    drafter_->end(id);
    budget_.end(id);
  }
  ended_.clear();
}

}  // namespace taco
