#include "sched/sampling_params.h"

#include <cmath>

#include "base/error.h"

namespace taco {
namespace {

// Caps that no sensible request reaches; a server has lower ones of its own.
constexpr int kMaxSequences = 128;
constexpr size_t kMaxStops = 64, kMaxStopBytes = 4096, kMaxStopTokens = 1024;
constexpr size_t kMaxBadWords = 4096, kMaxBadWordTokens = 256;

bool within(float value, float low, float high) { return value >= low && value <= high; }  // false for NaN

void check_ids(const std::vector<int32_t>& ids, int vocab_size, const char* what) {
  for (int32_t id : ids)
    TACO_REQUIRE(id >= 0 && id < vocab_size, what, " has token id ", id,
                 ", which is not in the vocabulary (0 to ", vocab_size - 1, ").");
}

void check_numbers(const SamplingParams& p) {
  TACO_REQUIRE(p.n >= 1, "n must be at least 1, got ", p.n, ".");
  TACO_REQUIRE(p.best_of >= p.n, "best_of must be greater than or equal to n, got n=", p.n,
               " and best_of=", p.best_of, ".");
  TACO_REQUIRE(p.best_of <= kMaxSequences, "n and best_of must be at most ", kMaxSequences, ", got ",
               p.best_of, ".");
  TACO_REQUIRE(within(p.presence_penalty, -2.0f, 2.0f), "presence_penalty must be in [-2, 2], got ",
               p.presence_penalty, ".");
  TACO_REQUIRE(within(p.frequency_penalty, -2.0f, 2.0f), "frequency_penalty must be in [-2, 2], got ",
               p.frequency_penalty, ".");
  TACO_REQUIRE(within(p.repetition_penalty, 0.0f, 2.0f) && p.repetition_penalty > 0.0f,
               "repetition_penalty must be in (0, 2], got ", p.repetition_penalty, ".");
  TACO_REQUIRE(p.temperature >= 0.0f && std::isfinite(p.temperature),
               "temperature must be a finite number of at least 0, got ", p.temperature, ".");
  TACO_REQUIRE(within(p.top_p, 0.0f, 1.0f) && p.top_p > 0.0f, "top_p must be in (0, 1], got ", p.top_p, ".");
  TACO_REQUIRE(p.top_k == -1 || p.top_k >= 1, "top_k must be -1 (all tokens) or at least 1, got ", p.top_k,
               ".");
  TACO_REQUIRE(within(p.min_p, 0.0f, 1.0f), "min_p must be in [0, 1], got ", p.min_p, ".");
  TACO_REQUIRE(p.max_tokens >= 1, "max_tokens must be at least 1, got ", p.max_tokens, ".");
  TACO_REQUIRE(p.min_tokens >= 0, "min_tokens must be at least 0, got ", p.min_tokens, ".");
  TACO_REQUIRE(p.min_tokens <= p.max_tokens,
               "min_tokens must be less than or equal to max_tokens=", p.max_tokens, ", got ", p.min_tokens,
               ".");
  TACO_REQUIRE(p.no_repeat_ngram_size >= 0, "no_repeat_ngram_size must be at least 0, got ",
               p.no_repeat_ngram_size, ".");
  TACO_REQUIRE(p.temperature >= 1e-5f || p.best_of == 1,
               "best_of must be 1 when using greedy sampling (temperature 0), got ", p.best_of, ".");
}

}  // namespace

bool samples_from_history(const SamplingParams& p) {
  return p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f || p.repetition_penalty != 1.0f ||
         p.no_repeat_ngram_size > 0 || !p.bad_words.empty() || p.logits_processor != nullptr;
}

void validate(const SamplingParams& p, int vocab_size) {
  check_numbers(p);
  TACO_REQUIRE(p.logprobs >= -1 && p.logprobs <= vocab_size,
               "logprobs must be between 0 and the vocabulary's size ", vocab_size, ", got ", p.logprobs,
               ".");
  TACO_REQUIRE(p.prompt_logprobs >= -1 && p.prompt_logprobs <= vocab_size,
               "prompt_logprobs must be between 0 and the vocabulary's size ", vocab_size, ", got ",
               p.prompt_logprobs, ".");

  TACO_REQUIRE(p.stop.size() <= kMaxStops, "stop must have at most ", kMaxStops, " strings, got ",
               p.stop.size(), ".");
  for (const std::string& stop : p.stop) {
    TACO_REQUIRE(!stop.empty(), "stop cannot contain an empty string.");
    TACO_REQUIRE(stop.size() <= kMaxStopBytes, "a stop string must have at most ", kMaxStopBytes,
                 " bytes, got ", stop.size(), ".");
  }
  TACO_REQUIRE(p.stop.empty() || p.detokenize,
               "stop strings need detokenize=True, because they are looked for in the text.");
  TACO_REQUIRE(p.stop_token_ids.size() <= kMaxStopTokens, "stop_token_ids must have at most ", kMaxStopTokens,
               " ids, got ", p.stop_token_ids.size(), ".");
  check_ids(p.stop_token_ids, vocab_size, "stop_token_ids");

  TACO_REQUIRE(p.logit_bias.size() <= static_cast<size_t>(vocab_size), "logit_bias has more entries (",
               p.logit_bias.size(), ") than the vocabulary has tokens.");
  for (const auto& [id, bias] : p.logit_bias) {
    TACO_REQUIRE(id >= 0 && id < vocab_size, "logit_bias has token id ", id,
                 ", which is not in the vocabulary (0 to ", vocab_size - 1, ").");
    TACO_REQUIRE(std::isfinite(bias), "logit_bias of token ", id, " must be a finite number, got ", bias,
                 ".");
  }
  TACO_REQUIRE(p.bad_words.size() <= kMaxBadWords, "bad_words must have at most ", kMaxBadWords,
               " token sequences, got ", p.bad_words.size(), ".");
  for (const auto& word : p.bad_words) {
    TACO_REQUIRE(!word.empty() && word.size() <= kMaxBadWordTokens, "each of bad_words must have 1 to ",
                 kMaxBadWordTokens, " tokens, got ", word.size(), ".");
    check_ids(word, vocab_size, "bad_words");
  }
  TACO_REQUIRE(p.allowed_token_ids.size() <= static_cast<size_t>(vocab_size),
               "allowed_token_ids has more entries (", p.allowed_token_ids.size(),
               ") than the vocabulary has tokens.");
  check_ids(p.allowed_token_ids, vocab_size, "allowed_token_ids");
}

}  // namespace taco
