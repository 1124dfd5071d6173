#include "sched/scheduler.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "sched/invariants.h"
#include "sched/planner.h"

namespace taco {

Scheduler::Scheduler(const SchedulerConfig& config) : config_(config), pool_(config.num_blocks) {
  TACO_REQUIRE(config.max_num_seqs >= 1, "max_num_seqs must be at least 1, not ", config.max_num_seqs);
  TACO_REQUIRE(config.max_num_batched_tokens >= config.max_num_seqs, "max_num_batched_tokens (",
               config.max_num_batched_tokens, ") must be at least max_num_seqs (", config.max_num_seqs,
               "): raise the one or lower the other");
  TACO_REQUIRE(config.block_size >= 1, "block_size must be at least 1, not ", config.block_size);
  TACO_REQUIRE(config.max_model_len >= 1, "max_model_len must be at least 1, not ", config.max_model_len);
  TACO_REQUIRE(config.watermark >= 0.0 && config.watermark < 1.0, "watermark must be in [0, 1), not ",
               config.watermark);
  max_len_ = std::min<int64_t>(config.max_model_len, config.num_blocks * config.block_size);
  watermark_blocks_ =
      static_cast<int64_t>(std::floor(config.watermark * static_cast<double>(config.num_blocks)));
  given_up_.assign(static_cast<size_t>(config.num_blocks), 0);
}

void Scheduler::check_admissible(int64_t prompt_len, int best_of) const {
  TACO_REQUIRE(prompt_len >= 1, "the prompt is empty: give at least one token");
  TACO_REQUIRE(prompt_len <= config_.max_model_len, "the prompt has ", prompt_len,
               " tokens, more than max_model_len (", config_.max_model_len,
               "): shorten it or raise max_model_len");
  TACO_REQUIRE(prompt_len <= max_len_, "the prompt has ", prompt_len,
               " tokens, but the whole KV cache holds ", max_len_, " (", config_.num_blocks, " blocks of ",
               config_.block_size, "): shorten the prompt or give the cache more memory");
  TACO_REQUIRE(
      config_.enable_chunked_prefill || prompt_len <= config_.max_num_batched_tokens, "the prompt has ",
      prompt_len, " tokens, more than max_num_batched_tokens (", config_.max_num_batched_tokens,
      "), and enable_chunked_prefill is off: shorten the prompt, raise max_num_batched_tokens or set "
      "enable_chunked_prefill");
  TACO_REQUIRE(best_of >= 1, "best_of must be at least 1, not ", best_of);
  TACO_REQUIRE(best_of <= config_.max_num_seqs, "best_of (or n) is ", best_of, ", more than max_num_seqs (",
               config_.max_num_seqs, "): lower it or raise max_num_seqs");
}

void Scheduler::add(Request& request) {
  for (SeqState& seq : request.sequences) {
    seq.key = {config_.priority_scheduling ? request.priority : 0, request.id, seq.index};
  }
  ++num_requests_;
  waiting_.insert(&request.sequences.front());
}

void Scheduler::run_sequence(SeqState& seq) {
  seq.status = SeqStatus::kRunning;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &seq, Before()), &seq);
  if (seq.owner->num_running++ == 0) ++num_running_requests_;
}

void Scheduler::stop_sequence(SeqState& seq) {
  auto it = std::lower_bound(running_.begin(), running_.end(), &seq, Before());
  TACO_CHECK(it != running_.end() && *it == &seq, "sequence ", seq.id, " is not among the running");
  running_.erase(it);
  if (--seq.owner->num_running == 0) --num_running_requests_;
}

void Scheduler::finish(SeqState& seq, FinishReason reason) {
  TACO_CHECK(!in_flight_, "a sequence cannot be finished during a step");
  if (seq.status == SeqStatus::kFinished) return;
  Request& request = *seq.owner;
  if (seq.status == SeqStatus::kRunning) {
    stop_sequence(seq);
    num_slots_ -= slots_of(seq);
  } else if (request.forked || seq.index == 0) {
    waiting_.erase(&seq);
  }
  release_table(pool_, seq.blocks);
  seq.status = SeqStatus::kFinished;
  seq.finish_reason = reason;
  if (--request.num_unfinished == 0) --num_requests_;
}

void Scheduler::plan(Proposal& proposal) const {
  TACO_CHECK(!in_flight_, "the last step was neither committed nor rolled back");
  Planner(*this, proposal).plan();
}

void Scheduler::preempt(SeqState& seq) {
  stop_sequence(seq);
  num_slots_ -= slots_of(seq);
  release_table(pool_, seq.blocks);
  seq.num_computed = 0;
  seq.status = SeqStatus::kPreempted;
  waiting_.insert(&seq);
  ++num_preemptions_;
}

const StepPlan& Scheduler::reserve(const Proposal& proposal) {
  TACO_CHECK(!in_flight_, "the last step was neither committed nor rolled back");
  in_flight_ = true;
  plan_is_prompt_first_ = proposal.prompt_first;
  plan_.copies.clear();
  plan_.num_tokens = proposal.num_tokens;
  undo_.clear();
  admitted_.clear();
  samplers_.clear();

  for (SeqState* seq : proposal.preempt) preempt(*seq);
  for (SeqState* seq : proposal.admit) {
    admitted_.emplace_back(seq, seq->status);
    waiting_.erase(seq);
    run_sequence(*seq);
    num_slots_ += slots_of(*seq);
  }
  size_t first_admitted = proposal.items.size() - proposal.admit.size();
  plan_.seqs.resize(proposal.items.size());
  for (size_t i = 0; i < proposal.items.size(); ++i) {
    auto [seq, count] = proposal.items[i];
    int64_t known = i < first_admitted ? seq->num_computed + count : seq->len();
    reserve_blocks(*seq, blocks_for(known, config_.block_size), count);
    describe_step(*seq, count, plan_.seqs[i]);
  }
#ifdef TACO_CHECK_STEPS
  check_invariants(*this);
#endif
  return plan_;
}

