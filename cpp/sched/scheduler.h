// What each step computes, within a budget of tokens, sequences and KV blocks.
//
// A step is a transaction:
//   plan      pure: looks, decides, changes nothing
//   reserve   takes the blocks and makes the StepPlan that an executor runs
//   commit    the step has run: tokens are appended; the only place where sequences advance
//   rollback  the step has failed: everything is as before plan, but what was preempted stays preempted (its
//             blocks may have been overwritten) and will be recomputed
//
// There is no prefill and no decode phase: a sequence has tokens known and tokens computed, and gets some of
// the step's budget. Running sequences that lack one token come first, then known tokens, in the policy's
// order. A sequence holds blocks for all its known tokens from its admission on, so that blocks can run out
// only where a sequence grows.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "sched/request.h"
#include "sched/step_plan.h"

namespace taco {

struct SchedulerConfig {
  int max_num_batched_tokens = 2048;
  int max_num_seqs = 256;
  bool enable_chunked_prefill = true;
  bool priority_scheduling = false;
  double watermark = 0.01;
  int max_model_len = 0;
  int block_size = 16;
  int64_t num_blocks = 0;
};

// What plan decided, by reference to the sequences concerned.
struct Proposal {
  struct Item {
    SeqState* seq;
    int32_t count;
  };
  std::vector<SeqState*> preempt;  // in the order in which they lose their blocks
  std::vector<SeqState*> admit;    // the last items, in the same order
  std::vector<Item> items;
  int32_t num_tokens = 0;
  bool prompt_first = false;  // a whole prompt took the place of running sequences
  bool empty() const { return items.empty(); }
};

// The result of one sampler of the plan.
struct Choice {
  SeqId seq;
  int32_t token;
  float logprob;
  bool failed;  // nothing is appended; the caller must finish the sequence
};

// Not thread-safe: the engine thread owns it.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  // Throws kInvalidArgument, with what to change, for a request that could never run. Thread-safe.
  void check_admissible(int64_t prompt_len, int best_of) const;
  // The most tokens that one sequence may have: the model's limit, or what the whole cache holds.
  int64_t max_len() const { return max_len_; }

  // Queues it. The request must have passed check_admissible.
  void add(Request& request);
  // Ends one sequence in whatever state it is, between steps, and gives its blocks back. Idempotent.
  void finish(SeqState& seq, FinishReason reason);

  void plan(Proposal& proposal) const;
  const StepPlan& reserve(const Proposal& proposal);
  // choices: exactly one for each sampler of the plan, in any order. sequences[i] is then that of choices[i].
  void commit(std::span<const Choice> choices, std::vector<SeqState*>& sequences);
  void rollback();

  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  int64_t num_running_requests() const { return num_running_requests_; }
  int64_t num_requests() const { return num_requests_; }
  uint64_t num_preemptions() const { return num_preemptions_; }
  // Prompt tokens computed and tokens sampled; what is computed again after a preemption does not count
  // again.
  uint64_t num_prompt_tokens() const { return num_prompt_tokens_; }
  uint64_t num_generation_tokens() const { return num_generation_tokens_; }

  // For the invariant checks and tests.
  struct Before {
    bool operator()(const SeqState* a, const SeqState* b) const { return goes_before(a->key, b->key); }
  };
  const SchedulerConfig& config() const { return config_; }
  const BlockPool& pool() const { return pool_; }
  const std::vector<SeqState*>& running() const { return running_; }
  const std::set<SeqState*, Before>& waiting() const { return waiting_; }
  const StepPlan* plan_in_flight() const { return in_flight_ ? &plan_ : nullptr; }
  int num_slots() const { return num_slots_; }

 private:
  class Planner;
  struct Undo {  // of one item's reservation
    SeqState* seq;
    size_t num_blocks;             // before
    size_t first_copy, last_copy;  // in plan_.copies
  };

  void run_sequence(SeqState& seq);   // into running_
  void stop_sequence(SeqState& seq);  // out of running_
  void preempt(SeqState& seq);
  void reserve_blocks(SeqState& seq, int64_t num_blocks, int32_t count);
  void describe_step(SeqState& seq, int32_t count, SeqStep& step);
  void fork(Request& request);

  SchedulerConfig config_;
  int64_t max_len_;
  int64_t watermark_blocks_;
  BlockPool pool_;
  std::vector<SeqState*> running_;       // in the policy's order
  std::set<SeqState*, Before> waiting_;  // likewise
  int num_slots_ = 0;                    // of max_num_seqs; an unforked request takes best_of
  int64_t num_requests_ = 0, num_running_requests_ = 0;
  uint64_t num_preemptions_ = 0, num_prompt_tokens_ = 0, num_generation_tokens_ = 0;

  bool in_flight_ = false;
  bool last_was_prompt_first_ = false;
  bool plan_is_prompt_first_ = false;
  StepPlan plan_;
  std::vector<Undo> undo_;
  std::vector<std::pair<SeqState*, SeqStatus>> admitted_;  // and what they were before
  std::vector<SeqState*> samplers_;                        // of the plan, in its order
  std::vector<bool> sampled_;

  // The planner's scratch, empty between plans: holds on blocks that the plan would give up.
  mutable std::vector<int32_t> given_up_;
  mutable std::vector<BlockId> given_up_list_;
};

}  // namespace taco
