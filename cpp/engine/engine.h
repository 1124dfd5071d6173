// The engine: one thread that plans, runs and commits steps, and the gateway through which everybody talks to
// it. No function here touches Python; the thread never takes the GIL (but inside a Python logits processor).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/digest.h"
#include "cache/disk_tier.h"
#include "cache/prefix_cache_stats.h"
#include "cache/transfer.h"
#include "engine/vocabulary.h"
#include "exec/executor.h"
#include "sched/scheduler.h"
#include "spec/speculation_config.h"
#include "spec/speculation_stats.h"

namespace taco {

// Blocks of KV that are kept and shared for the tokens in them (cache/prefix_cache.h).
struct PrefixCachingConfig {
  bool enabled = false;
  int64_t host_blocks = 0;  // of the executor's host blocks, behind those of swap_blocks
  int64_t disk_blocks = 0;  // slots of the executor's disk store
  size_t block_bytes = 0;   // of one block in all layers; needed with host_blocks
  int min_accesses = 1;     // blocks that fewer requests used leave the device without a copy
  int64_t max_idle_blocks =
      -1;                 // that nobody uses and the device still keeps; -1: all that there is room for
  bool lazy = true;       // requests may be admitted while their blocks are being loaded
  bool log_hits = false;  // a line for Engine::take_log_lines each 100 blocks of prompts
  // What the disk store found at its start, by slot.
  std::shared_ptr<const std::vector<std::pair<int64_t, DiskRecord>>> on_disk;
  std::shared_ptr<DiskTier> disk;  // the store that the executor moves blocks to and from
};

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
  PrefixCachingConfig prefix_caching;
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
  int64_t num_blocks = 0, free_blocks = 0;        // free: or only kept for the prefix cache
  int64_t swap_blocks = 0, free_swap_blocks = 0;  // on the host
  uint64_t steps = 0, preemptions = 0, prompt_tokens = 0, generation_tokens = 0;
  uint64_t prompt_tokens_computed = 0;  // of prompt_tokens; the others were found in the prefix cache
  uint64_t finished_stop = 0, finished_length = 0, finished_abort = 0, finished_error = 0;
  double last_step_end = 0;       // monotonic seconds: the heartbeat that /ready looks at
  double current_step_start = 0;  // 0 while idle
  bool dead = false;              // a step threw: nothing is accepted any more
  std::string death_reason;
  SpeculationStats speculation;   // all 0 without it
  PrefixCacheStats prefix_cache;  // likewise
};

struct CacheReport {
  PrefixCacheStats stats;
  std::vector<HotPrefix> hottest;
};

class Engine {
 public:
  // vocabulary may be null: then nothing is detokenised, and stop strings are refused.
  Engine(std::unique_ptr<Executor> executor, std::shared_ptr<const Vocabulary> vocabulary,
         EngineConfig config);
  ~Engine();

  // Validates, queues, returns at once. Throws kInvalidArgument (empty or too long prompt, ids out of range,
  // a prompt that could never fit the cache), kUnavailable (draining, dead, queue full).
  // Requests of different name_spaces (tenants) learn nothing from each other's texts. Requests share cached
  // blocks only if their cache_root is the same: a digest of all that K and V depend on besides the tokens,
  // and of who may share them.
  RequestId submit(std::vector<int32_t> prompt, SamplingParams params, int priority = 0,
                   uint64_t name_space = 0, const Digest& cache_root = {});
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

  // Forgets all that is cached, on disk, too, and for restarts; what runs goes on. False without a prefix
  // cache. Waits for the engine thread, as cache_report does, which throws kInvalidArgument without a prefix
  // cache. Both throw kUnavailable when there is no engine thread any more; reset_prefix_cache also when the
  // disk tier cannot be told, and the message says what to do.
  bool reset_prefix_cache();
  CacheReport cache_report(int hottest);
  // What the engine has to say to its operator since the last call: `[HIT CNT] ...`. At most 1000 lines wait.
  std::vector<std::string> take_log_lines();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace taco
