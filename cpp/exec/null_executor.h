// An executor without a model, whose every token can be predicted: the oracle of scheduler, engine and server
// tests.
#pragma once

#include <chrono>
#include <deque>
#include <span>
#include <unordered_map>
#include <vector>

#include "exec/executor.h"
#include "exec/null_transfers.h"

namespace taco {

// token = f(hash of the prompt, position). It keeps a cache like a real one: the slot of token t holds a hash
// of the tokens 0 .. t, made from the slot of token t - 1 as found through the block table. Each step is
// checked, and fails with kInternal, when the sequence's output is not what was sampled (a token lost,
// doubled or of another stream), when blocks do not cover it, or when the slot before the step does not hold
// what the sequence put there; where a sequence does not go on where its last step ended (preempted, or found
// in the prefix cache), all slots before the step must hold what its tokens say.
//
// With two steps in flight it must be called as a device would have to be: a pending token must be one that
// the step before samples and that was not collected yet, a known one must have been collected.
class NullExecutor : public Executor {
 public:
  // step_seconds: what each step takes. eos_token_id: -1 for streams without end; else each output position
  // after the first is EOS with probability 1/64, a function of the prompt again. max_in_flight: 1 or 2.
  NullExecutor(int vocab_size, int max_model_len, int block_size, int64_t num_blocks,
               double step_seconds = 0.0, int32_t eos_token_id = -1, int max_in_flight = 1,
               int64_t num_host_blocks = 0);

  // The token at `position` (>= prompt.size()) of a sequence with this prompt.
  static int32_t token_at(std::span<const int32_t> prompt, int position, int vocab,
                          int32_t eos_token_id = -1);
  // Its logprob, in [-2, -1]: differs between the sequences of a request, so that best_of has something to
  // choose.
  static float logprob_at(uint64_t sequence_seed, int position);

  int vocab_size() const override { return vocab_size_; }
  int max_model_len() const override { return max_model_len_; }
  KvCacheConfig kv_cache() const override { return {block_size_, num_blocks_, num_host_blocks_}; }
  int max_sampled_rows() const override { return 4096; }
  int max_in_flight() const override { return max_in_flight_; }
  void submit(const StepPlan& plan) override;
  StepOutput collect() override;
  void begin(const Transfer& transfer) override { transfers_.begin(transfer); }
  void finished(std::vector<TransferResult>& results) override { transfers_.finished(results); }
  void on_finished(std::function<void()> wake) override { transfers_.on_finished(std::move(wake)); }
  NullTransfers& transfers() { return transfers_; }

  // Checks every slot of each sequence in each step, not only the last: O(length).
  void set_thorough(bool thorough) { thorough_ = thorough; }
  // submit and collect take up to so long, at random.
  void set_random_delays(double seconds, uint64_t seed) {
    random_delay_ = seconds;
    random_ = seed;
  }

 private:
  struct Seen {
    int32_t computed;
    uint64_t last_step;
    uint64_t prompt_hash;  // 0: prompt not yet complete
    uint64_t hash;         // of tokens 0 .. computed - 1
  };
  struct InFlight {
    StepOutput output;
    std::unordered_map<SeqId, int32_t> tokens;  // of output.sampled
    std::chrono::steady_clock::time_point ready;
  };
  void move_blocks(const StepPlan& plan);
  int32_t resolve(const Sequence& seq, int32_t position) const;
  void delay();
  uint64_t& slot(const Sequence& seq, int32_t position);
  Seen& find(const SeqStep& step);
  void check_all_slots(const SeqStep& step);
  void compute(const SeqStep& step, StepOutput& out);
  void sample(const SeqStep& step, uint64_t prompt_hash, StepOutput& out);
  SampledToken sample_at(const Sequence& sequence, int32_t position, uint64_t prompt_hash) const;
  void verify(const SeqStep& step, Seen& seen, StepOutput& out);
  PromptLogprobs prompt_logprobs(const SeqStep& step) const;
  PositionLogprobs position_logprobs(int32_t token, float logprob, int k) const;
  void forget_old();

  int vocab_size_, max_model_len_, block_size_;
  int64_t num_blocks_;
  double step_seconds_;
  int32_t eos_token_id_;
  bool thorough_ = false;
  uint64_t num_steps_ = 0;
  int max_in_flight_;
  int64_t num_host_blocks_;
  double random_delay_ = 0;
  uint64_t random_ = 0;
  std::deque<InFlight> in_flight_;  // submitted and not collected; the oldest first
  std::chrono::steady_clock::time_point device_free_;
  std::vector<uint64_t> slots_;       // [num_blocks * block_size]
  std::vector<uint64_t> host_slots_;  // [num_host_blocks * block_size]
  NullTransfers transfers_;
  std::vector<uint64_t> written_step_;  // by block: when, and by whom it was last written
  std::vector<SeqId> written_by_;
  std::unordered_map<SeqId, Seen> seen_;
};

}  // namespace taco
