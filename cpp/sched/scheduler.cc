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
  TACO_REQUIRE(config.num_swap_blocks >= 0, "num_swap_blocks must be at least 0, not ",
               config.num_swap_blocks);
  max_len_ = std::min<int64_t>(config.max_model_len, config.num_blocks * config.block_size);
  watermark_blocks_ =
      static_cast<int64_t>(std::floor(config.watermark * static_cast<double>(config.num_blocks)));
  given_up_.assign(static_cast<size_t>(config.num_blocks), 0);
  if (config.prefix_cache) cache_.emplace(*config.prefix_cache, pool_);
  if (config.num_swap_blocks > 0) {
    host_pool_.emplace(config.num_swap_blocks);
    host_block_of_.assign(static_cast<size_t>(config.num_blocks), -1);
  }
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
  if (seq.status == SeqStatus::kFinished) return;
  for (int age = 0; age < num_flights_; ++age) flight(age).reversible = false;
  Request& request = *seq.owner;
  if (seq.status == SeqStatus::kRunning) {
    stop_sequence(seq);
    num_slots_ -= slots_of(seq);
  } else if (request.forked || seq.index == 0) {
    waiting_.erase(&seq);
    if (std::erase(fetching_, &seq) > 0 && seq.fetch.id != 0) cache_->cancel_fetch(seq.fetch.id);
  }
  // The run of accepted drafts that it ends with.
  if (reason != FinishReason::kError) publish(seq);
  release_table(pool_, seq.blocks);
  if (!seq.host_blocks.empty()) release_table(*host_pool_, seq.host_blocks);
  if (seq.tokens.back() == kPendingToken) seq.tokens.pop_back();
  seq.status = SeqStatus::kFinished;
  seq.finish_reason = reason;
  if (--request.num_unfinished == 0) --num_requests_;
}

void Scheduler::plan(Proposal& proposal) const {
  TACO_CHECK(num_flights_ == 0 || (num_flights_ == 1 && oldest().advanced),
             "the last step was neither advanced nor committed nor rolled back");
  Planner(*this, proposal).plan();
}

bool Scheduler::swaps(const SeqState& seq) const {
  if (!host_pool_ || seq.num_computed == 0) return false;
  switch (config_.preemption_mode) {
    case PreemptionMode::kAuto:
      return !cache_ && seq.owner->num_unfinished > 1;
    case PreemptionMode::kRecompute:
      return false;
    case PreemptionMode::kSwap:
      return true;
  }
  return false;
}

// False, and nothing changed, if the swap space is too small. What several victims of the plan share is moved
// once.
bool Scheduler::swap_out(SeqState& seq, Flight& flight) {
  std::span<const BlockId> blocks(seq.blocks);
  blocks = blocks.first(static_cast<size_t>(blocks_for(seq.num_computed, config_.block_size)));
  auto new_blocks = std::count_if(blocks.begin(), blocks.end(), [&](BlockId block) {
    return host_block_of_[static_cast<size_t>(block)] < 0;
  });
  if (new_blocks > host_pool_->num_free()) return false;
  for (BlockId block : blocks) {
    BlockId& host = host_block_of_[static_cast<size_t>(block)];
    if (host < 0) {
      host = host_pool_->allocate();
      flight.plan.swap_out.push_back({block, host});
    } else {
      host_pool_->retain(host);
    }
    seq.host_blocks.push_back(host);
  }
  flight.swapped_out.push_back(&seq);
  return true;
}

// Its device blocks have been taken. The host's are held until the step is advanced.
void Scheduler::swap_in(SeqState& seq, Flight& flight) {
  for (size_t i = 0; i < seq.host_blocks.size(); ++i) {
    flight.plan.swap_in.push_back({seq.blocks[i], seq.host_blocks[i]});
  }
  flight.swapped_in.push_back(&seq);
}

