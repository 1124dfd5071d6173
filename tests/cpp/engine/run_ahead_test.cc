// Two steps in flight: the second is submitted before the first one's tokens are known, and nobody notices.
#include <random>

#include "engine/engine.h"
#include "engine_test_util.h"
#include "faulty_executor.h"

namespace taco {
namespace {

using namespace std::chrono_literals;

std::shared_ptr<const Vocabulary> letters() {
  std::vector<std::string> pieces;
  for (int i = 0; i < kVocab; ++i) pieces.push_back(std::string(1, static_cast<char>('a' + i % 26)));
  return std::make_shared<const Vocabulary>(pieces, std::vector<int32_t>{}, false);
}

IN_BOTH_MODES(RunAhead);

TEST_P(RunAhead, SubmitsTheNextStepBeforeItCollects) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->gated = true;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
  engine.submit({1, 2}, greedy(5));
  EXPECT_TRUE(becomes([&] { return controls->submitted == GetParam(); }));
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(controls->submitted, GetParam());
  for (int token = 1; token <= 5; ++token) {
    controls->permits = 1;
    // What step n gave is told while n + 1 is still running.
    std::vector<Output> outputs = engine.poll(kPatience);
    ASSERT_EQ(outputs.size(), 1u);
    EXPECT_EQ(outputs[0].num_output_tokens, token);
    EXPECT_EQ(outputs[0].token_ids, (std::vector<int32_t>{oracle({1, 2}, token).back()}));
    int submitted = std::min(token + GetParam(), 5);  // none after the last that max_tokens allows
    EXPECT_TRUE(becomes([&] { return controls->submitted == submitted; }));
  }
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(controls->submitted, 5);
  EXPECT_EQ(engine.stats().steps, 5u);
}

TEST_P(RunAhead, WaitsForTokensThatSamplingReads) {
  auto with = [](auto change) {
    SamplingParams params = greedy(4);
    change(params);
    return params;
  };
  struct Case {
    SamplingParams params;
    bool waits;
  };
  std::vector<Case> cases = {
      {with([](auto& p) { p.presence_penalty = 0.5f; }), true},
      {with([](auto& p) { p.frequency_penalty = -0.5f; }), true},
      {with([](auto& p) { p.repetition_penalty = 1.1f; }), true},
      {with([](auto& p) { p.no_repeat_ngram_size = 2; }), true},
      {with([](auto& p) {
         p.bad_words = {{1, 2}};
       }),
       true},
      {with([](auto& p) { p.logits_processor = [](auto, auto, auto) {}; }), true},
      {with([](auto& p) { p.min_tokens = 3; }), false},
      {with([](auto& p) {
         p.logit_bias = {{1, 2.0f}};
       }),
       false},
      {with([](auto& p) {
         p.allowed_token_ids = {1, 2};
       }),
       false},
      {with([](auto& p) { p.logprobs = 3, p.prompt_logprobs = 2; }), false},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(samples_from_history(c.params), c.waits);
    auto controls = std::make_shared<Faulty::Controls>();
    controls->gated = true;
    Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
    engine.submit({1, 2}, c.params);
    int expected = c.waits ? 1 : GetParam();
    EXPECT_TRUE(becomes([&] { return controls->submitted == expected; }));
    std::this_thread::sleep_for(5ms);
    EXPECT_EQ(controls->submitted, expected);
    controls->gated = false;
    Streams streams = collect(engine, 1);
    EXPECT_EQ(streams.begin()->second.tokens, oracle({1, 2}, 4));
  }
}

// One such sequence among others makes the others wait as well, and only while it samples.
TEST_P(RunAhead, MixedRequestsKeepTheirStreams) {
  Engine engine(null_executor(60), letters(), {});
  std::map<RequestId, std::vector<int32_t>> prompts;
  for (int i = 0; i < 60; ++i) {
    SamplingParams params = several(5 + i % 30, 1 + i % 2);
    if (i % 5 == 0) params.repetition_penalty = 1.2f;
    if (i % 7 == 0) params.logprobs = 1;
    std::vector<int32_t> prompt = numbered_prompt(i, 1 + i % 70);
    prompts[engine.submit(prompt, params)] = prompt;
  }
  Streams streams = collect(engine, 60);
  for (auto& [key, stream] : streams) {
    int i = static_cast<int>(key.first) - 1;
    EXPECT_EQ(stream.tokens, oracle(prompts[key.first], 5 + i % 30));
  }
  EXPECT_EQ(engine.stats().free_blocks, engine.stats().num_blocks);
}

// A stop string may end at any token, while the next step already runs; alone or with others.
TEST_P(RunAhead, StopsAtEveryOffset) {
  std::vector<int32_t> prompt = {9, 8, 7};
  std::vector<int32_t> tokens = oracle(prompt, 40);
  std::string text;
  for (int32_t token : tokens) text += static_cast<char>('a' + token % 26);
  for (bool alone : {true, false}) {
    Engine engine(null_executor(), letters(), {});
    for (size_t length : {1, 2, 5}) {
      for (size_t end = length; end <= 30; ++end) {
        std::string stop = text.substr(end - length, length);
        size_t at = text.find(stop);  // it may come earlier
        SamplingParams params = greedy(40);
        params.stop = {stop};
        RequestId other = 0;
        if (!alone) other = engine.submit({4, 5}, several(35, 2));
        RequestId id = engine.submit(prompt, params);
        Streams streams = collect(engine, alone ? 1 : 2);
        const Stream& stream = streams[{id, 0}];
        EXPECT_EQ(stream.text, text.substr(0, at));
        EXPECT_EQ(stream.tokens,
                  std::vector<int32_t>(tokens.begin(), tokens.begin() + static_cast<int>(at + length)));
        EXPECT_EQ(stream.finish_reason, FinishReason::kStop);
        if (!alone) {
          for (int index : {0, 1}) EXPECT_EQ((streams[{other, index}].tokens), oracle({4, 5}, 35));
        }
      }
    }
    EngineStats stats = engine.stats();
    EXPECT_EQ(stats.free_blocks, stats.num_blocks);
    EXPECT_EQ(stats.running + stats.waiting, 0);
  }
}

// What is dropped because its sequence has ended is counted nowhere.
TEST_P(RunAhead, CountsNoTokenThatNobodyGets) {
  std::vector<int32_t> prompt = {9, 8, 7};
  Engine engine(null_executor(), nullptr, {});
  SamplingParams params = greedy(40);
  params.stop_token_ids = {oracle(prompt, 12).back()};
  RequestId id = engine.submit(prompt, params);
  Streams streams = collect(engine, 1);
  EXPECT_EQ((streams[{id, 0}].tokens), oracle(prompt, 12));
  EXPECT_EQ(engine.stats().generation_tokens, 12u);
  EXPECT_TRUE(becomes([&] { return engine.stats().steps == 11u + static_cast<uint64_t>(GetParam()); }));
  // The step in flight is no obstacle to what comes next.
  id = engine.submit(prompt, greedy(3));
  streams = collect(engine, 1);
  EXPECT_EQ((streams[{id, 0}].tokens), oracle(prompt, 3));
}

// Blocks of an ended sequence are used by another one while a step with the ended one is still running.
TEST_P(RunAhead, TinyPoolsUnderEveryKindOfEnd) {
  EngineConfig config;
  config.max_num_batched_tokens = 64;
  config.max_num_seqs = 16;
  config.priority_scheduling = true;
  for (int64_t num_blocks : {20, 33, 70}) {
    auto controls = std::make_shared<Faulty::Controls>();
    controls->gated = true;
    Engine engine(std::make_unique<Faulty>(controls, null_executor(num_blocks)), letters(), config);
    std::mt19937 random(static_cast<unsigned>(num_blocks));
    std::map<RequestId, std::vector<int32_t>> prompts;
    std::vector<RequestId> aborted;
    for (int i = 0; i < 150; ++i) {
      SamplingParams params =
          several(1 + static_cast<int>(random() % 120), 1 + static_cast<int>(random() % 3));
      params.best_of = params.n + static_cast<int>(random() % 2);
      if (random() % 3 == 0) params.stop = {std::string(1, static_cast<char>('a' + random() % 26)) + "a"};
      if (random() % 3 == 0) params.stop_token_ids = {static_cast<int32_t>(random() % 100), 5, 17, 900};
      if (random() % 4 == 0) params.prompt_logprobs = 1;
      std::vector<int32_t> prompt = numbered_prompt(i, 1 + static_cast<int>(random() % 150));
      RequestId id = engine.submit(prompt, params, static_cast<int>(random() % 3));
      prompts[id] = prompt;
      if (i == 40) controls->gated = false;  // enough for one to push out another
      if (random() % 5 == 0) engine.abort(1 + random() % id);
      if (random() % 8 == 0) std::this_thread::sleep_for(1ms);
    }
    Streams streams = collect(engine, 150);
    for (auto& [key, stream] : streams) {
      const std::vector<int32_t>& prompt = prompts[key.first];
      ASSERT_EQ(stream.tokens, oracle(prompt, static_cast<int>(stream.tokens.size())));
      ASSERT_NE(stream.finish_reason, FinishReason::kError) << stream.error;
    }
    EngineStats stats = engine.stats();
    EXPECT_EQ(stats.free_blocks, stats.num_blocks);
    EXPECT_FALSE(stats.dead) << stats.death_reason;
    EXPECT_GT(stats.preemptions, 0u);
  }
}

TEST_P(RunAhead, AbortsEndAtOnceWhileAStepRuns) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->gated = true;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
  RequestId id = engine.submit({1, 2}, greedy(100));
  RequestId stays = engine.submit({3}, greedy(4));
  ASSERT_TRUE(becomes([&] { return controls->submitted == GetParam(); }));
  engine.abort(id);
  controls->permits = 1;
  Streams streams;
  int finished = 0;
  // Told after the step that was being waited for, though another one with it is in flight.
  while (finished == 0) finished += add_outputs(streams, engine.poll(kPatience));
  EXPECT_EQ((streams[{id, 0}].finish_reason), FinishReason::kAbort);
  EXPECT_LE(controls->steps, 2);
  controls->gated = false;
  while (finished < 2) finished += add_outputs(streams, engine.poll(kPatience));
  EXPECT_EQ((streams[{stays, 0}].tokens), oracle({3}, 4));
}

