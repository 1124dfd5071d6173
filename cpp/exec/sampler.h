// From a row of logits to a token: every rule of SamplingParams, on the host.
#pragma once

#include <memory>
#include <span>

#include "exec/executor.h"

namespace taco {

// Lossy: with drafts, the likeliest of them is taken without a draw if its probability (after all the rules)
// exceeds min(threshold, alpha * exp(-entropy)). Greedy sampling is not concerned. (Medusa's "typical
// acceptance"; vLLM's typical_acceptance_sampler.)
struct TypicalAcceptance {
  std::span<const int32_t> drafts;  // tokens that follow here in a draft
  float threshold, alpha;
};

// Order of the rules (vLLM 0.6): raw logprobs are taken first; then allowed ids, bad words, no_repeat_ngram,
// min_tokens masking, logit_bias, logits_processor, repetition / presence / frequency penalties, temperature,
// top-k, top-p, min-p, draw.
//
// The draw is a function of (sequence.seed, output position) alone: Philox4x32-10. Batch composition,
// chunking and preemption do not change it.
//
// Top-k keeps what equals the k-th logit too; top-p removes tokens from the least likely on while the removed
// mass is at most 1 - top_p (of what top-k left), the higher id first among equals; min-p compares with the
// most likely. A temperature under 1e-5 is greedy.
class Sampler {
 public:
  explicit Sampler(int vocab_size);
  ~Sampler();

  // logits: [vocab_size], changed in place. Never throws: a failure is in SampledToken::error. One caller at
  // a time.
  SampledToken sample(std::span<float> logits, const Sequence& sequence,
                      const TypicalAcceptance* typical = nullptr);

  // Logprobs of `token` and of the k most likely, from raw logits.
  static PositionLogprobs logprobs(std::span<const float> logits, int32_t token, int k);

 private:
  struct Scratch;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace taco
