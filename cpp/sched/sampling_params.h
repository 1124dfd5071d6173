// What one request asks of the sampler. Names, defaults and limits are those of vLLM 0.6.1's SamplingParams;
// the Python class validates for people, `validate` once more for the core.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace taco {

struct SamplingParams {
  int n = 1;
  int best_of = 1;  // >= n; sequences sampled, the n best by cumulative logprob are returned
  float presence_penalty = 0.0f, frequency_penalty = 0.0f, repetition_penalty = 1.0f;
  float temperature = 1.0f;  // 0: greedy (lowest id wins a tie)
  float top_p = 1.0f;
  int top_k = -1;  // -1: all
  float min_p = 0.0f;
  std::optional<uint64_t> seed;  // none: drawn from the engine's seed and the request's number
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<int32_t> eos_token_ids;  // the model's, put here by the caller; ignored under ignore_eos
  bool ignore_eos = false;
  int max_tokens = 16;
  int min_tokens = 0;
  int logprobs = -1;         // -1: none; 0: the sampled token's alone; k: and the k most likely
  int prompt_logprobs = -1;  // likewise for each prompt token but the first
  bool detokenize = true;
  bool skip_special_tokens = true;
  bool spaces_between_special_tokens = true;
  bool include_stop_str_in_output = false;
  int no_repeat_ngram_size = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that must not be completed
  std::vector<int32_t> allowed_token_ids;       // empty: all
  // The slow path: (prompt ids, output ids, logits of one row, changed in place). Takes the GIL when it is
  // Python's.
  std::function<void(std::span<const int32_t>, std::span<const int32_t>, std::span<float>)> logits_processor;
};

// Whether sampling reads which tokens came before, and not only how many (min_tokens) or none of them
// (logit_bias, allowed_token_ids): such a sequence cannot be in step n + 1 before the host has step n's
// token.
bool samples_from_history(const SamplingParams& params);

// Throws kInvalidArgument with a sentence that says what to change. Token ids must be in [0, vocab_size), but
// for eos_token_ids: those are the checkpoint's, and one that cannot occur does no harm.
void validate(const SamplingParams& params, int vocab_size);

}  // namespace taco
