// The engine over the NullExecutor: every token of every stream is predicted.
#include "engine/engine.h"

#include <cmath>

#include "base/error.h"
#include "engine_test_util.h"
#include "sched/request.h"

namespace taco {
namespace {

using namespace std::chrono_literals;

// One-letter pieces, so that text is easy to predict; id 7 is special.
std::shared_ptr<const Vocabulary> letters() {
  std::vector<std::string> pieces;
  for (int i = 0; i < kVocab; ++i) pieces.push_back(std::string(1, static_cast<char>('a' + i % 26)));
  return std::make_shared<const Vocabulary>(pieces, std::vector<int32_t>{7}, false);
}

std::string text_of(const std::vector<int32_t>& tokens) {
  std::string text;
  for (int32_t token : tokens) text += static_cast<char>('a' + token % 26);
  return text;
}

template <typename Fn>
std::pair<ErrorCode, std::string> error_of(Fn&& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

IN_BOTH_MODES(EngineTest);

TEST_P(EngineTest, OneRequest) {
  Engine engine(null_executor(), nullptr, {});
  std::vector<int32_t> prompt = {5, 6, 7};
  RequestId id = engine.submit(prompt, greedy(10));
  Streams streams = collect(engine, 1);
  const Stream& stream = streams[{id, 0}];
  EXPECT_EQ(stream.tokens, oracle(prompt, 10));
  EXPECT_EQ(stream.text, "");
  EXPECT_EQ(stream.finish_reason, FinishReason::kLength);
  EXPECT_TRUE(stream.request_finished);
  const RequestTimes& times = stream.times;
  EXPECT_GT(times.arrival, 0);
  EXPECT_LE(times.arrival, times.first_scheduled);
  EXPECT_LE(times.first_scheduled, times.first_token);
  EXPECT_LT(times.first_token, times.last_token);
  EXPECT_LE(times.last_token, times.finished);
  EngineStats stats = engine.stats();
  EXPECT_EQ(stats.free_blocks, stats.num_blocks);
  EXPECT_EQ(stats.steps, 10u);
  EXPECT_EQ(stats.prompt_tokens, 3u);
  EXPECT_EQ(stats.generation_tokens, 10u);
  EXPECT_EQ(stats.finished_length, 1u);
  EXPECT_EQ(stats.running + stats.waiting, 0);
  EXPECT_EQ(stats.current_step_start, 0);
  EXPECT_GT(stats.last_step_end, times.arrival);
}

TEST_P(EngineTest, ManyRequestsAtOnce) {
  Engine engine(null_executor(), nullptr, {});
  std::map<RequestId, std::vector<int32_t>> prompts;
  for (int i = 0; i < 300; ++i) {
    std::vector<int32_t> prompt = numbered_prompt(i, 1 + i % 100);
    prompts[engine.submit(prompt, greedy(1 + i % 40))] = prompt;
  }
  Streams streams = collect(engine, 300);
  for (auto& [id, prompt] : prompts) {
    const Stream& stream = streams[{id, 0}];
    EXPECT_EQ(stream.tokens.size(), 1 + (id - 1) % 40) << id;
    EXPECT_EQ(stream.tokens, oracle(prompt, static_cast<int>(stream.tokens.size())));
  }
  EXPECT_EQ(engine.stats().free_blocks, engine.stats().num_blocks);
}

// A pool for a few of them: preempted streams go on where they were.
TEST_P(EngineTest, ManyRequestsInASmallPool) {
  EngineConfig config;
  config.max_num_batched_tokens = 256;
  Engine engine(null_executor(40), nullptr, config);
  std::map<RequestId, std::vector<int32_t>> prompts;
  for (int i = 0; i < 100; ++i) {
    std::vector<int32_t> prompt = numbered_prompt(i, 1 + i % 100);
    SamplingParams params = several(100, 1 + i % 3);
    params.prompt_logprobs = i % 5 - 1;
    prompts[engine.submit(prompt, params)] = prompt;
  }
  Streams streams = collect(engine, 100);
  for (auto& [id, prompt] : prompts) {
    int i = static_cast<int>(id) - 1;
    for (int index = 0; index < 1 + i % 3; ++index)
      EXPECT_EQ((streams[{id, index}].tokens), oracle(prompt, 100));
    EXPECT_EQ((streams[{id, 0}].prompt_logprobs.size()), i % 5 == 0 ? 0 : prompt.size() - 1);
  }
  EngineStats stats = engine.stats();
  EXPECT_GT(stats.preemptions, 0u);
  EXPECT_EQ(stats.free_blocks, stats.num_blocks);
  EXPECT_EQ(stats.prompt_tokens, 50u * 101u);
  EXPECT_EQ(stats.generation_tokens, (34u * 1 + 33u * 2 + 33u * 3) * 100);
}

TEST_P(EngineTest, SubmitRefuses) {
  EngineConfig config;
  config.max_num_seqs = 4;
  Engine engine(null_executor(10), nullptr, config);
  auto refused = [&](std::vector<int32_t> prompt, SamplingParams params) {
    auto [code, message] = error_of([&] { engine.submit(std::move(prompt), std::move(params)); });
    EXPECT_EQ(code, ErrorCode::kInvalidArgument);
    return message;
  };
  EXPECT_NE(refused({}, greedy(1)).find("empty"), std::string::npos);
  EXPECT_NE(refused({1, kVocab}, greedy(1)).find("1000"), std::string::npos);
  EXPECT_NE(refused({-1}, greedy(1)).find("-1"), std::string::npos);
  EXPECT_NE(refused(std::vector<int32_t>(161, 1), greedy(1)).find("KV cache"), std::string::npos);
  EXPECT_NE(refused(std::vector<int32_t>(2049, 1), greedy(1)).find("max_model_len"), std::string::npos);
  SamplingParams params = several(1, 5);
  EXPECT_NE(refused({1}, params).find("max_num_seqs"), std::string::npos);
  params.top_p = 7;
  refused({1}, params);
  params = greedy(1);
  params.stop = {"x"};
  EXPECT_NE(refused({1}, params).find("vocabulary"), std::string::npos);
  // Nobody else was harmed.
  engine.submit({1, 2, 3}, greedy(3));
  collect(engine, 1);
}

TEST_P(EngineTest, StopsAtEos) {
  constexpr int32_t kEos = 3;
  std::vector<int32_t> prompt = {1, 2, 3, 4};
  std::vector<int32_t> expected;
  do {
    expected.push_back(
        NullExecutor::token_at(prompt, static_cast<int>(prompt.size() + expected.size()), kVocab, kEos));
  } while (expected.back() != kEos);
  int length = static_cast<int>(expected.size());
  Engine engine(null_executor(4096, 0, 2048, kEos), letters(), {});
  SamplingParams params = greedy(1000);
  params.eos_token_ids = {kEos};
  RequestId plain = engine.submit(prompt, params);
  params.min_tokens = length + 1;  // beyond the first EOS
  RequestId longer = engine.submit(prompt, params);
  params.min_tokens = 0;
  params.include_stop_str_in_output = true;
  RequestId included = engine.submit(prompt, params);
  params.ignore_eos = true;
  params.max_tokens = length + 5;
  RequestId ignored = engine.submit(prompt, params);
  params.ignore_eos = false;
  params.include_stop_str_in_output = false;
  params.max_tokens = length;
  RequestId both = engine.submit(prompt, params);  // EOS wins over the length
  Streams streams = collect(engine, 5);

  EXPECT_EQ((streams[{plain, 0}].tokens), expected);
  EXPECT_EQ((streams[{plain, 0}].finish_reason), FinishReason::kStop);
  EXPECT_EQ((streams[{plain, 0}].stop_reason.index()), 0u);
  EXPECT_EQ((streams[{plain, 0}].text), text_of(expected).substr(0, expected.size() - 1));
  EXPECT_GT((streams[{longer, 0}].tokens.size()), expected.size());
  EXPECT_EQ((streams[{included, 0}].text), text_of(expected));
  EXPECT_EQ((streams[{ignored, 0}].tokens.size()), expected.size() + 5);
  EXPECT_EQ((streams[{ignored, 0}].finish_reason), FinishReason::kLength);
  EXPECT_EQ((streams[{both, 0}].finish_reason), FinishReason::kStop);
}

TEST_P(EngineTest, StopsAtTokenIds) {
  std::vector<int32_t> prompt = {9, 8, 7};
  std::vector<int32_t> tokens = oracle(prompt, 20);
  int32_t stop = tokens[11];
  ASSERT_EQ(std::find(tokens.begin(), tokens.end(), stop), tokens.begin() + 11);
  Engine engine(null_executor(), letters(), {});
  SamplingParams params = greedy(20);
  params.stop_token_ids = {stop};
  RequestId plain = engine.submit(prompt, params);
  params.include_stop_str_in_output = true;
  RequestId included = engine.submit(prompt, params);
  params.eos_token_ids = {stop};
  RequestId eos = engine.submit(prompt, params);
  Streams streams = collect(engine, 3);
  tokens.resize(12);
  EXPECT_EQ((streams[{plain, 0}].tokens), tokens);
  EXPECT_EQ((streams[{plain, 0}].finish_reason), FinishReason::kStop);
  EXPECT_EQ(std::get<int32_t>(streams[{plain, 0}].stop_reason), stop);
  EXPECT_EQ((streams[{plain, 0}].text), text_of(tokens).substr(0, 11));
  EXPECT_EQ((streams[{included, 0}].text), text_of(tokens));
  EXPECT_EQ((streams[{eos, 0}].stop_reason.index()), 0u);
}

TEST_P(EngineTest, StopsAtStrings) {
  std::vector<int32_t> prompt = {9, 8, 7};
  std::vector<int32_t> tokens = oracle(prompt, 40);
  std::string text = text_of(tokens);
  std::string stop = text.substr(10, 4);
  ASSERT_EQ(text.find(stop), 10u);
  Engine engine(null_executor(), letters(), {});
  SamplingParams params = greedy(40);
  params.stop = {"never", stop};
  RequestId plain = engine.submit(prompt, params);
  params.include_stop_str_in_output = true;
  RequestId included = engine.submit(prompt, params);
  params.min_tokens = 20;
  RequestId later = engine.submit(prompt, params);
  params = greedy(12);
  params.stop = {stop};  // its first half is held back, and released at the end
  RequestId cut = engine.submit(prompt, params);
  Streams streams = collect(engine, 4);
  EXPECT_EQ((streams[{plain, 0}].text), text.substr(0, 10));
  EXPECT_EQ((streams[{plain, 0}].tokens.size()), 14u);
  EXPECT_EQ((streams[{plain, 0}].finish_reason), FinishReason::kStop);
  EXPECT_EQ(std::get<std::string>(streams[{plain, 0}].stop_reason), stop);
  EXPECT_EQ((streams[{included, 0}].text), text.substr(0, 14));
  EXPECT_EQ((streams[{later, 0}].text), text.substr(0, (streams[{later, 0}].tokens.size())));
  EXPECT_GT((streams[{later, 0}].tokens.size()), 19u);
  EXPECT_EQ((streams[{cut, 0}].text), text.substr(0, 12));
  EXPECT_EQ((streams[{cut, 0}].finish_reason), FinishReason::kLength);
}

TEST_P(EngineTest, EndsAtTheModelsLength) {
  Engine engine(null_executor(4096, 0, 50), nullptr, {});
  RequestId a = engine.submit(numbered_prompt(1, 20), greedy(100));
  RequestId b = engine.submit(numbered_prompt(2, 50), greedy(100));
  Streams streams = collect(engine, 2);
  EXPECT_EQ((streams[{a, 0}].tokens.size()), 30u);
  EXPECT_EQ((streams[{b, 0}].tokens.size()), 1u);
  EXPECT_EQ((streams[{a, 0}].finish_reason), FinishReason::kLength);
}

TEST_P(EngineTest, BestOfReturnsTheBest) {
  EngineConfig config;
  config.seed = 5;
  Engine engine(null_executor(), nullptr, config);
  SamplingParams params = several(12, 2, 5);
  params.seed = 77;
  params.logprobs = 1;
  std::vector<int32_t> prompt = {4, 4, 4};
  RequestId id = engine.submit(prompt, params);
  Streams streams = collect(engine, 1);
  ASSERT_EQ(streams.size(), 2u);
  std::vector<double> sums;
  for (uint64_t i = 0; i < 5; ++i) {
    double sum = 0;
    for (int position = 3; position < 15; ++position) {
      sum += static_cast<double>(NullExecutor::logprob_at(mix_seed(77, i), position));
    }
    sums.push_back(sum);
  }
  std::sort(sums.rbegin(), sums.rend());
  for (int i = 0; i < 2; ++i) {
    const Stream& stream = streams[{id, i}];
    EXPECT_EQ(stream.cumulative_logprob, sums[static_cast<size_t>(i)]);
    EXPECT_EQ(stream.tokens, oracle(prompt, 12));
    EXPECT_EQ(stream.num_outputs, 1);  // nothing before the best are known
    double sum = 0;
    for (const PositionLogprobs& entry : stream.logprobs) sum += static_cast<double>(entry[0].logprob);
    EXPECT_EQ(sum, sums[static_cast<size_t>(i)]);  // the logprobs are those of the sequence chosen
  }
  EXPECT_FALSE((streams[{id, 0}].request_finished));
  EXPECT_TRUE((streams[{id, 1}].request_finished));
}

TEST_P(EngineTest, SeedsDecideTheStreams) {
  auto logprobs = [](uint64_t engine_seed, std::optional<uint64_t> seed) {
    EngineConfig config;
    config.seed = engine_seed;
    Engine engine(null_executor(), nullptr, config);
    SamplingParams params = several(5, 2);
    params.seed = seed;
    for (int i = 0; i < 2; ++i) engine.submit({1, 2, 3}, params);
    Streams streams = collect(engine, 2);
    std::vector<double> out;
    for (auto& [key, stream] : streams) out.push_back(stream.cumulative_logprob);
    return out;
  };
  std::vector<double> a = logprobs(1, std::nullopt);
  EXPECT_EQ(a, logprobs(1, std::nullopt));
  EXPECT_NE(a, logprobs(2, std::nullopt));
  EXPECT_NE(a[0], a[1]);
  EXPECT_NE(a[0], a[2]);
  std::vector<double> b = logprobs(1, 9);
  EXPECT_EQ(b, logprobs(2, 9));
  EXPECT_EQ(b[0], b[2]);  // the request's seed, whatever its number
  EXPECT_NE(b[0], b[1]);
}

TEST_P(EngineTest, LogprobsComeWithTheirTokens) {
  EngineConfig config;
  config.max_num_batched_tokens = 16;  // the prompt comes in chunks
  config.max_num_seqs = 16;
  Engine engine(null_executor(), nullptr, config);
  SamplingParams params = several(8, 2);
  params.logprobs = 2;
  params.prompt_logprobs = 0;
  std::vector<int32_t> prompt = numbered_prompt(3, 40);
  RequestId id = engine.submit(prompt, params);
  Streams streams = collect(engine, 1);
  ASSERT_EQ((streams[{id, 0}].prompt_logprobs.size()), 39u);
  EXPECT_TRUE((streams[{id, 1}].prompt_logprobs.empty()));
  for (size_t i = 0; i < 39; ++i) {
    const PositionLogprobs& entry = streams[{id, 0}].prompt_logprobs[i];
    ASSERT_EQ(entry.size(), 1u);
    EXPECT_EQ(entry[0].token, prompt[i + 1]);
  }
  for (int index = 0; index < 2; ++index) {
    const Stream& stream = streams[{id, index}];
    ASSERT_EQ(stream.logprobs.size(), 8u);
    for (size_t i = 0; i < 8; ++i) {
      EXPECT_EQ(stream.logprobs[i].size(), 3u);
      EXPECT_EQ(stream.logprobs[i][0].token, stream.tokens[i]);
    }
  }
}

// Whoever polls rarely gets the same, in fewer pieces.
TEST_P(EngineTest, DeltasCoalesce) {
  Engine engine(null_executor(), letters(), {});
  std::map<RequestId, std::vector<int32_t>> prompts;
  SamplingParams params = several(200, 3);
  params.logprobs = 0;
  for (int i = 0; i < 20; ++i) {
    std::vector<int32_t> prompt = numbered_prompt(i, 5 + i);
    prompts[engine.submit(prompt, params)] = prompt;
  }
  EXPECT_TRUE(engine.drain(60s));
  std::vector<Output> outputs = engine.poll(0s);
  EXPECT_EQ(outputs.size(), 60u);
  std::map<RequestId, int> seen;
  for (const Output& output : outputs) {
    ++seen[output.request];
    EXPECT_EQ(output.request_finished, seen[output.request] == 3)
        << "the last output of a request must say so";
    EXPECT_EQ(output.logprobs.size(), 200u);
  }
  Streams streams;
  EXPECT_EQ(add_outputs(streams, std::move(outputs)), 20);
  for (auto& [key, stream] : streams) {
    EXPECT_EQ(stream.tokens, oracle(prompts[key.first], 200));
    EXPECT_EQ(stream.text.size(),
              200 - static_cast<size_t>(std::count(stream.tokens.begin(), stream.tokens.end(), 7)));
  }
}

TEST_P(EngineTest, PrioritiesAreHeeded) {
  EngineConfig config;
  config.priority_scheduling = true;
  config.max_num_seqs = 1;
  config.max_num_batched_tokens = 64;
  Engine engine(null_executor(4096, 0.001), nullptr, config);
  RequestId low = engine.submit({1}, greedy(50), 10);
  RequestId high = engine.submit({2}, greedy(50), 1);
  std::map<RequestId, double> finished;
  Streams streams = collect(engine, 2);
  EXPECT_LT((streams[{high, 0}].times.finished), (streams[{low, 0}].times.finished));
  EXPECT_EQ((streams[{low, 0}].tokens), oracle({1}, 50));
}

}  // namespace
}  // namespace taco
