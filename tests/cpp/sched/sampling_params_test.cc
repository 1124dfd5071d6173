// What the core accepts of a request's sampling parameters.
#include "sched/sampling_params.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace taco {
namespace {

constexpr int kVocab = 100;

// The message of the refusal; empty when accepted.
template <typename Change>
std::string refusal(Change change) {
  SamplingParams p;
  change(p);
  try {
    validate(p, kVocab);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    return e.what();
  }
  return "";
}

#define EXPECT_REFUSED(name, statement)                                                  \
  EXPECT_NE(refusal([](SamplingParams& p) { statement; }).find(name), std::string::npos) \
      << refusal([](SamplingParams& p) { statement; })
#define EXPECT_ACCEPTED(statement) EXPECT_EQ(refusal([](SamplingParams& p) { statement; }), "")

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

TEST(SamplingParamsTest, Defaults) { EXPECT_ACCEPTED((void)p); }

TEST(SamplingParamsTest, Numbers) {
  EXPECT_REFUSED("n must", p.n = 0);
  EXPECT_REFUSED("best_of", p.n = 2);
  EXPECT_ACCEPTED(p.n = 2; p.best_of = 3);
  EXPECT_REFUSED("at most 128", p.best_of = 129);
  for (float bad : {-2.1f, 2.1f, kNan, kInf, -kInf}) {
    EXPECT_NE(refusal([&](SamplingParams& p) { p.presence_penalty = bad; }), "") << bad;
    EXPECT_NE(refusal([&](SamplingParams& p) { p.frequency_penalty = bad; }), "") << bad;
    EXPECT_NE(refusal([&](SamplingParams& p) { p.repetition_penalty = bad; }), "") << bad;
    EXPECT_NE(refusal([&](SamplingParams& p) { p.top_p = bad; }), "") << bad;
    EXPECT_NE(refusal([&](SamplingParams& p) { p.min_p = bad; }), "") << bad;
  }
  EXPECT_REFUSED("repetition_penalty", p.repetition_penalty = 0);
  EXPECT_REFUSED("top_p", p.top_p = 0);
  EXPECT_ACCEPTED(p.top_p = 1e-9f; p.min_p = 1; p.repetition_penalty = 2; p.presence_penalty = -2);
  for (float bad : {-0.1f, kNan, kInf})
    EXPECT_NE(refusal([&](SamplingParams& p) { p.temperature = bad; }), "") << bad;
  EXPECT_REFUSED("top_k", p.top_k = 0);
  EXPECT_REFUSED("top_k", p.top_k = -2);
  EXPECT_ACCEPTED(p.top_k = 1000000);
  EXPECT_REFUSED("max_tokens", p.max_tokens = 0);
  EXPECT_REFUSED("min_tokens", p.min_tokens = 17);
  EXPECT_REFUSED("min_tokens", p.min_tokens = -1);
  EXPECT_REFUSED("no_repeat_ngram_size", p.no_repeat_ngram_size = -1);
  EXPECT_REFUSED("greedy", p.temperature = 0; p.best_of = 2);
}

TEST(SamplingParamsTest, Logprobs) {
  EXPECT_REFUSED("logprobs", p.logprobs = kVocab + 1);
  EXPECT_REFUSED("logprobs", p.logprobs = -2);
  EXPECT_REFUSED("prompt_logprobs", p.prompt_logprobs = kVocab + 1);
  EXPECT_ACCEPTED(p.logprobs = kVocab; p.prompt_logprobs = 0);
}

TEST(SamplingParamsTest, Stops) {
  EXPECT_REFUSED("empty", (p.stop = {"a", ""}));
  EXPECT_REFUSED("detokenize", p.stop = {"a"}; p.detokenize = false);
  EXPECT_ACCEPTED(p.stop.assign(64, "a"));
  EXPECT_REFUSED("64", p.stop.assign(65, "a"));
  EXPECT_REFUSED("bytes", p.stop = {std::string(5000, 'a')});
}

TEST(SamplingParamsTest, TokenIdsAreInTheVocabulary) {
  EXPECT_REFUSED("stop_token_ids", p.stop_token_ids = {kVocab});
  EXPECT_REFUSED("stop_token_ids", p.stop_token_ids = {-1});
  EXPECT_REFUSED("logit_bias", (p.logit_bias = {{kVocab, 1.0f}}));
  EXPECT_REFUSED("finite", (p.logit_bias = {{3, kNan}}));
  EXPECT_REFUSED("bad_words", (p.bad_words = {{1, kVocab}}));
  EXPECT_REFUSED("bad_words", p.bad_words.resize(1));
  EXPECT_REFUSED("allowed_token_ids", p.allowed_token_ids = {-5});
  EXPECT_REFUSED("allowed_token_ids", p.allowed_token_ids.assign(kVocab + 1, 1));
  EXPECT_ACCEPTED((p.stop_token_ids = {0, 99}, p.bad_words = {{1, 2}}, p.allowed_token_ids = {5},
                   p.logit_bias = {{3, -100.0f}}));
}

}  // namespace
}  // namespace taco
