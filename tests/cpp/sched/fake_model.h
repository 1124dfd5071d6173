// A model for scheduler tests: what it samples is made from what it finds in its cache.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
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
  FakeModel(int block_size, int64_t num_blocks)
      : block_size_(block_size), slots_(static_cast<size_t>(block_size * num_blocks), 0) {}

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

  void run(const StepPlan& plan, std::vector<Choice>& choices) {
    for (const BlockCopy& copy : plan.copies) {
      for (int i = 0; i < block_size_; ++i) {
        slots_[at(copy.to, i)] = slots_[at(copy.from, i)];
      }
    }
    for (const SeqStep& step : plan.seqs) {
      uint64_t hash = step.start == 0 ? 0 : slot(*step.sequence, step.start - 1);
      for (int32_t i = step.start; i < step.start + step.count; ++i) {
        hash = extend(hash, step.sequence->tokens[static_cast<size_t>(i)]);
        slot(*step.sequence, i) = hash;
      }
      for (const Sequence* sampler : step.samplers) {
        choices.push_back({sampler->id, choose(hash, sampler->seed), logprob(hash, sampler->seed), false});
      }
    }
  }

 private:
  size_t at(BlockId block, int offset) const { return static_cast<size_t>(block * block_size_ + offset); }
  uint64_t& slot(const Sequence& seq, int32_t position) {
    return slots_[at(seq.blocks.at(static_cast<size_t>(position / block_size_)), position % block_size_)];
  }
  int block_size_;
  std::vector<uint64_t> slots_;
};

// A scheduler, its model, and the requests: the engine's loop without the engine.
class FakeEngine {
 public:
  explicit FakeEngine(const SchedulerConfig& config)
      : scheduler(config), model(config.block_size, config.num_blocks) {}

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

  // One step; the plan is left in `proposal` and `plan`.
  void step() {
    scheduler.plan(proposal);
    ASSERT_FALSE(proposal.empty());
    plan = &scheduler.reserve(proposal);
    check_invariants(scheduler);
    choices.clear();
    model.run(*plan, choices);
    scheduler.commit(choices, sampled);
    for (SeqState* seq : sampled) {
      if (reached_length(*seq, scheduler.max_len())) scheduler.finish(*seq, FinishReason::kLength);
    }
    check_invariants(scheduler);
    ++num_steps;
  }

  void run_to_end(int max_steps = 100000) {
    while (scheduler.has_work() && max_steps-- > 0) ASSERT_NO_FATAL_FAILURE(step());
    ASSERT_FALSE(scheduler.has_work());
    ASSERT_EQ(scheduler.pool().num_used(), 0);
    ASSERT_EQ(scheduler.num_slots(), 0);
    ASSERT_EQ(scheduler.num_requests(), 0);
    ASSERT_EQ(scheduler.num_running_requests(), 0);
  }

  // Every finished sequence has the tokens that it must have.
  void check_streams() const {
    for (const auto& request : requests) {
      for (const SeqState& seq : request->sequences) {
        std::vector<int32_t> expected = FakeModel::oracle(seq.prompt(), seq.seed, seq.output_len());
        ASSERT_TRUE(std::equal(expected.begin(), expected.end(), seq.output().begin()))
            << "request " << request->id << " sequence " << seq.index;
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
  std::vector<SeqState*> sampled;
  int num_steps = 0;
};

inline std::vector<int32_t> prompt_of(int length, int start = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < length; ++i) prompt.push_back((start + 7 * i) % kFakeVocab);
  return prompt;
}

}  // namespace taco