void Scheduler::reserve_blocks(SeqState& seq, int64_t num_blocks, int32_t count) {
  Undo undo{&seq, seq.blocks.size(), plan_.copies.size(), 0};
  make_writable(pool_, seq.blocks, seq.num_computed / config_.block_size,
                blocks_for(seq.num_computed + count, config_.block_size), plan_.copies);
  undo.last_copy = plan_.copies.size();
  bool grown = grow_table(pool_, seq.blocks, num_blocks);
  TACO_CHECK(grown, "the plan promised blocks that the pool does not have");
  undo_.push_back(undo);
}

void Scheduler::describe_step(SeqState& seq, int32_t count, SeqStep& step) {
  step.sequence = &seq;
  step.start = seq.num_computed;
  step.count = count;
  step.samplers.clear();
  int32_t end = step.start + count;
  if (end == seq.len()) {
    if (seq.owner->forked) {
      step.samplers.push_back(&seq);
      samplers_.push_back(&seq);
    } else {
      for (SeqState& sibling : seq.owner->sequences) {
        if (sibling.status == SeqStatus::kFinished) continue;
        step.samplers.push_back(&sibling);
        samplers_.push_back(&sibling);
      }
    }
  }
  step.prompt_logprobs = seq.params->prompt_logprobs >= 0 && seq.index == 0 &&
                         seq.prompt_logprobs_from < seq.prompt_len && end >= seq.prompt_logprobs_from;
}

// The sequences of the request that did not compute the prompt take their part in it.
void Scheduler::fork(Request& request) {
  SeqState& first = request.sequences.front();
  num_slots_ -= slots_of(first);
  request.forked = true;
  ++num_slots_;
  for (size_t i = 1; i < request.sequences.size(); ++i) {
    SeqState& seq = request.sequences[i];
    if (seq.status == SeqStatus::kFinished) continue;
    seq.blocks = fork_table(pool_, first.blocks, blocks_for(first.num_computed, config_.block_size));
    seq.num_computed = seq.computed_once = first.num_computed;
    run_sequence(seq);
    ++num_slots_;
  }
}

void Scheduler::commit(std::span<const Choice> choices, std::vector<SeqState*>& sequences) {
  TACO_CHECK(in_flight_, "there is no step to commit");
  // All is checked before anything changes, so that a bad output can still be rolled back.
  TACO_CHECK(choices.size() == samplers_.size(), "the step has ", samplers_.size(), " samplers, the output ",
             choices.size());
  sequences.resize(choices.size());
  sampled_.assign(samplers_.size(), false);
  for (size_t i = 0; i < choices.size(); ++i) {
    size_t at = i;  // executors keep the plan's order
    if (samplers_[at]->id != choices[i].seq) {
      at = static_cast<size_t>(std::find_if(samplers_.begin(), samplers_.end(),
                                            [&](const SeqState* s) { return s->id == choices[i].seq; }) -
                               samplers_.begin());
      TACO_CHECK(at < samplers_.size(), "a token for sequence ", choices[i].seq, ", which samples none");
    }
    TACO_CHECK(!sampled_[at], "two tokens for sequence ", choices[i].seq);
    sampled_[at] = true;
    sequences[i] = samplers_[at];
  }

  for (const SeqStep& step : plan_.seqs) {
    // Plans are made of SeqStates, by this class, and are const for the executor's eyes only.
    SeqState& seq = *const_cast<SeqState*>(static_cast<const SeqState*>(step.sequence));
    int32_t end = step.start + step.count;
    seq.num_computed = end;
    int32_t new_from = std::max(step.start, seq.computed_once);
    num_prompt_tokens_ += static_cast<uint64_t>(std::max(std::min(end, seq.prompt_len) - new_from, 0));
    seq.computed_once = std::max(seq.computed_once, end);
    if (step.prompt_logprobs) seq.prompt_logprobs_from = std::max(seq.prompt_logprobs_from, end + 1);
    if (!step.samplers.empty() && !seq.owner->forked) fork(*seq.owner);
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i].failed) continue;
    sequences[i]->tokens.push_back(choices[i].token);
    sequences[i]->cumulative_logprob += static_cast<double>(choices[i].logprob);
    ++num_generation_tokens_;
  }
  last_was_prompt_first_ = plan_is_prompt_first_;
  in_flight_ = false;
  ++plan_.number;
}

void Scheduler::rollback() {
  TACO_CHECK(in_flight_, "there is no step to roll back");
  for (auto undo = undo_.rbegin(); undo != undo_.rend(); ++undo) {
    SeqState& seq = *undo->seq;
    shrink_table(pool_, seq.blocks, static_cast<int64_t>(undo->num_blocks));
    for (size_t i = undo->last_copy; i-- > undo->first_copy;) {
      const BlockCopy& copy = plan_.copies[i];
      auto at = std::find(seq.blocks.begin(), seq.blocks.end(), copy.to);
      TACO_CHECK(at != seq.blocks.end());
      pool_.retain(copy.from);  // alive: it was shared, and nothing is released while a step is in flight
      pool_.release(copy.to);
      *at = copy.from;
    }
  }
  for (auto it = admitted_.rbegin(); it != admitted_.rend(); ++it) {
    auto [seq, status] = *it;
    stop_sequence(*seq);
    num_slots_ -= slots_of(*seq);
    seq->status = status;
    waiting_.insert(seq);
  }
  in_flight_ = false;
#ifdef TACO_CHECK_STEPS
  check_invariants(*this);
#endif
}

}  // namespace taco
