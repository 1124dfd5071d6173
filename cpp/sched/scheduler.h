// What each step computes, within a budget of tokens, sequences and KV blocks.
//
// A step is a transaction:
//   plan      pure: looks, decides, changes nothing
//   reserve   takes the blocks and makes the StepPlan that an executor runs; the step is in flight from here
//   on advance   the step will run: its tokens count as computed, and kPendingToken stands for what it
//   samples commit    the step has run: its tokens take their places; advances first if that was not done
//   rollback  of the newest step, not advanced: everything is as before plan, but what was preempted stays
//             preempted (its blocks may have been overwritten) and will be recomputed
//   abandon   of all steps in flight, when the executor is lost: sequences can only be finished
//
// One step at a time is plan, reserve, commit. Two in flight are
//   reserve n, advance n, plan and reserve n + 1, commit n, advance n + 1, plan and reserve n + 2, ...
// A sequence whose pending token is certainly its last is left out of plans. One that is finished between
// reserve and commit gives its blocks back at once, since an executor runs steps in order; the step's result
// for it is dropped. Nothing is preempted while a step is in flight: then commit first, and plan again.
//
// Preemption gives a sequence's blocks back, and either forgets what they held (recompute) or moves it to the
// host's pool, from where its next admission fetches it (swap). Host blocks are held until the step that
// fetched them is advanced, so that it can be rolled back.
//
// Drafts are guests: they take what is left of a step's tokens and of the free blocks after everybody else
// has been served, preempt nobody, and their blocks go back with the step. A step with drafts is not run
// ahead of.
//
// With a prefix cache (cache/prefix_cache.h) an admitted sequence takes the cached blocks of its tokens and
// computes the rest; commit publishes what is full. Blocks that only the cache holds count as free: taking
// them is what evicts. Who is preempted finds its blocks in the cache again, if nobody needed them more, so
// that kAuto never swaps. What lower tiers have is fetched while its request waits in the queue; the others
// pass it.
//
// There is no prefill and no decode phase: a sequence has tokens known and tokens computed, and gets some of
// the step's budget. Running sequences that lack one token come first, then known tokens, in the policy's
// order. A sequence holds blocks for all its known tokens from its admission on, so that blocks can run out
// only where a sequence grows.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "cache/block_table.h"
#include "cache/prefix_cache.h"
#include "sched/prefix_hits.h"
#include "sched/request.h"
#include "sched/step_plan.h"

namespace taco {

enum class PreemptionMode : uint8_t {
  kAuto,       // without a prefix cache swap for requests with several unfinished sequences; else recompute
  kRecompute,  // always
  kSwap,       // always; recompute where the swap space is full
};

struct SchedulerConfig {
  int max_num_batched_tokens = 2048;
  int max_num_seqs = 256;
  bool enable_chunked_prefill = true;
  bool priority_scheduling = false;
  double watermark = 0.01;
  int max_model_len = 0;
  int block_size = 16;
  int64_t num_blocks = 0;
  int64_t num_swap_blocks = 0;  // on the host; 0: no swapping in any mode
  PreemptionMode preemption_mode = PreemptionMode::kAuto;
  int max_sampled_rows = 0;  // of a step with drafts; 0: nobody drafts
  std::optional<PrefixCacheConfig> prefix_cache;
  // Tokens of a prompt that another request is computing just now from which on it is worth to wait for them,
  // with a prefix cache: waiting costs a step, and computing them costs that and more.
  int min_shared_tokens = 256;
};

// What plan decided, by reference to the sequences concerned.
struct Proposal {
  struct Item {
    SeqState* seq;
    int32_t count;
    bool drafts = false;  // the last known token and count - 1 nodes of the sequence's draft
  };
  // What an admitted sequence takes from the prefix cache.
  struct Hit {
    int32_t tokens = 0;      // that need not be computed
    int32_t max_tokens = 0;  // that may be taken; 0: it does not look
    bool loading = false;    // also blocks whose load is under way
  };
  std::vector<SeqState*> preempt;  // in the order in which they lose their blocks
  std::vector<SeqState*> admit;    // the last items, in the same order
  std::vector<Hit> hits;           // of `admit`
  std::vector<Item> items;
  int32_t num_tokens = 0;
  bool prompt_first = false;  // a whole prompt took the place of running sequences
  bool has_trees = false;     // some draft is no chain
  bool empty() const { return items.empty(); }
};

// The first token of one sampler of the plan.
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
  // Ends one sequence in whatever state it is, in a step or not, and gives its blocks back. Idempotent.
  void finish(SeqState& seq, FinishReason reason);

  // With a prefix cache, before plan: begins to bring back from lower tiers what the first in the queue want,
  // and sees which of those who wait for it need wait no longer. now: monotonic seconds. What it
  // begins must be begun by the executor before the step that is planned next is submitted.
  void fetch(double now);

  void plan(Proposal& proposal) const;
  // At most two steps are in flight, and the older one must be advanced. The plan stays good until the step's
  // commit, and is not changed by it.
  const StepPlan& reserve(const Proposal& proposal);
  void advance();  // the oldest step
  // Of the oldest step. choices: exactly one for each sampler of its plan, in any order. sequences[i] is then
  // that of choices[i]; null for one that was finished in the meantime.
  void commit(std::span<const Choice> choices, std::vector<SeqState*>& sequences);
  // The next token of a run of accepted drafts, of a sequence that commit has just given its first: the
  // draft's K and V, and so `num_computed`, have come with the step.
  void extend(SeqState& seq, int32_t token, float logprob);
  // After the run of a sequence with a draft: what only the draft needed goes back to the pool.
  void settle(SeqState& seq);
  void rollback();
  void abandon();

