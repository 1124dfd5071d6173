// Speculation over an executor whose tokens are known beforehand: what comes out does not change, and takes
// as many steps as it must.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "engine_test_util.h"
#include "faulty_executor.h"
#include "test_drafters.h"

namespace taco {
namespace {

IN_BOTH_MODES(Speculation);

int32_t token_at(std::span<const int32_t> prompt, int position) {
  return NullExecutor::token_at(prompt, position, kVocab);
}

EngineConfig speculating(std::shared_ptr<Drafter> drafter, int budget = 512, int seqs = 32) {
  EngineConfig config{.max_num_batched_tokens = budget, .max_num_seqs = seqs};
  config.speculation.method = SpeculationMethod::kNgram;
  config.speculation.cost_model = false;
  config.drafter = std::move(drafter);
  return config;
}

// A device whose first run of all takes very long, as loading its kernels does.
class Timed : public NullExecutor {
 public:
  struct Asked {
    int sequences, drafts;
  };
  explicit Timed(std::vector<Asked>* asked)
      : NullExecutor(kVocab, 2048, 16, 4096, 0.0, -1, 2), asked_(asked) {}
  double time_step(int sequences, int drafts, int) override {
    if (asked_->empty()) std::this_thread::sleep_for(std::chrono::milliseconds(700));
    asked_->push_back({sequences, drafts});
    return 5e-3 + 20e-6 * (sequences + drafts);
  }
  std::vector<int> step_sizes() const override { return {1, 2, 4, 8, 64, 128, 256, 384, 512, 1024}; }

