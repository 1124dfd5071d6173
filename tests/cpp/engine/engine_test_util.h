// What the engine's tests share.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "exec/null_executor.h"

namespace taco {

constexpr int kVocab = 1000;

// The parameter: how many steps are in flight at once. Streams are the same in both modes.
class InBothModes : public testing::TestWithParam<int> {
 protected:
  static std::unique_ptr<NullExecutor> null_executor(int64_t num_blocks = 4096, double step_seconds = 0.0,
                                                     int max_model_len = 2048, int32_t eos = -1,
                                                     int64_t num_host_blocks = 0) {
    auto executor = std::make_unique<NullExecutor>(kVocab, max_model_len, 16, num_blocks, step_seconds, eos,
                                                   GetParam(), num_host_blocks);
    executor->set_thorough(true);
    executor->set_random_delays(1e-4, 7);
    return executor;
  }
};

#define IN_BOTH_MODES(suite)           \
  class suite : public InBothModes {}; \
  INSTANTIATE_TEST_SUITE_P(StepsInFlight, suite, testing::Values(1, 2))

inline SamplingParams greedy(int max_tokens) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.max_tokens = max_tokens;
  return params;
}

inline SamplingParams several(int max_tokens, int n, int best_of = 0) {
  SamplingParams params;
  params.max_tokens = max_tokens;
  params.n = n;
  params.best_of = best_of == 0 ? n : best_of;
  return params;
}

inline std::vector<int32_t> numbered_prompt(int number, int length) {
  std::vector<int32_t> prompt(static_cast<size_t>(length), number % kVocab);
  for (size_t i = 1; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>((number + 31 * i) % kVocab);
  return prompt;
}

inline std::vector<int32_t> oracle(const std::vector<int32_t>& prompt, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(NullExecutor::token_at(prompt, static_cast<int>(prompt.size()) + i, kVocab));
  }
  return tokens;
}

// The outputs of one sequence, put together.
struct Stream {
  std::vector<int32_t> tokens;
  std::string text;
  std::vector<PositionLogprobs> logprobs, prompt_logprobs;
  FinishReason finish_reason = FinishReason::kNone;
  std::variant<std::monostate, int32_t, std::string> stop_reason;
  std::string error;
  double cumulative_logprob = 0;
  bool request_finished = false;
  RequestTimes times;
  int num_outputs = 0;
};

using Streams = std::map<std::pair<RequestId, int>, Stream>;

inline int add_outputs(Streams& streams, std::vector<Output>&& outputs) {
  int finished = 0;
  for (Output& output : outputs) {
    Stream& stream = streams[{output.request, output.index}];
    EXPECT_EQ(stream.finish_reason, FinishReason::kNone) << "output after the sequence's end";
    stream.tokens.insert(stream.tokens.end(), output.token_ids.begin(), output.token_ids.end());
    stream.text += output.text;
    stream.logprobs.insert(stream.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
    stream.prompt_logprobs.insert(stream.prompt_logprobs.end(), output.prompt_logprobs.begin(),
                                  output.prompt_logprobs.end());
    stream.finish_reason = output.finish_reason;
    stream.stop_reason = output.stop_reason;
    stream.error = output.error;
    stream.cumulative_logprob = output.cumulative_logprob;
    stream.request_finished = output.request_finished;
    stream.times = output.times;
    ++stream.num_outputs;
    EXPECT_EQ(output.num_output_tokens, static_cast<int>(stream.tokens.size()));
    finished += output.request_finished;
  }
  return finished;
}

// What a busy machine needs at most for anything.
constexpr std::chrono::minutes kPatience{2};

template <typename Condition>
bool becomes(Condition condition) {
  auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return condition();
}

// Polls until `num_requests` have finished.
inline Streams collect(Engine& engine, int num_requests) {
  Streams streams;
  auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (num_requests > 0 && std::chrono::steady_clock::now() < deadline) {
    num_requests -= add_outputs(streams, engine.poll(std::chrono::seconds(1)));
  }
  EXPECT_EQ(num_requests, 0) << "requests did not finish";
  return streams;
}

}  // namespace taco