  int num_in_flight() const { return num_flights_; }
  const StepPlan& oldest_plan() const { return oldest().plan; }  // of those in flight
  // Whether a sequence of the oldest step needs its token on the host before it can sample again.
  bool oldest_needs_its_tokens() const { return oldest().from_history; }

  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  int64_t num_running_requests() const { return num_running_requests_; }
  int64_t num_requests() const { return num_requests_; }
  uint64_t num_preemptions() const { return num_preemptions_; }
  // Prompt tokens computed or found in the prefix cache, those of them that were computed, and tokens
  // sampled; what is computed again after a preemption does not count again.
  uint64_t num_prompt_tokens() const { return num_prompt_tokens_; }
  uint64_t num_prompt_tokens_computed() const { return num_prompt_tokens_computed_; }
  uint64_t num_generation_tokens() const { return num_generation_tokens_; }

  // For the invariant checks and tests.
  struct Before {
    bool operator()(const SeqState* a, const SeqState* b) const { return goes_before(a->key, b->key); }
  };
  const SchedulerConfig& config() const { return config_; }
  const BlockPool& pool() const { return pool_; }
  const std::vector<SeqState*>& running() const { return running_; }
  const std::set<SeqState*, Before>& waiting() const { return waiting_; }
  const BlockPool* host_pool() const { return host_pool_ ? &*host_pool_ : nullptr; }
  // Null without one. What is done to it between plan and reserve voids the plan.
  PrefixCache* prefix_cache() { return cache_ ? &*cache_ : nullptr; }
  const PrefixCache* prefix_cache() const { return cache_ ? &*cache_ : nullptr; }
  HitCounter& hit_counter() { return hit_counter_; }
  int num_slots() const { return num_slots_; }

  struct Undo {  // of one item's reservation
    SeqState* seq;
    size_t num_blocks;             // before
    size_t first_copy, last_copy;  // in plan.copies
  };
  struct Flight {  // a step between reserve and commit
    StepPlan plan;
    std::vector<Undo> undo;  // one for each of plan.seqs
    struct Admission {
      SeqState* seq;
      SeqStatus before;
      int32_t cached_tokens;
    };
    std::vector<Admission> admitted;
    std::vector<SeqState*> swapped_out, swapped_in;
    std::vector<SeqState*> samplers;  // in the plan's order
    bool prompt_first = false;
    bool from_history = false;  // of any sampler
    bool has_parts = false;     // of prompts, without a sampler
    bool advanced = false;
    bool reversible = true;  // nothing was finished since
  };
  const Flight& flight(int age) const { return flights_[(oldest_flight_ + age) % 2]; }  // 0: the oldest

 private:
  class Planner;

  Flight& flight(int age) { return flights_[(oldest_flight_ + age) % 2]; }
  const Flight& oldest() const { return flight(0); }
  void run_sequence(SeqState& seq);   // into running_
  void stop_sequence(SeqState& seq);  // out of running_
  bool looks_up(const SeqState& seq) const;
  void begin_fetch(SeqState& seq, double now, int64_t room);
  void continue_fetch(SeqState& seq, double now);
  int64_t num_fetches() const;  // under way for fetching_
  int64_t blocks_to_come(const SeqState& seq) const;
  void attach(SeqState& seq, const Proposal::Hit& hit, Flight& flight);
  void publish(SeqState& seq);
  void count_hit(const Flight::Admission& admission);
  void detach(SeqState& seq);
  void preempt(SeqState& seq, Flight& flight);
  bool swaps(const SeqState& seq) const;
  bool swap_out(SeqState& seq, Flight& flight);
  void swap_in(SeqState& seq, Flight& flight);
  void reserve_blocks(SeqState& seq, int64_t num_blocks, int32_t count, Flight& flight);
  void describe_step(SeqState& seq, int32_t count, Flight& flight, SeqStep& step);
  void fork(Request& request);
  void land(Flight& flight);  // the oldest

  SchedulerConfig config_;
  int64_t max_len_;
  int64_t watermark_blocks_;
  BlockPool pool_;
  std::optional<BlockPool> host_pool_;   // swap space
  std::vector<SeqState*> running_;       // in the policy's order
  std::set<SeqState*, Before> waiting_;  // likewise
  int num_slots_ = 0;                    // of max_num_seqs; an unforked request takes best_of
  int64_t num_requests_ = 0, num_running_requests_ = 0;
  uint64_t num_preemptions_ = 0, num_prompt_tokens_ = 0, num_prompt_tokens_computed_ = 0,
           num_generation_tokens_ = 0;
  std::optional<PrefixCache> cache_;
  HitCounter hit_counter_;
  std::vector<SeqState*> fetching_;  // of those that wait: kNoRoom, kOpen and kNearby

  Flight flights_[2];
  int oldest_flight_ = 0, num_flights_ = 0;
  uint64_t num_steps_ = 0;  // reserved and not rolled back
  bool last_was_prompt_first_ = false;
  std::vector<bool> sampled_;           // scratch of commit
  std::vector<BlockId> host_block_of_;  // scratch of reserve, by device block: moved by this plan to; else -1
  std::vector<BlockId> pinned_;         // scratch of reserve: what copies read

  // The planner's scratch, empty between plans: holds on blocks that the plan would give up.
  mutable std::vector<int32_t> given_up_;
  mutable std::vector<BlockId> given_up_list_;
};

}  // namespace taco
