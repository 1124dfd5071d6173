// The planning half of the scheduler: reads its state, writes a Proposal.
#pragma once

#include "sched/scheduler.h"

namespace taco {

class Scheduler::Planner {
 public:
  Planner(const Scheduler& scheduler, Proposal& out);
  ~Planner();

  void plan();

 private:
  // Blocks that the sequence must take from the pool to have room for `num_blocks` and to write the tokens
  // num_computed .. num_computed + count - 1.
  int64_t blocks_needed(const SeqState& seq, int64_t num_blocks, int32_t count) const;
  void take(SeqState& seq, int64_t needed, int32_t count);
  int32_t holders(BlockId block) const;
  void give_up(BlockId block);
  void give_up_blocks(const SeqState& seq);
  void preempt_last();
  void forget_preemptions();
  void schedule(SeqState& seq, int32_t count);
  // Whether the waiting sequence can be admitted now, with all its known tokens, as far as slots and blocks
  // go.
  struct Admission {
    Proposal::Hit hit;
    int64_t blocks = 0;  // that the pool will have less to give
    int32_t left(const SeqState& seq) const { return seq.len() - seq.num_computed - hit.tokens; }
  };
  bool fits(const SeqState& seq, Admission& admission) const;
  void look_up(const SeqState& seq, int64_t room, Admission& admission) const;
  bool awaits_prefix(const SeqState& seq) const;
  const SeqState* first_waiting();
  void pass(const SeqState& seq);

  void displace_by_priority();
  int32_t tokens_kept_for_a_whole_prompt();
  void plan_last_tokens(int32_t budget);
  void plan_known_tokens();
  void plan_admissions();
  void plan_drafts();
  int32_t chunk(const SeqState& seq, int32_t left) const;

  const Scheduler& s_;
  Proposal& out_;
  int32_t budget_;
  int64_t free_;
  int num_slots_;
  // Of those in the queue who wait for blocks, of a lower tier or of somebody's prompt: others pass them, but
  // do not take their place.
  int passed_slots_ = 0;
  int64_t passed_blocks_ = 0;
  size_t alive_;  // running_[alive_ ...] are preempted by this plan: victims are always the last in the order
  bool displaced_ = false;
  bool out_of_blocks_ = false;
};

}  // namespace taco
