// Runs a step plan. The engine knows executors only through this.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "sched/step_plan.h"

namespace taco {

struct Transfer;  // cache/transfer.h
struct TransferResult;

struct TokenLogprob {
  int32_t token;
  float logprob;
  int32_t rank;  // 1: the most likely of the vocabulary
};

// The chosen token first, then the k most likely (the chosen one may be among them again).
using PositionLogprobs = std::vector<TokenLogprob>;

struct SampledToken {
  SeqId seq;
  int32_t token = -1;
  float logprob = 0.0f;  // of the chosen token under the unmodified distribution (log-softmax of raw logits)
  PositionLogprobs logprobs;  // empty unless asked for
  std::string error;          // not empty: this sequence failed (NaN logits, a processor that threw)
};

struct PromptLogprobs {
  SeqId seq;
  int32_t first_position;  // of entries[0]; entries follow position by position
  std::vector<PositionLogprobs> entries;
};

struct StepOutput {
  // One for each sampler of the plan; of a sequence with a draft a run of at least one, in order.
  std::vector<SampledToken> sampled;
  std::vector<PromptLogprobs> prompt_logprobs;
};

struct KvCacheConfig {
  int block_size;
  int64_t num_blocks;
  int64_t num_host_blocks = 0;  // swap space and the host tier of the prefix cache; 0: plans never swap
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual int vocab_size() const = 0;
  virtual int max_model_len() const = 0;
  virtual KvCacheConfig kv_cache() const = 0;

  // The most rows that a step with drafts may sample from; 0: it takes no drafts.
  virtual int max_sampled_rows() const { return 0; }

  // Steps that may be submitted before the oldest is collected: 1, or 2 where step n + 1 can be submitted
  // while n runs. A token that n has not given yet stands in the sequence as kPendingToken; the executor
  // takes it from n's own result.
  virtual int max_in_flight() const { return 1; }
  // Starts a step; `plan` and the sequences in it are read before the call returns. `collect` waits for the
  // oldest submitted one. Steps take effect in the order of their submission: what one frees, a later one may
  // overwrite. A sequence may have ended (even failed) in step n while n + 1 goes on with it: whatever n + 1
  // computes for it, in blocks of its own, is not looked at.
  // Both throw only when a step as a whole failed, and then nothing but the destructor is called any more; a
  // single sequence's failure is in its SampledToken.
  virtual void submit(const StepPlan& plan) = 0;
  virtual StepOutput collect() = 0;
  StepOutput run(const StepPlan& plan) {
    submit(plan);
    return collect();
  }
  // Whole blocks between tiers, beside the steps, on threads of the executor's own. A transfer begins after
  // all steps submitted so far and after the transfer that it names in `after`; those of one direction begin
  // in the order of these calls. A step that reads what a load writes, or writes what a store reads, names it
  // in StepPlan::wait_for. A move that could not be made is said so in the result; nothing throws later.
  virtual void begin(const Transfer& transfer) {
    fail(ErrorCode::kInternal, "this executor moves no blocks");
  }
  // Appends what has finished since the last call; never waits.
  virtual void finished(std::vector<TransferResult>& results) {}
  // `wake` is called, from another thread, whenever a result is there. While nothing is begun.
  virtual void on_finished(std::function<void()> wake) {}

  // Seconds that a step of so many sequences takes, each after `context` tokens, with so many drafts spread
  // evenly over them; 0: not known, or too large. While nothing is submitted; what the cache holds is lost.
  virtual double time_step(int sequences, int drafts, int context) { return 0; }
  // The numbers of rows that steps are padded to, ascending; empty: they are as large as they are.
  virtual std::vector<int> step_sizes() const { return {}; }
  virtual void idle() {}  // nothing to do for a while
};

}  // namespace taco