void Scheduler::preempt(SeqState& seq, Flight& flight) {
  stop_sequence(seq);
  num_slots_ -= slots_of(seq);
  if (!swaps(seq) || !swap_out(seq, flight)) seq.num_computed = seq.num_committed = 0;
  release_table(pool_, seq.blocks);
  detach(seq);
  seq.status = SeqStatus::kPreempted;
  waiting_.insert(&seq);
  ++num_preemptions_;
}

const StepPlan& Scheduler::reserve(const Proposal& proposal) {
  TACO_CHECK(num_flights_ == 0 || (num_flights_ == 1 && oldest().advanced),
             "the last step was neither advanced nor committed nor rolled back");
  TACO_CHECK(num_flights_ == 0 || proposal.preempt.empty(), "preemption while a step is in flight");
  Flight& flight = this->flight(num_flights_++);
  StepPlan& plan = flight.plan;
  plan.number = num_steps_++;
  plan.swap_out.clear();
  plan.swap_in.clear();
  plan.copies.clear();
  plan.wait_for.clear();
  plan.num_tokens = proposal.num_tokens;
  plan.has_trees = proposal.has_trees;
  flight.undo.clear();
  flight.admitted.clear();
  flight.swapped_out.clear();
  flight.swapped_in.clear();
  flight.samplers.clear();
  flight.prompt_first = proposal.prompt_first;
  flight.from_history = flight.has_parts = flight.advanced = false;
  flight.reversible = true;

  for (SeqState* seq : proposal.preempt) preempt(*seq, flight);
  for (const BlockMove& move : plan.swap_out) host_block_of_[static_cast<size_t>(move.device)] = -1;
  for (size_t i = 0; i < proposal.admit.size(); ++i) {
    SeqState* seq = proposal.admit[i];
    const Proposal::Hit& hit = proposal.hits[i];
    flight.admitted.push_back({seq, seq->status, hit.tokens});
    waiting_.erase(seq);
    run_sequence(*seq);
    num_slots_ += slots_of(*seq);
    // Before anybody takes a block from the pool, which may be one that the cache has found for this one.
    if (cache_) attach(*seq, hit, flight);
  }
  size_t first_admitted = proposal.items.size() - proposal.admit.size();
  plan.seqs.resize(proposal.items.size());
  for (size_t i = 0; i < proposal.items.size(); ++i) {
    const auto [seq, count, drafts] = proposal.items[i];
    if (seq->draft) seq->draft->size = drafts ? count : 0;
    int64_t known = i < first_admitted ? seq->num_computed + count : seq->len();
    reserve_blocks(*seq, blocks_for(known, config_.block_size), count, flight);
    if (!seq->host_blocks.empty()) swap_in(*seq, flight);
    plan.seqs[i].draft = drafts ? seq->draft.get() : nullptr;
    describe_step(*seq, count, flight, plan.seqs[i]);
    ++seq->owner->num_in_flight;
  }
  if (cache_) {
    cache_->take_evictions(plan.number, plan.swap_out, plan.wait_for);
    for (BlockId block : pinned_) pool_.release(block);
    pinned_.clear();
    std::sort(plan.wait_for.begin(), plan.wait_for.end());
    plan.wait_for.erase(std::unique(plan.wait_for.begin(), plan.wait_for.end()), plan.wait_for.end());
  }
#ifdef TACO_CHECK_STEPS
  check_invariants(*this);
#endif
  return plan;
}

void Scheduler::reserve_blocks(SeqState& seq, int64_t num_blocks, int32_t count, Flight& flight) {
  Undo undo{&seq, seq.blocks.size(), flight.plan.copies.size(), 0};
  make_writable(pool_, seq.blocks, seq.num_computed / config_.block_size,
                blocks_for(seq.num_computed + count, config_.block_size), flight.plan.copies);
  undo.last_copy = flight.plan.copies.size();
  bool grown = grow_table(pool_, seq.blocks, num_blocks);
  TACO_CHECK(grown, "the plan promised blocks that the pool does not have");
  flight.undo.push_back(undo);
}

