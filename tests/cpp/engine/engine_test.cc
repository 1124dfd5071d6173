// The engine over the NullExecutor: every token of every stream is predicted.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "engine/engine_test_util.h"

namespace taco {
namespace {

using namespace std::chrono_literals;

TEST(Engine, OneRequest) {
  Engine engine(null_executor(), nullptr, {});
  std::vector<int32_t> prompt = {5, 6, 7};
  RequestId id = engine.submit(prompt, greedy(10));
  Streams streams = collect(engine, 1);
  const Stream& stream = streams[{id, 0}];
  EXPECT_EQ(stream.tokens, oracle(prompt, 10));
  EXPECT_EQ(stream.finish_reason, FinishReason::kLength);
  EXPECT_TRUE(stream.request_finished);
  EngineStats stats = engine.stats();
  EXPECT_EQ(stats.free_blocks, stats.num_blocks);
  EXPECT_EQ(stats.steps, 10u);
  EXPECT_EQ(stats.prompt_tokens, 3u);
  EXPECT_EQ(stats.generation_tokens, 10u);
  EXPECT_EQ(stats.finished_length, 1u);
}

TEST(Engine, ManyRequestsAtOnce) {
  Engine engine(null_executor(), nullptr, {});
  std::map<RequestId, std::vector<int32_t>> prompts;
  for (int i = 0; i < 300; ++i) {
    std::vector<int32_t> prompt = numbered_prompt(i, 1 + i % 100);
    prompts[engine.submit(prompt, greedy(1 + i % 40))] = prompt;
  }
  Streams streams = collect(engine, 300);
  for (auto& [id, prompt] : prompts) {
    const Stream& stream = streams[{id, 0}];
    EXPECT_EQ(stream.tokens, oracle(prompt, static_cast<int>(stream.tokens.size())));
    EXPECT_EQ(stream.tokens.size(), 1 + (id - 1) % 40) << id;
  }
  EXPECT_EQ(engine.stats().free_blocks, engine.stats().num_blocks);
}

}  // namespace
}  // namespace taco
