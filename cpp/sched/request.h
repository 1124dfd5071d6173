// A request and its sequences, as the scheduler sees them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/digest.h"
#include "cache/prefix_cache.h"
#include "sched/policy.h"
#include "sched/sequence.h"
#include "spec/draft_tree.h"
#include "spec/speculation_stats.h"

namespace taco {

struct Request;

// What a waiting sequence's wish to have blocks of lower tiers brought back has come to.
enum class FetchState : uint8_t {
  kNotAsked,
  kNoRoom,  // asked, but no block could be had for it: asks again for a while, and is passed over
  kOpen,    // under way: admissions pass the sequence over
  kNearby,  // so near its end that a step may wait for the rest, layer by layer
  kDone,    // or nothing to fetch, or not worth it
};

struct FetchWish {
  FetchState state = FetchState::kNotAsked;
  uint64_t id = 0;            // kOpen, kNearby
  int32_t device_blocks = 0;  // of the prefix that were on the device when it began
  int32_t blocks = 0;         // of the prefix that it holds on the device, those that come included
  int32_t tokens_left = 0;    // to compute once it is done
  double no_room_since = 0;   // seconds; kNoRoom
  int refusals = 0;           // for want of room
};

// A sequence and what the scheduler remembers of it.
struct SeqState : Sequence {
  Request* owner = nullptr;
  PolicyKey key;
  int32_t computed_once = 0;         // high-water mark of num_computed: what is beyond was never counted
  int32_t prompt_logprobs_from = 1;  // the first prompt position whose logprobs are not collected yet
  // What to verify with its next token, or null; made by who drafts, while no step is in flight, and void
  // with the sequence's next step. Sequences that nobody drafts for have none.
  std::unique_ptr<DraftTree> draft;
  bool known_to_drafter = false;
  SequenceSpeculation speculated;
  std::vector<BlockId> host_blocks;  // where tokens 0 .. num_computed - 1 are while it is swapped out

  // With a prefix cache.
  PrefixCache::Attachment attachment;  // the part of its blocks that is the cache's own
  int32_t num_committed = 0;           // of num_computed: by steps whose result is known and good
  FetchWish fetch;
};

// Whether the waiting sequence is to stay where it is for now, while others pass it.
inline bool awaits_fetch(const SeqState& seq) {
  return seq.fetch.state == FetchState::kOpen || seq.fetch.state == FetchState::kNoRoom;
}

// Owned by whoever submits to the scheduler, and kept alive until all its sequences are finished and no step
// in flight has any of them.
struct Request {
  Request(RequestId id, std::vector<int32_t> prompt, std::shared_ptr<const SamplingParams> params,
          int priority, uint64_t seed);
  virtual ~Request() = default;
  Request(const Request&) = delete;  // sequences point to their owner
  Request& operator=(const Request&) = delete;

  RequestId id;
  int priority;
  uint64_t name_space = 0;  // requests of different ones learn nothing from each other's texts
  Digest cache_root;        // requests of different ones share no cached blocks
  std::shared_ptr<const SamplingParams> params;
  int32_t prompt_len;
  // best_of of them, never resized: plans point into it. Until the prompt is computed only the first one is
  // known to the queues; then the others fork from it.
  std::vector<SeqState> sequences;
  bool forked;                    // true from the start when there is one sequence
  int num_unfinished;             // sequences
  int num_running = 0;            // sequences
  int num_in_flight = 0;          // parts of submitted steps that were not collected
  int32_t num_cached_tokens = 0;  // of the prompt, found in the prefix cache when it was first admitted
  const bool from_history;        // samples_from_history(*params)
};

// How many of max_num_seqs a sequence in a queue stands for: all of its request's before they fork.
inline int slots_of(const SeqState& seq) { return seq.owner->forked ? 1 : seq.params->best_of; }

// The seed of one sequence's random numbers: a function of the two numbers alone.
uint64_t mix_seed(uint64_t seed, uint64_t number);

}  // namespace taco