void Scheduler::describe_step(SeqState& seq, int32_t count, Flight& flight, SeqStep& step) {
  step.sequence = &seq;
  step.start = seq.num_computed;
  step.count = count;
  step.samplers.clear();
  int32_t end = step.draft ? seq.len() : step.start + count;
  flight.has_parts |= end < seq.len();
  if (end == seq.len()) {
    flight.from_history |= seq.owner->from_history || step.draft != nullptr;
    if (seq.owner->forked) {
      step.samplers.push_back(&seq);
      flight.samplers.push_back(&seq);
    } else {
      for (SeqState& sibling : seq.owner->sequences) {
        if (sibling.status == SeqStatus::kFinished) continue;
        step.samplers.push_back(&sibling);
        flight.samplers.push_back(&sibling);
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
    seq.attachment = first.attachment;
    seq.num_committed = first.num_committed;
    run_sequence(seq);
    ++num_slots_;
  }
}

void Scheduler::advance() {
  TACO_CHECK(num_flights_ > 0 && !oldest().advanced, "there is no step to advance");
  Flight& flight = this->flight(0);
  for (size_t i = 0; i < flight.undo.size(); ++i) {
    SeqState& seq = *flight.undo[i].seq;
    if (seq.status == SeqStatus::kFinished) continue;
    const SeqStep& step = flight.plan.seqs[i];
    int32_t end = step.start + (step.draft ? 1 : step.count);
    seq.num_computed = end;
    const int32_t prompt_end = std::min(end, seq.prompt_len);
    auto count = [&](int32_t from) { return static_cast<uint64_t>(std::max(prompt_end - from, 0)); };
    num_prompt_tokens_ += count(seq.computed_once);
    num_prompt_tokens_computed_ += count(std::max(step.start, seq.computed_once));
    seq.computed_once = std::max(seq.computed_once, end);
    if (step.prompt_logprobs) seq.prompt_logprobs_from = std::max(seq.prompt_logprobs_from, end + 1);
    if (!step.samplers.empty() && !seq.owner->forked) fork(*seq.owner);
  }
  for (SeqState* seq : flight.samplers) {
    if (seq->status != SeqStatus::kFinished) seq->tokens.push_back(kPendingToken);
  }
  for (SeqState* seq : flight.swapped_in) {
    if (!seq->host_blocks.empty()) release_table(*host_pool_, seq->host_blocks);
  }
  for (const Flight::Admission& admission : flight.admitted) count_hit(admission);
  last_was_prompt_first_ = flight.prompt_first;
  flight.advanced = true;
}

void Scheduler::commit(std::span<const Choice> choices, std::vector<SeqState*>& sequences) {
  TACO_CHECK(num_flights_ > 0, "there is no step to commit");
  Flight& flight = this->flight(0);
  const std::vector<SeqState*>& samplers = flight.samplers;
  // All is checked before anything changes, so that a bad output can still be rolled back.
  TACO_CHECK(choices.size() == samplers.size(), "the step has ", samplers.size(), " samplers, the output ",
             choices.size());
  sequences.resize(choices.size());
  sampled_.assign(samplers.size(), false);
  for (size_t i = 0; i < choices.size(); ++i) {
    size_t at = i;  // executors keep the plan's order
    if (samplers[at]->id != choices[i].seq) {
      at = static_cast<size_t>(std::find_if(samplers.begin(), samplers.end(),
                                            [&](const SeqState* s) { return s->id == choices[i].seq; }) -
                               samplers.begin());
      TACO_CHECK(at < samplers.size(), "a token for sequence ", choices[i].seq, ", which samples none");
    }
    TACO_CHECK(!sampled_[at], "two tokens for sequence ", choices[i].seq);
    sampled_[at] = true;
    sequences[i] = samplers[at];
  }

  if (!flight.advanced) advance();
  for (size_t i = 0; i < choices.size(); ++i) {
    SeqState& seq = *sequences[i];
    if (seq.status == SeqStatus::kFinished) {
      sequences[i] = nullptr;
    } else if (choices[i].failed) {
      seq.tokens.pop_back();
    } else {
      seq.tokens.back() = choices[i].token;
      seq.cumulative_logprob += static_cast<double>(choices[i].logprob);
      ++num_generation_tokens_;
      seq.num_committed = seq.num_computed;
      // With drafts, after it has been said which of them were accepted.
      if (cache_ && !(seq.draft && seq.draft->size > 0)) publish(seq);
    }
  }
  if (cache_) {
    for (size_t i = 0; flight.has_parts && i < flight.undo.size(); ++i) {
      SeqState& seq = *flight.undo[i].seq;
      if (!flight.plan.seqs[i].samplers.empty() || seq.status != SeqStatus::kRunning) continue;
      seq.num_committed = seq.num_computed;
      publish(seq);
    }
    cache_->stepped(flight.plan.number);
  }
  land(flight);
}

void Scheduler::extend(SeqState& seq, int32_t token, float logprob) {
  TACO_CHECK(seq.status == SeqStatus::kRunning && seq.num_computed + 1 == seq.len(), "sequence ", seq.id,
             " has nothing to extend");
  ++seq.num_computed;
  ++seq.num_committed;
  ++seq.computed_once;
  seq.tokens.push_back(token);
  seq.cumulative_logprob += static_cast<double>(logprob);
  ++num_generation_tokens_;
}

void Scheduler::settle(SeqState& seq) {
  seq.draft->size = 0;
  if (seq.status != SeqStatus::kRunning) return;
  publish(seq);
  shrink_table(pool_, seq.blocks, blocks_for(seq.len(), config_.block_size));
}

void Scheduler::land(Flight& flight) {
  for (const Undo& undo : flight.undo) --undo.seq->owner->num_in_flight;
  oldest_flight_ = (oldest_flight_ + 1) % 2;
  --num_flights_;
}

void Scheduler::rollback() {
  TACO_CHECK(num_flights_ > 0, "there is no step to roll back");
  Flight& flight = this->flight(num_flights_ - 1);
  TACO_CHECK(!flight.advanced && flight.reversible, "the step cannot be rolled back any more");
  for (auto undo = flight.undo.rbegin(); undo != flight.undo.rend(); ++undo) {
    SeqState& seq = *undo->seq;
    shrink_table(pool_, seq.blocks, static_cast<int64_t>(undo->num_blocks));
    for (size_t i = undo->last_copy; i-- > undo->first_copy;) {
      const BlockCopy& copy = flight.plan.copies[i];
      auto at = std::find(seq.blocks.begin(), seq.blocks.end(), copy.to);
      TACO_CHECK(at != seq.blocks.end());
      pool_.retain(copy.from);  // alive: it was shared, and nothing was released since
      pool_.release(copy.to);
      *at = copy.from;
    }
    --seq.owner->num_in_flight;
  }
  for (auto it = flight.admitted.rbegin(); it != flight.admitted.rend(); ++it) {
    SeqState* seq = it->seq;
    stop_sequence(*seq);
    num_slots_ -= slots_of(*seq);
    seq->status = it->before;
    waiting_.insert(seq);
    release_table(pool_, seq->blocks);
    if (it->cached_tokens > 0) seq->num_computed = seq->num_committed = 0;
    detach(*seq);
  }
  for (SeqState* seq : flight.swapped_out) {  // nobody knows whether the moves were made
    release_table(*host_pool_, seq->host_blocks);
    seq->num_computed = seq->num_committed = 0;
  }
  if (cache_) cache_->rolled_back(flight.plan.number);
  --num_flights_;
  --num_steps_;
#ifdef TACO_CHECK_STEPS
  check_invariants(*this);
#endif
}

void Scheduler::abandon() {
  while (num_flights_ > 0) land(flight(0));
}

}  // namespace taco
