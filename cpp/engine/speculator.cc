#include "engine/speculator.h"

#include <algorithm>

#include "base/error.h"
#include "engine/engine_request.h"

namespace taco {
namespace {

constexpr int64_t kCatchUpTokens = 256;

// Whether the sequence's next step computes one known token and samples: only then is a draft of use.
bool is_generating(const SeqState& seq) { return seq.len() - seq.num_computed == 1 && seq.owner->forked; }

}  // namespace

Speculator::Speculator(const SpeculationConfig& config, std::shared_ptr<Drafter> drafter, Executor& executor,
                       int max_num_batched_tokens)
    : drafter_(std::move(drafter)),
      budget_(config, &cost_, executor.max_in_flight() > 1),
      meter_(config.lookahead.log_interval),
      vocab_size_(executor.vocab_size()),
      max_rows_(std::min(executor.max_sampled_rows(), max_num_batched_tokens)) {
  TACO_REQUIRE(max_rows_ > 1, "the executor takes no drafts: give it max_draft_rows");
  if (!config.cost_model) return;
  for (StepKind kind : {StepKind::kOrdinary, StepKind::kSpeculative})
    cost_.set_padding(kind, executor.step_sizes());
  measure(executor);
}

// What steps cost, before the first request: of a few sizes, for as long as start-up may take.
void Speculator::measure(Executor& executor) {
  constexpr double kBudget = 1.5, kAgain = 2.5;  // seconds since the beginning
  const double begin = monotonic_seconds();
  std::vector<StepMeasurement> measured;
  // What small steps cost decides most, and what disturbs them passes: they are measured three times.
  for (int round = 0; round < 3; ++round) {
    for (int sequences : {1, 4, 16, 64, 256}) {
      if (round > 0 && sequences > 4) break;
      for (int rows : {1, 2, 4, 8, 16}) {
        if (sequences * rows > max_rows_ || monotonic_seconds() - begin > (round == 0 ? kBudget : kAgain))
          continue;
        for (int context : {128, 1024}) {
          const double seconds = executor.time_step(sequences, rows, context);
          if (seconds <= 0) continue;
          const int64_t kv = int64_t{sequences} * (context + rows);
          measured.push_back({rows > 1 ? StepKind::kSpeculative : StepKind::kOrdinary,
                              {.rows = sequences * rows, .sequences = sequences, .kv_tokens = kv},
                              seconds});
        }
      }
    }
  }
  if (!measured.empty()) cost_.set_measurements(measured);
}

DraftMode Speculator::next(const Scheduler& scheduler) {
  forget_ended();
  sequences_ = 0;
  kv_tokens_ = 0;
  for (const SeqState* seq : scheduler.running()) {
    if (!is_generating(*seq)) continue;
    ++sequences_;
    kv_tokens_ += seq->len();
  }
  return budget_.next(sequences_, kv_tokens_);
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
  // Rows of prompts in this step, about.
  const SchedulerConfig& limits = scheduler.config();
  int64_t prompt_rows = 0;
  for (const SeqState* seq : scheduler.running())
    if (!is_generating(*seq)) prompt_rows += seq->len() - seq->num_computed;
  int free_slots = limits.max_num_seqs - scheduler.num_slots();
  for (const SeqState* seq : scheduler.waiting()) {
    if ((free_slots -= slots_of(*seq)) < 0 || prompt_rows >= limits.max_num_batched_tokens) break;
    prompt_rows += seq->len() - seq->num_computed;
  }
  collect_requests(scheduler, budget_.threshold(sequences_, kv_tokens_));
  prompt_rows = std::min<int64_t>(prompt_rows, limits.max_num_batched_tokens - sequences_);
  // Sampled rows are limited, and so is the sum of all.
  const int undrafted = sequences_ - static_cast<int>(requests_.size());
  const int64_t rows = std::min<int64_t>(max_rows_ - undrafted + prompt_rows, limits.max_num_batched_tokens);
  DraftDecision decision;
  budget_.select(trees_, ids_, static_cast<int>(prompt_rows), kv_tokens_, static_cast<int>(rows), decision);
  draft_seconds_ += monotonic_seconds() - begin;
}

void Speculator::submitted(const StepPlan& plan, double now) {
  Step& step = in_flight_.emplace_back();
  step.start = now;
  StepOutcome& out = step.outcome;
  for (const SeqStep& part : plan.seqs) {
    out.size.rows += part.count;
    ++out.size.sequences;
    out.size.kv_tokens += part.start + part.count;
    const bool decodes = part.draft || (part.count == 1 && !part.samplers.empty());
    if (!decodes) out.other_rows += part.count;
  }
  if (drafting_) out.kind = StepKind::kSpeculative;
  drafting_ = false;
  // While the step runs: more than it will commit, little enough not to be felt where steps run on this
  // thread.
  drafter_->catch_up(kCatchUpTokens);
}

void Speculator::committed(SeqState& seq, std::span<const int32_t> tokens, const DraftTree* draft) {
  StepOutcome& out = in_flight_.front().outcome;
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

void Speculator::completed(double now) {
  Step step = in_flight_.front();
  in_flight_.erase(in_flight_.begin());
  // A step that was submitted while another ran began when that one ended; drafting came before it.
  const double begin = std::max(last_end_, step.start);
  step.outcome.seconds = now - begin;
  step.outcome.draft_seconds = draft_seconds_;
  draft_seconds_ = 0;
  last_end_ = now;
  budget_.observe(step.outcome);
  forget_ended();
}

const SpeculationStats& Speculator::stats() {
  SpeculationStats& out = meter_.stats();
  const BudgetStats& budget = budget_.stats();
  out.draft_seconds = budget.draft_seconds;
  out.expected_speedup = budget.expected_speedup;
  out.realised_speedup = budget.realised_speedup;
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
