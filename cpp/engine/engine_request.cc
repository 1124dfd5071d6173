#include "engine/engine_request.h"

#include "base/clock.h"

namespace taco {

EngineRequest::EngineRequest(RequestId id, std::vector<int32_t> prompt,
                             std::shared_ptr<const SamplingParams> params_in, int priority, uint64_t seed,
                             const std::shared_ptr<const Vocabulary>& vocabulary)
    : Request(id, std::move(prompt), std::move(params_in), priority, seed), outputs(sequences.size()) {
  times.arrival = monotonic_seconds();
  for (SequenceOutput& output : outputs) {
    if (vocabulary != nullptr && params->detokenize) output.detokenizer.emplace(vocabulary, params);
  }
}

}  // namespace taco
