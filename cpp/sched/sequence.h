// One sequence: its tokens, how far they are computed, and the KV blocks that hold them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/block_id.h"
#include "sched/sampling_params.h"

namespace taco {

using SeqId = uint64_t;      // unique in the process
using RequestId = uint64_t;  // the core's own number; clients' ids stay outside

// Stands in Sequence::tokens for the token of a step that is still in flight; only ever the last of them.
constexpr int32_t kPendingToken = -1;

enum class SeqStatus : uint8_t { kWaiting, kRunning, kPreempted, kFinished };
enum class FinishReason : uint8_t { kNone, kStop, kLength, kAbort, kError };

// A request with best_of > 1 has that many sequences; the first computes the prompt, the others fork from it.
struct Sequence {
  SeqId id = 0;
  RequestId request = 0;
  int index = 0;  // 0 .. best_of - 1 in its request
  std::shared_ptr<const SamplingParams> params;
  uint64_t seed = 0;  // of this sequence's random numbers: a function of (request seed, index) alone

  std::vector<int32_t> tokens;  // prompt, then output
  int32_t prompt_len = 0;
  int32_t num_computed = 0;     // tokens whose K and V are in the cache
  std::vector<BlockId> blocks;  // block table
  SeqStatus status = SeqStatus::kWaiting;
  FinishReason finish_reason = FinishReason::kNone;
  double cumulative_logprob = 0.0;

  int32_t len() const { return static_cast<int32_t>(tokens.size()); }
  int32_t output_len() const { return len() - prompt_len; }
  std::span<const int32_t> prompt() const { return {tokens.data(), static_cast<size_t>(prompt_len)}; }
  std::span<const int32_t> output() const {
    return {tokens.data() + prompt_len, tokens.size() - static_cast<size_t>(prompt_len)};
  }
};

}  // namespace taco
