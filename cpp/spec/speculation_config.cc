#include "spec/speculation_config.h"

#include "spec/lookahead/lookahead_drafter.h"
#include "spec/ngram_drafter.h"

namespace taco {

std::unique_ptr<Drafter> make_drafter(const SpeculationConfig& config) {
  switch (config.method) {
    case SpeculationMethod::kNone:
      return nullptr;
    case SpeculationMethod::kLookahead:
      return std::make_unique<LookaheadDrafter>(config.lookahead, config.memory_bytes, config.fingerprint);
    case SpeculationMethod::kNgram:
      return std::make_unique<NgramDrafter>(config.ngram_min, config.ngram_max,
                                            config.num_speculative_tokens);
  }
  fail(ErrorCode::kInternal, "unknown speculation method");
}

}  // namespace taco
