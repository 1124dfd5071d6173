// Drafts for the engine loop: asks whether drafting pays, has trees made before a step, and tells everybody
// what became of them.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/step_clock.h"
#include "exec/executor.h"
#include "sched/scheduler.h"
#include "spec/draft_budget.h"
#include "spec/drafter.h"
#include "spec/speculation_config.h"
#include "spec/speculation_stats.h"

namespace taco {

// All functions belong to the engine thread.
class Speculator {
 public:
  // Throws kInvalidArgument if the executor takes no drafts.
  Speculator(const SpeculationConfig& config, std::shared_ptr<Drafter> drafter, Executor& executor,
             int max_num_batched_tokens, int max_num_seqs);

  // What the step that is planned next should do. If it is kDraft, no step may be in flight when it is
  // planned.
  DraftMode next(const Scheduler& scheduler);
  // Leaves a draft in every running sequence that is worth one, and none in the others.
  void draft(const Scheduler& scheduler);
  // Trees of which nothing is verified, to learn what they would have been worth.
  void shadow(const Scheduler& scheduler);

  // The step has been given to the executor.
  void submitted(const StepPlan& plan);
  // Tokens that a sequence got from the oldest submitted step, and its draft there, or null.
  void committed(SeqState& seq, std::span<const int32_t> tokens, const DraftTree* draft);
  // All of the oldest submitted step has been committed. time: none if it is not known.
  void completed(const std::optional<StepTime>& time);
  // The sequence is finished; tokens that it got in the step at hand may still be committed.
  void ended(const SeqState& seq);

  const SpeculationStats& stats();

 private:
  void measure(Executor& executor, int most_sequences);
  void collect_requests(const Scheduler& scheduler, float min_p);
  void propose(const Scheduler& scheduler);
  void drop_drafts(const Scheduler& scheduler);
  void forget_ended();

  std::shared_ptr<Drafter> drafter_;
  StepCost cost_;
  const bool device_;  // steps are computed elsewhere, and ordinary ones run ahead
  DraftBudget budget_;
  SpeculationMeter meter_;
  const int vocab_size_, max_rows_;

  // Of the step at hand; kept for their memory.
  std::vector<DraftRequest> requests_;
  std::vector<DraftTree*> trees_;
  std::vector<uint64_t> ids_;
  std::vector<std::unique_ptr<DraftTree>> shadows_;
  bool drafting_ = false;  // drafts were made for the step that is submitted next
  double draft_seconds_ = 0, hidden_draft_seconds_ = 0;  // the latter while a step ran
  int sequences_ = 0;                                    // that are generating
  int64_t kv_tokens_ = 0;
  int prompt_rows_ = 0;

  std::vector<StepOutcome> in_flight_;  // the oldest first; draft_seconds: what was drafted before it
  std::vector<uint64_t> ended_;
};

}  // namespace taco
