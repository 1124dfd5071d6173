#include "sched/request.h"

#include <atomic>

#include "base/error.h"

namespace taco {

// The finaliser of SplitMix64, over both numbers.
uint64_t mix_seed(uint64_t seed, uint64_t number) {
  uint64_t z = seed + 0x9e3779b97f4a7c15u * (number + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static std::atomic<SeqId> next_seq_id{1};

Request::Request(RequestId id, std::vector<int32_t> prompt, std::shared_ptr<const SamplingParams> params_in,
                 int priority, uint64_t seed)
    : id(id),
      priority(priority),
      params(std::move(params_in)),
      prompt_len(static_cast<int32_t>(prompt.size())),
      sequences(static_cast<size_t>(params->best_of)),
      forked(params->best_of == 1),
      num_unfinished(params->best_of),
      from_history(samples_from_history(*params)) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    SeqState& seq = sequences[i];
    seq.id = next_seq_id.fetch_add(1, std::memory_order_relaxed);
    seq.request = id;
    seq.index = static_cast<int>(i);
    seq.params = params;
    seq.seed = mix_seed(seed, i);
    seq.prompt_len = prompt_len;
    seq.owner = this;
    if (i + 1 < sequences.size()) seq.tokens = prompt;
  }
  sequences.back().tokens = std::move(prompt);
}

}  // namespace taco
