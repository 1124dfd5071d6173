// A request inside the engine: what the scheduler knows of it, and what its reader is still to be told.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/detokenizer.h"
#include "engine/output_queue.h"
#include "sched/request.h"

namespace taco {

struct SequenceOutput {
  std::optional<Detokenizer> detokenizer;
  Output delta;  // since the last that was published
  OutputSlot slot;
  bool touched = false;  // is in the engine loop's list of what to publish
};

struct EngineRequest : Request {
  EngineRequest(RequestId id, std::vector<int32_t> prompt, std::shared_ptr<const SamplingParams> params,
                int priority, uint64_t seed, const std::shared_ptr<const Vocabulary>& vocabulary);

  // With best_of > n nothing leaves before the n best are known.
  bool held_back() const { return params->best_of > params->n; }

  std::vector<SequenceOutput> outputs;  // one per sequence
  std::vector<PositionLogprobs> prompt_logprobs;
  bool first_published = false;
  bool ended =
      false;  // all its sequences are finished, and the outgoing items hold the last of their outputs
  size_t last_item = 0;  // its newest outgoing item
  RequestTimes times;
};

}  // namespace taco
