// A model for scheduler tests: what it samples is made from what it finds in its cache.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "exec/null_transfers.h"
#include "sched/invariants.h"
#include "sched/scheduler.h"
#include "sched/stop_rules.h"

namespace taco {

constexpr int kFakeVocab = 97;

// The slot of a token holds a hash of all tokens so far, made from the slot before it; so a wrong block
// table, a missing copy or a block with two writers gives wrong tokens. The token sampled depends on the
// sequence's seed too: forks go different ways.
class FakeModel {
 public:
  FakeModel(int block_size, int64_t num_blocks, int64_t num_host_blocks = 0)
      : block_size_(block_size),
        slots_(static_cast<size_t>(block_size * num_blocks), 0),
        host_slots_(static_cast<size_t>(block_size * num_host_blocks), 0),
        transfers_(block_size, slots_, host_slots_) {}

  // Of the prefix cache.
  NullTransfers& transfers() { return transfers_; }

  static uint64_t extend(uint64_t hash, int32_t token) {
    return mix_seed(hash, static_cast<uint64_t>(token));
  }
  static int32_t choose(uint64_t hash, uint64_t seed) {
    return static_cast<int32_t>(mix_seed(hash, seed) % kFakeVocab);
  }
  static float logprob(uint64_t hash, uint64_t seed) {
    return -static_cast<float>(mix_seed(hash + 1, seed) % 1000) / 1000.0f;
  }

  // What a sequence with this prompt and seed yields, however it is scheduled.
  static std::vector<int32_t> oracle(std::span<const int32_t> prompt, uint64_t seed, int count) {
    uint64_t hash = 0;
    for (int32_t token : prompt) hash = extend(hash, token);
    std::vector<int32_t> out;
    for (int i = 0; i < count; ++i) {
      out.push_back(choose(hash, seed));
      hash = extend(hash, out.back());
    }
    return out;
  }

  // A pending token is what the last call chose.
  void run(const StepPlan& plan, std::vector<Choice>& choices) {
    for (uint64_t id : plan.wait_for) transfers_.wait_for(id);
    for (int i = 0; i < block_size_; ++i) {
      for (const BlockMove& move : plan.swap_out)
        host_slots_.at(at(move.host, i)) = slots_[at(move.device, i)];
      for (const BlockMove& move : plan.swap_in)
        slots_[at(move.device, i)] = host_slots_.at(at(move.host, i));
      for (const BlockCopy& copy : plan.copies) slots_[at(copy.to, i)] = slots_[at(copy.from, i)];
    }
    std::map<SeqId, int32_t> chosen;
    for (const SeqStep& step : plan.seqs) {
      uint64_t hash = 0;
      for (int32_t i = 0; i < step.start; ++i) {
        hash = extend(hash, step.sequence->tokens[static_cast<size_t>(i)]);
        TACO_CHECK(slot(*step.sequence, i) == hash, "sequence ", step.sequence->id, ": position ", i, " of ",
                   step.start, " does not hold what its tokens say");
      }
      for (int32_t i = step.start; i < step.start + step.count; ++i) {
        int32_t token = step.sequence->tokens[static_cast<size_t>(i)];
        hash = extend(hash, token == kPendingToken ? last_chosen_.at(step.sequence->id) : token);
        slot(*step.sequence, i) = hash;
      }
      for (const Sequence* sampler : step.samplers) {
        choices.push_back({sampler->id, choose(hash, sampler->seed), logprob(hash, sampler->seed), false});
        chosen[sampler->id] = choices.back().token;
      }
    }
    last_chosen_ = std::move(chosen);
  }

 private:
  size_t at(BlockId block, int offset) const { return static_cast<size_t>(block * block_size_ + offset); }
  uint64_t& slot(const Sequence& seq, int32_t position) {
    return slots_[at(seq.blocks.at(static_cast<size_t>(position / block_size_)), position % block_size_)];
  }
  int block_size_;
  std::vector<uint64_t> slots_, host_slots_;
  NullTransfers transfers_;
  std::map<SeqId, int32_t> last_chosen_;
};

// A scheduler, its model, and the requests: the engine's loop without the engine. With two steps in flight
// the model computes at submission, as a device does in its own order, and the scheduler learns the result
// later.
class FakeEngine {
 public:
  explicit FakeEngine(const SchedulerConfig& config, bool runs_ahead = false)
      : scheduler(config),
        model(config.block_size, config.num_blocks,
              config.num_swap_blocks + (config.prefix_cache ? config.prefix_cache->num_host_blocks : 0)),
        runs_ahead(runs_ahead) {}

  Request& submit(std::vector<int32_t> prompt, int max_tokens, int best_of = 1, int priority = 0) {
    auto params = std::make_shared<SamplingParams>();
    params->max_tokens = max_tokens;
    params->n = params->best_of = best_of;
    return submit(std::move(prompt), std::move(params), priority);
  }

  Request& submit(std::vector<int32_t> prompt, std::shared_ptr<const SamplingParams> params,
                  int priority = 0) {
    scheduler.check_admissible(static_cast<int64_t>(prompt.size()), params->best_of);
    RequestId id = requests.size() + 1;
    requests.push_back(
        std::make_unique<Request>(id, std::move(prompt), std::move(params), priority, 1000 + id));
    scheduler.add(*requests.back());
    return *requests.back();
  }

  void abort(Request& request) {
    for (SeqState& seq : request.sequences) scheduler.finish(seq, FinishReason::kAbort);
  }