// The logprobs of the chunk in flight come when nobody wants them any more.
TEST_P(RunAhead, AbortsInTheMiddleOfAPrompt) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->gated = true;
  EngineConfig config;
  config.max_num_batched_tokens = config.max_num_seqs = 8;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, config);
  SamplingParams params = greedy(5);
  params.prompt_logprobs = 1;
  RequestId id = engine.submit(numbered_prompt(1, 100), params);
  controls->permits = 3;
  ASSERT_TRUE(becomes([&] { return controls->steps == 3 && controls->submitted == 3 + GetParam(); }));
  engine.abort(id);
  RequestId next = engine.submit(numbered_prompt(2, 20), params);
  controls->gated = false;
  Streams streams = collect(engine, 2);
  EXPECT_EQ((streams[{id, 0}].finish_reason), FinishReason::kAbort);
  EXPECT_EQ((streams[{next, 0}].tokens), oracle(numbered_prompt(2, 20), 5));
  EXPECT_EQ((streams[{next, 0}].prompt_logprobs.size()), 19u);
  EXPECT_FALSE(engine.stats().dead) << engine.stats().death_reason;
}

TEST_P(RunAhead, ShutdownWaitsForWhatRuns) {
  auto controls = std::make_shared<Faulty::Controls>();
  Engine engine(std::make_unique<Faulty>(controls, null_executor(4096, 0.001)), nullptr, {});
  for (int i = 0; i < 4; ++i) engine.submit({1, 2}, greedy(1000));
  ASSERT_TRUE(becomes([&] { return controls->steps > 5; }));
  engine.shutdown();
  EXPECT_EQ(controls->steps, controls->submitted);
  EXPECT_FALSE(engine.stats().dead);
}

