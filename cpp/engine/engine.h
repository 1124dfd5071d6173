// The engine: one thread that plans, runs and commits steps, and the gateway through which everybody talks to
// it. No function here touches Python; the thread never takes the GIL (but inside a Python logits processor).
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/vocabulary.h"
#include "exec/executor.h"
#include "sched/scheduler.h"
#include "spec/speculation_config.h"
#include "spec/speculation_stats.h"

namespace taco {

struct EngineConfig {
  int max_num_batched_tokens = 2048;
  int max_num_seqs = 256;
  bool enable_chunked_prefill = true;  // false: a prompt is computed in one step, or waits
  bool priority_scheduling = false;    // lower number first; else first come, first served
  int64_t max_waiting = -1;            // submit throws kUnavailable beyond it; -1: no limit
  uint64_t seed = 0;
  double watermark = 0.01;  // part of the blocks kept free when a new request is admitted
  int64_t swap_blocks = 0;  // of the executor's host blocks, for preemption by swap
  PreemptionMode preemption_mode = PreemptionMode::kAuto;
  SpeculationConfig speculation;
  // Of speculation.method, made and perhaps taught before; null: the engine makes it.
  std::shared_ptr<Drafter> drafter;
};

struct RequestTimes {  // seconds of the monotonic clock; 0: not yet
  double arrival = 0, first_scheduled = 0, first_token = 0, last_token = 0, finished = 0;
};

// What happened to one sequence since its last Output. Deltas; `text` holds whole code points only.
struct Output {
  RequestId request = 0;
  int index = 0;
  std::string text;  // UTF-8
  std::vector<int32_t> token_ids;
  std::vector<PositionLogprobs> logprobs;         // one per token id, when asked for
  std::vector<PositionLogprobs> prompt_logprobs;  // with the request's first output (index 0), when asked for
  FinishReason finish_reason = FinishReason::kNone;
  std::variant<std::monostate, int32_t, std::string> stop_reason;  // stop token id (not EOS) or stop string
  std::string error;                                               // of FinishReason::kError
  double cumulative_logprob = 0;
  bool request_finished = false;                                            // the last output of the request
  int num_prompt_tokens = 0, num_output_tokens = 0, num_cached_tokens = 0;  // this sequence's output so far
  RequestTimes times;
  SequenceSpeculation speculation;  // of the whole sequence, with its finish_reason
};

struct EngineStats {
  int64_t running = 0, waiting = 0;
  int64_t num_blocks = 0, free_blocks = 0;
  int64_t swap_blocks = 0, free_swap_blocks = 0;  // on the host
  uint64_t steps = 0, preemptions = 0, prompt_tokens = 0, generation_tokens = 0;
  uint64_t finished_stop = 0, finished_length = 0, finished_abort = 0, finished_error = 0;
  double last_step_end = 0;       // monotonic seconds: the heartbeat that /ready looks at
  double current_step_start = 0;  // 0 while idle
  bool dead = false;              // a step threw: nothing is accepted any more
  std::string death_reason;
  SpeculationStats speculation;  // all 0 without it
};

class Engine {
 public:
  // vocabulary may be null: then nothing is detokenised, and stop strings are refused.
  Engine(std::unique_ptr<Executor> executor, std::shared_ptr<const Vocabulary> vocabulary,
         EngineConfig config);
  ~Engine();

  // Validates, queues, returns at once. Throws kInvalidArgument (empty or too long prompt, ids out of range,
  // a prompt that could never fit the cache), kUnavailable (draining, dead, queue full).
  // Requests of different name_spaces (tenants) learn nothing from each other's texts.
  RequestId submit(std::vector<int32_t> prompt, SamplingParams params, int priority = 0,
                   uint64_t name_space = 0);
  // Effective within two steps; the request's last output says kAbort. Unknown ids are ignored.
  void abort(RequestId request);
  void abort_all();

  // Moves out everything that has happened; waits up to `timeout` for something when there is nothing.
  std::vector<Output> poll(std::chrono::duration<double> timeout);
  // Readable while poll would return at once: written at most once per step, cleared by poll.
  int event_fd() const;

  // No new requests from here on. Returns true once all have finished, false at the timeout.
  bool drain(std::chrono::duration<double> timeout);
  void shutdown();  // aborts the rest, joins the thread; idempotent

  EngineStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace taco