 private:
  std::vector<Asked>* asked_;
};

TEST(SpeculationStart, MeasuresWideStepsOfManySequences) {
  std::vector<Timed::Asked> asked;
  EngineConfig config{.max_num_batched_tokens = 4096, .max_num_seqs = 256, .speculation = {}, .drafter = {}};
  config.speculation.method = SpeculationMethod::kNgram;
  config.drafter = std::make_shared<OracleDrafter<decltype(&token_at)>>(3, &token_at);
  Engine engine(std::make_unique<Timed>(&asked), nullptr, config);
  engine.shutdown();
  // Few drafts of many sequences, too; and every size that steps are padded to.
  for (const auto& [sequences, drafts] : {Timed::Asked{1, 15},
                                          {16, 112},
                                          {64, 0},
                                          {64, 64},
                                          {64, 192},
                                          {64, 448},
                                          {256, 0},
                                          {256, 256},
                                          {256, 768},
                                          {96, 32},
                                          {192, 64},
                                          {256, 128}})
    EXPECT_TRUE(std::any_of(
        asked.begin(), asked.end(),
        [s = sequences, d = drafts](const Timed::Asked& a) { return a.sequences == s && a.drafts == d; }))
        << sequences << " sequences, " << drafts << " drafts";
}

struct Learner final : TestDrafter {
  int64_t catch_up(int64_t tokens) override {
    most = std::max(most, tokens);
    least = std::min(least, tokens);
    return 0;
  }
  void use_other_cores() override { other_cores = true; }
  void grow(const Text&, const DraftRequest&) override {}
  int64_t most = 0, least = INT64_MAX;
  bool other_cores = false;
};

// Beside a device's steps there is time to learn: 15 % of 5 ms at 1 us a token.
TEST(SpeculationStart, ADeviceLeavesTimeToLearn) {
  std::vector<Timed::Asked> asked;
  auto learner = std::make_shared<Learner>();
  EngineConfig config = speculating(learner);
  config.speculation.cost_model = true;
  Engine engine(std::make_unique<Timed>(&asked), nullptr, config);
  engine.submit(numbered_prompt(3, 20), greedy(20));
  collect(engine, 1);
  engine.shutdown();
  EXPECT_TRUE(learner->other_cores);
  EXPECT_GE(learner->most, 700);
}

// What a step computes is what may be learned from while it runs: learning keeps up with prompts.
TEST_P(Speculation, LearningKeepsUpWithSteps) {
  auto learner = std::make_shared<Learner>();
  Engine engine(null_executor(), nullptr, speculating(learner));
  engine.submit(numbered_prompt(3, 450), greedy(5));
  collect(engine, 1);
  engine.shutdown();
  EXPECT_GE(learner->most, 450);
  EXPECT_EQ(learner->least, 256);
}

TEST_P(Speculation, AnOracleTakesTheFewestSteps) {
  for (int depth : {1, 3, 7, 20, 63}) {
    for (int count : {1, 2, 8, 9, 40, 64, 65, 100}) {
      auto drafter = std::make_shared<OracleDrafter<decltype(&token_at)>>(depth, &token_at);
      Engine engine(null_executor(), nullptr, speculating(drafter));
      const std::vector<int32_t> prompt = numbered_prompt(3, 21);
      engine.submit(prompt, greedy(count));
      Streams streams = collect(engine, 1);
      ASSERT_EQ(streams.size(), 1u);
      EXPECT_EQ(streams.begin()->second.tokens, oracle(prompt, count));
      EXPECT_EQ(streams.begin()->second.finish_reason, FinishReason::kLength);
      engine.shutdown();
      // The step that ends the prompt gives the first token.
      EXPECT_EQ(engine.stats().steps, 1u + static_cast<uint64_t>((count - 1 + depth) / (depth + 1)))
          << "depth " << depth << ", " << count << " tokens";
      EXPECT_EQ(engine.stats().generation_tokens, static_cast<uint64_t>(count));
      EXPECT_EQ(drafter->accepted, engine.stats().speculation.accepted);
      EXPECT_EQ(drafter->wrong_calls, 0);
    }
  }
}

TEST_P(Speculation, NoDrafterChangesATokenALogprobOrAStop) {
  struct Case {
    const char* name;
    std::shared_ptr<TestDrafter> drafter;
  };
  const std::vector<int32_t> first = numbered_prompt(0, 5);
  for (int64_t blocks : {4096, 24}) {  // the second: with preemptions
    auto run = [&](std::shared_ptr<TestDrafter> drafter, EngineStats& stats) {
      EngineConfig config = drafter ? speculating(drafter, 96, 16)
                                    : EngineConfig{.max_num_batched_tokens = 96, .max_num_seqs = 16};
      auto controls = std::make_shared<Faulty::Controls>();
      controls->gated = true;  // until all are there, or steps could not be compared
      Engine engine(std::make_unique<Faulty>(controls, null_executor(blocks)), nullptr, config);
      for (int i = 0; i < 24; ++i) {
        SamplingParams params = greedy(5 + i * 7 % 60);
        params.logprobs = i % 3 - 1;
        // Stops in the middle of what an oracle drafts.
        const std::vector<int32_t> prompt = numbered_prompt(i, 3 + i * 5 % 90);
        if (i % 2) params.stop_token_ids = {oracle(prompt, 30)[static_cast<size_t>(3 + i)]};
        if (i % 4 == 3) params.min_tokens = 10;
        if (i % 5 == 4) {
          params.temperature = 1.0f;
          params.n = params.best_of = 3;
        }
        engine.submit(prompt, params);
      }
      controls->gated = false;
      Streams streams = collect(engine, 24);
      engine.shutdown();
      stats = engine.stats();
      return streams;
    };
    EngineStats plain;
    const Streams expected = run(nullptr, plain);
    if (blocks == 24) {
      EXPECT_GT(plain.preemptions, 0u);
    }
    for (const Case& c :
         {Case{"garbage", std::make_shared<GarbageDrafter>(kVocab, 5)},
          Case{"oracle", std::make_shared<OracleDrafter<decltype(&token_at)>>(9, &token_at)},
          Case{"trees", std::make_shared<RandomTreeDrafter<decltype(&token_at)>>(kVocab, 6, &token_at)}}) {
      EngineStats stats;
      const Streams got = run(c.drafter, stats);
      ASSERT_EQ(got.size(), expected.size()) << c.name;
      for (const auto& [key, stream] : expected) {
        const Stream& other = got.at(key);
        EXPECT_EQ(other.tokens, stream.tokens) << c.name << ", request " << key.first << ", " << blocks;
        EXPECT_EQ(other.finish_reason, stream.finish_reason);
        EXPECT_EQ(other.stop_reason, stream.stop_reason);
        EXPECT_DOUBLE_EQ(other.cumulative_logprob, stream.cumulative_logprob);
        ASSERT_EQ(other.logprobs.size(), stream.logprobs.size());
        for (size_t i = 0; i < stream.logprobs.size(); ++i) {
          ASSERT_EQ(other.logprobs[i].size(), stream.logprobs[i].size());
          EXPECT_EQ(other.logprobs[i][0].token, stream.logprobs[i][0].token);
          EXPECT_EQ(other.logprobs[i][0].logprob, stream.logprobs[i][0].logprob);
        }
      }
      EXPECT_EQ(stats.generation_tokens, plain.generation_tokens) << c.name;
      EXPECT_EQ(stats.free_blocks, stats.num_blocks) << c.name;
      EXPECT_EQ(c.drafter->wrong_calls, 0) << c.name;
      if (c.name[0] != 'g') {
        EXPECT_GT(c.drafter->accepted, 100u) << c.name;
        EXPECT_LT(stats.steps, plain.steps) << c.name;
      }
    }
  }
}

// With the cost model on, steps are ordinary, shadows or speculative as it pleases.
TEST_P(Speculation, TheControllerChangesNoToken) {
  auto drafter = std::make_shared<RandomTreeDrafter<decltype(&token_at)>>(kVocab, 9, &token_at);
  EngineConfig config = speculating(drafter);
  config.speculation.cost_model = true;
  Engine engine(null_executor(4096, 1e-4), nullptr, config);
  for (int i = 0; i < 40; ++i) engine.submit(numbered_prompt(i, 3 + i * 5 % 90), greedy(30 + i));
  Streams streams = collect(engine, 40);
  for (int i = 0; i < 40; ++i) {
    const Stream& stream = std::next(streams.begin(), i)->second;
    EXPECT_EQ(stream.tokens, oracle(numbered_prompt(i, 3 + i * 5 % 90), 30 + i)) << i;
  }
  EXPECT_EQ(drafter->wrong_calls, 0);
}

TEST_P(Speculation, AbortsInTheMiddleLeaveNothingBehind) {
  auto drafter = std::make_shared<RandomTreeDrafter<decltype(&token_at)>>(kVocab, 11, &token_at);
  Engine engine(null_executor(512), nullptr, speculating(drafter));
  std::vector<RequestId> ids;
  for (int i = 0; i < 60; ++i) ids.push_back(engine.submit(numbered_prompt(i, 40), greedy(200)));
  for (size_t i = 0; i < ids.size(); i += 2) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    engine.abort(ids[i]);
  }
  Streams streams = collect(engine, 60);
  for (auto& [key, stream] : streams) {
    if (stream.finish_reason == FinishReason::kAbort) continue;
    EXPECT_EQ(stream.tokens.size(), 200u);
  }
  engine.submit(numbered_prompt(1, 4), greedy(1));  // a last step, after which all that ended is forgotten
  collect(engine, 1);
  engine.shutdown();
  EXPECT_EQ(engine.stats().free_blocks, engine.stats().num_blocks);
  EXPECT_LE(drafter->num_texts(), 1u);
  EXPECT_EQ(drafter->wrong_calls, 0);
}

// Drafts yield: to prompts, to the limit of the step's tokens, to the end of the model's length.
TEST_P(Speculation, DraftsTakeWhatIsLeft) {
  for (int budget : {16, 17, 40}) {
    auto drafter = std::make_shared<OracleDrafter<decltype(&token_at)>>(30, &token_at);
    Engine engine(null_executor(4096, 0.0, 64), nullptr, speculating(drafter, budget, 16));
    for (int i = 0; i < 16; ++i)
      engine.submit(numbered_prompt(i, 3 + i), greedy(100));  // the length ends them
    Streams streams = collect(engine, 16);
    for (int i = 0; i < 16; ++i) {
      const Stream& stream = std::next(streams.begin(), i)->second;
      EXPECT_EQ(stream.tokens, oracle(numbered_prompt(i, 3 + i), 64 - 3 - i));
      EXPECT_EQ(stream.finish_reason, FinishReason::kLength);
    }
  }
}

}  // namespace
}  // namespace taco