  // One step; the plan is left in `proposal` and `plan`. Nothing may happen where blocks are on their way.
  void step() {
    ++num_steps;
    if (scheduler.num_in_flight() == 0) {
      plan_next();
      if (proposal.empty()) {
        ASSERT_NE(scheduler.prefix_cache(), nullptr);
        num_lost = scheduler.prefix_cache()->busy() ? 0 : num_lost + 1;
        ASSERT_LT(num_lost, 10) << "nobody can run";
        ++num_stuck;
        return;
      }
      num_lost = 0;
      submit_proposal();
    }
    if (runs_ahead) run_ahead();
    complete_oldest();
  }

  double now() const { return num_steps * step_seconds; }

  void plan_next() {
    take_transfers();
    scheduler.fetch(now());
    begin_transfers();
    scheduler.plan(proposal);
  }

  void take_transfers() {
    PrefixCache* cache = scheduler.prefix_cache();
    if (cache == nullptr) return;
    std::vector<TransferResult> finished;
    model.transfers().finished(finished);
    for (const TransferResult& result : finished) cache->finished(result, now());
  }

  void begin_transfers() {
    PrefixCache* cache = scheduler.prefix_cache();
    if (cache == nullptr) return;
    std::vector<Transfer> begun;
    cache->maintain(now());
    cache->take_transfers(begun);
    for (const Transfer& transfer : begun) model.transfers().begin(transfer);
    check_invariants(scheduler);
  }

  // Until no transfer is under way.
  void settle_transfers() {
    for (int i = 0; i < 10000; ++i) {
      take_transfers();
      begin_transfers();
      if (scheduler.prefix_cache() == nullptr || !scheduler.prefix_cache()->busy()) return;
      ++num_steps;
    }
    FAIL() << "transfers do not end";
  }

  void submit_proposal() {
    plan = &scheduler.reserve(proposal);
    check_invariants(scheduler);
    num_swapped_out += plan->swap_out.size();
    num_swapped_in += plan->swap_in.size();
    for (const SeqStep& part : plan->seqs) num_rows += static_cast<uint64_t>(part.count);
    model.run(*plan, results.emplace_back());
  }

  void run_ahead() {
    if (!scheduler.has_work() || scheduler.oldest_needs_its_tokens()) return;
    scheduler.advance();
    check_invariants(scheduler);
    plan_next();
    if (proposal.empty() || !proposal.preempt.empty()) return;
    submit_proposal();
    ++num_ahead;
  }

  void complete_oldest() {
    choices = std::move(results.front());
    results.pop_front();
    scheduler.commit(choices, sampled);
    for (SeqState* seq : sampled) {
      if (seq == nullptr) continue;
      if (reached_length(*seq, scheduler.max_len())) {
        scheduler.finish(*seq, FinishReason::kLength);
      } else if (seq->tokens.back() < stop_below) {
        scheduler.finish(*seq, FinishReason::kStop);
      }
    }
    check_invariants(scheduler);
  }

  void run_to_end(int max_steps = 100000) {
    while (has_work() && max_steps-- > 0) ASSERT_NO_FATAL_FAILURE(step());
    ASSERT_FALSE(has_work());
    ASSERT_NO_FATAL_FAILURE(settle_transfers());
    ASSERT_EQ(scheduler.pool().num_used(), 0);
    if (scheduler.host_pool() != nullptr) {
      ASSERT_EQ(scheduler.host_pool()->num_used(), 0);
    }
    for (const auto& request : requests) ASSERT_EQ(request->num_in_flight, 0);
    ASSERT_EQ(scheduler.num_slots(), 0);
    ASSERT_EQ(scheduler.num_requests(), 0);
    ASSERT_EQ(scheduler.num_running_requests(), 0);
  }

  bool has_work() const { return scheduler.has_work() || scheduler.num_in_flight() > 0; }

  // Every finished sequence has the tokens that it must have.
  void check_streams() const {
    for (const auto& request : requests) {
      for (const SeqState& seq : request->sequences) {
        std::vector<int32_t> expected = FakeModel::oracle(seq.prompt(), seq.seed, seq.output_len());
        ASSERT_TRUE(std::equal(expected.begin(), expected.end(), seq.output().begin()))
            << "request " << request->id << " sequence " << seq.index;
        auto stop = std::find_if(expected.begin(), expected.end(), [&](int32_t t) { return t < stop_below; });
        ASSERT_GE(stop - expected.begin() + 1, seq.output_len()) << "went on after its end";
        if (seq.finish_reason == FinishReason::kStop) {
          ASSERT_LT(seq.tokens.back(), stop_below);
        }
        if (seq.finish_reason == FinishReason::kLength) {
          int64_t most = std::max<int64_t>(scheduler.max_len() - seq.prompt_len, 1);
          ASSERT_EQ(seq.output_len(), std::min<int64_t>(seq.params->max_tokens, most));
        }
      }
    }
  }

  Scheduler scheduler;
  FakeModel model;
  std::vector<std::unique_ptr<Request>> requests;
  Proposal proposal;
  const StepPlan* plan = nullptr;
  std::vector<Choice> choices;
  std::deque<std::vector<Choice>> results;  // of the steps in flight
  std::vector<SeqState*> sampled;
  bool runs_ahead;
  int32_t stop_below = 0;  // tokens that end a sequence
  int num_steps = 0, num_ahead = 0, num_stuck = 0, num_lost = 0;
  double step_seconds = 1e-3;
  uint64_t num_rows = 0;
  size_t num_swapped_out = 0, num_swapped_in = 0;  // blocks
};

inline std::vector<int32_t> prompt_of(int length, int start = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < length; ++i) prompt.push_back((start + 7 * i) % kFakeVocab);
  return prompt;
}

}  // namespace taco