// Preempted sequences go to the host's blocks and come back.
TEST_P(RunAhead, SwapsUnderATinyPool) {
  for (int64_t swap_blocks : {3, 12, 500}) {
    for (PreemptionMode mode : {PreemptionMode::kAuto, PreemptionMode::kSwap}) {
      EngineConfig config;
      config.max_num_batched_tokens = 256;
      config.swap_blocks = swap_blocks;
      config.preemption_mode = mode;
      auto controls = std::make_shared<Faulty::Controls>();
      controls->gated = true;
      Engine engine(std::make_unique<Faulty>(controls, null_executor(40, 0, 2048, -1, 500)), nullptr, config);
      std::map<RequestId, std::vector<int32_t>> prompts;
      for (int i = 0; i < 60; ++i) {
        std::vector<int32_t> prompt = numbered_prompt(i, 1 + i % 100);
        prompts[engine.submit(prompt, several(100, 1 + i % 3))] = prompt;
      }
      controls->gated = false;
      Streams streams = collect(engine, 60);
      for (auto& [key, stream] : streams) EXPECT_EQ(stream.tokens, oracle(prompts[key.first], 100));
      EngineStats stats = engine.stats();
      EXPECT_GT(stats.preemptions, 0u);
      EXPECT_EQ(stats.free_blocks, stats.num_blocks);
      EXPECT_EQ(stats.swap_blocks, swap_blocks);
      EXPECT_EQ(stats.free_swap_blocks, swap_blocks);
    }
  }
  EngineConfig config;
  config.swap_blocks = 501;
  EXPECT_THROW(Engine(null_executor(40, 0, 2048, -1, 500), nullptr, config), Error);
}

}  // namespace
}  // namespace taco
