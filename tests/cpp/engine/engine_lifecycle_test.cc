// The engine's edges: threads, aborts, the eventfd, draining, shutting down, steps that fail.
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "base/error.h"
#include "engine/engine.h"
#include "engine_test_util.h"
#include "faulty_executor.h"

namespace taco {
namespace {

using namespace std::chrono_literals;

bool readable(int fd, int timeout_ms = 0) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, timeout_ms) == 1;
}

IN_BOTH_MODES(EventFd);

TEST_P(EventFd, IsReadableExactlyWhileSomethingIsThere) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->gated = true;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
  EXPECT_FALSE(readable(engine.event_fd()));
  engine.submit({1, 2}, greedy(3));
  EXPECT_FALSE(readable(engine.event_fd(), 20));
  controls->permits = 1;
  EXPECT_TRUE(readable(engine.event_fd(), 60000));
  EXPECT_EQ(engine.poll(0s).size(), 1u);
  EXPECT_FALSE(readable(engine.event_fd(), 20));
  controls->permits = 2;
  EXPECT_TRUE(engine.drain(kPatience));
  // Two steps, but one write while nobody read: one read clears it.
  uint64_t count = 0;
  ASSERT_EQ(::read(engine.event_fd(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
  EXPECT_EQ(count, 1u);
  EXPECT_FALSE(readable(engine.event_fd()));
  std::vector<Output> outputs = engine.poll(0s);
  ASSERT_EQ(outputs.size(), 1u);
  EXPECT_EQ(outputs[0].token_ids.size(), 2u);
  EXPECT_TRUE(engine.poll(0s).empty());
}

IN_BOTH_MODES(Poll);

TEST_P(Poll, WaitsAndTimesOut) {
  Engine engine(null_executor(), nullptr, {});
  auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(engine.poll(30ms).empty());
  EXPECT_GE(std::chrono::steady_clock::now() - start, 30ms);
  EXPECT_TRUE(engine.poll(-1s).empty());
  std::thread later([&] {
    std::this_thread::sleep_for(20ms);
    engine.submit({1}, greedy(1));
  });
  EXPECT_EQ(engine.poll(std::chrono::duration<double>::max()).size(), 1u);
  later.join();
}

IN_BOTH_MODES(Idle);

TEST_P(Idle, IsToldToTheExecutor) {
  auto controls = std::make_shared<Faulty::Controls>();
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
  engine.submit({1}, greedy(2));
  collect(engine, 1);
  EXPECT_TRUE(becomes([&] { return controls->idles >= 1; }));
  EXPECT_EQ(controls->steps, 2);
}

IN_BOTH_MODES(Abort);

TEST_P(Abort, IsEffectiveWithinTwoSteps) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->gated = true;
  EngineConfig config;
  config.max_num_batched_tokens = config.max_num_seqs = 8;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, config);
  RequestId running = engine.submit({1}, greedy(1000));
  RequestId prefill = engine.submit(numbered_prompt(1, 500), greedy(1000));
  RequestId waiting = engine.submit(numbered_prompt(2, 500), greedy(1000));
  RequestId group = engine.submit({5, 5}, several(1000, 3));
  controls->permits = 3;
  while (controls->steps < 3) std::this_thread::sleep_for(1ms);
  for (RequestId id : {running, prefill, waiting, group, RequestId{999}}) engine.abort(id);
  engine.abort(running);
  controls->permits = 2;
  Streams streams = collect(engine, 4);
  EXPECT_LE(controls->steps, 5);
  EXPECT_EQ(streams.size(), 6u);
  for (auto& [key, stream] : streams) EXPECT_EQ(stream.finish_reason, FinishReason::kAbort);
  const Stream& stream = streams[{running, 0}];
  EXPECT_EQ(stream.tokens, oracle({1}, static_cast<int>(stream.tokens.size())));
  EngineStats stats = engine.stats();
  EXPECT_EQ(stats.free_blocks, stats.num_blocks);
  EXPECT_EQ(stats.finished_abort, 4u);
  EXPECT_EQ(stats.running + stats.waiting, 0);
}

TEST_P(Abort, All) {
  Engine engine(null_executor(4096, 0.01), nullptr, {});  // none ends by itself for a long time
  for (int i = 0; i < 50; ++i) engine.submit({1, 2, 3}, greedy(2000));
  engine.abort_all();
  RequestId after = engine.submit({4, 5}, greedy(5));
  Streams streams = collect(engine, 51);
  for (auto& [key, stream] : streams) {
    EXPECT_EQ(stream.finish_reason, key.first == after ? FinishReason::kLength : FinishReason::kAbort);
  }
}

IN_BOTH_MODES(Threads);

// Several threads submit and abort while others poll; nothing is lost, doubled or left behind.
TEST_P(Threads, TenThousandAborts) {
  constexpr int kThreads = 4, kPerThread = 2500;
  EngineConfig config;
  config.max_num_batched_tokens = 128;
  config.max_num_seqs = 32;
  auto executor = std::make_unique<NullExecutor>(kVocab, 2048, 16, 64, 0.0, -1, GetParam());
  Engine engine(std::move(executor), nullptr, config);
  std::mutex mutex;
  std::map<RequestId, std::vector<int32_t>> prompts;
  std::atomic<int> finished{0};
  Streams streams;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      std::vector<RequestId> open;
      for (int i = 0; i < kPerThread; ++i) {
        SamplingParams params = several(1 + static_cast<int>(random() % 100), random() % 4 == 0 ? 3 : 1);
        std::vector<int32_t> prompt =
            numbered_prompt(static_cast<int>(random() % 1000), 1 + static_cast<int>(random() % 200));
        RequestId id;
        {
          std::lock_guard lock(mutex);
          id = engine.submit(prompt, params);
          prompts[id] = std::move(prompt);
        }
        open.push_back(id);
        if (open.size() > 8) {
          std::swap(open[random() % open.size()], open.back());
          engine.abort(open.back());
          open.pop_back();
        }
        if (i % 16 == 0) std::this_thread::sleep_for(1ms);
        engine.stats();
      }
      for (RequestId id : open) engine.abort(id);
    });
  }
  auto deadline = std::chrono::steady_clock::now() + 120s;
  while (finished < kThreads * kPerThread && std::chrono::steady_clock::now() < deadline) {
    finished += add_outputs(streams, engine.poll(100ms));
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(finished, kThreads * kPerThread);
  std::map<RequestId, int> ends;
  for (auto& [key, stream] : streams) {
    ASSERT_NE(stream.finish_reason, FinishReason::kNone);
    ASSERT_NE(stream.finish_reason, FinishReason::kError) << stream.error;
    ASSERT_EQ(stream.tokens, oracle(prompts[key.first], static_cast<int>(stream.tokens.size())));
    ends[key.first] += stream.request_finished;
  }
  ASSERT_EQ(ends.size(), static_cast<size_t>(kThreads * kPerThread));
  for (auto& [id, count] : ends) ASSERT_EQ(count, 1);
  EngineStats stats = engine.stats();
  EXPECT_EQ(stats.free_blocks, stats.num_blocks);
  EXPECT_EQ(stats.running + stats.waiting, 0);
  EXPECT_FALSE(stats.dead) << stats.death_reason;
  EXPECT_EQ(stats.finished_abort + stats.finished_length, static_cast<uint64_t>(kThreads * kPerThread));
}

TEST_P(Threads, SeveralPollers) {
  Engine engine(null_executor(), nullptr, {});
  std::atomic<int> finished{0}, tokens{0};
  std::vector<std::thread> pollers;
  for (int i = 0; i < 3; ++i) {
    pollers.emplace_back([&] {
      while (finished < 200) {
        for (const Output& output : engine.poll(10ms)) {
          tokens += static_cast<int>(output.token_ids.size());
          finished += output.request_finished;
        }
      }
    });
  }
  for (int i = 0; i < 200; ++i) engine.submit(numbered_prompt(i, 10), greedy(20));
  for (std::thread& poller : pollers) poller.join();
  EXPECT_EQ(tokens, 4000);
}

IN_BOTH_MODES(Queue);

TEST_P(Queue, IsBounded) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->gated = true;
  EngineConfig config;
  config.max_waiting = 5;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, config);
  for (int i = 0; i < 5; ++i) engine.submit({1}, greedy(3));
  // The gate is shut: at most what the first step took has left the queue.
  int accepted = 0;
  try {
    for (; accepted < 20; ++accepted) engine.submit({1}, greedy(3));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
  }
  EXPECT_LT(accepted, 20);
  controls->gated = false;
  collect(engine, 5 + accepted);
  for (int i = 0; i < 3; ++i) {
    engine.abort(engine.submit({1}, greedy(1000)));
    engine.submit({2}, greedy(1));
    collect(engine, 2);
  }
}

IN_BOTH_MODES(Drain);

TEST_P(Drain, FinishesWhatIsThereAndAcceptsNothing) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->gated = true;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
  RequestId id = engine.submit({1, 2, 3}, greedy(100));
  EXPECT_FALSE(engine.drain(1ms));
  expect_unavailable(engine, "draining");
  controls->gated = false;
  EXPECT_TRUE(engine.drain(kPatience));
  Streams streams;
  EXPECT_EQ(add_outputs(streams, engine.poll(0s)), 1);  // all is there when drain returns
  EXPECT_EQ((streams[{id, 0}].tokens), oracle({1, 2, 3}, 100));
  EXPECT_EQ((streams[{id, 0}].finish_reason), FinishReason::kLength);
}

IN_BOTH_MODES(Shutdown);

TEST_P(Shutdown, AbortsTheRest) {
  Engine engine(null_executor(4096, 0.01), nullptr, {});  // none ends by itself for a long time
  for (int i = 0; i < 20; ++i) engine.submit(numbered_prompt(i, 10), greedy(2000));
  Streams streams;
  add_outputs(streams, engine.poll(1s));
  std::thread other([&] { engine.shutdown(); });
  engine.shutdown();
  other.join();
  engine.shutdown();
  int finished = add_outputs(streams, engine.poll(1s));
  EXPECT_EQ(finished, 20);
  for (auto& [key, stream] : streams) {
    EXPECT_EQ(stream.finish_reason, FinishReason::kAbort);
    EXPECT_EQ(stream.tokens, oracle(numbered_prompt(static_cast<int>(key.first) - 1, 10),
                                    static_cast<int>(stream.tokens.size())));
  }
  expect_unavailable(engine, "shut down");
  EXPECT_EQ(engine.stats().free_blocks, engine.stats().num_blocks);
  // Nothing will come any more: nobody is kept waiting.
  auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(engine.poll(kPatience).empty());
  EXPECT_TRUE(engine.drain(kPatience));
  EXPECT_LT(std::chrono::steady_clock::now() - start, kPatience / 2);
}

TEST_P(Shutdown, InTheMiddleOfEverything) {
  for (int round = 0; round < 20; ++round) {
    auto engine = std::make_unique<Engine>(null_executor(40), nullptr, EngineConfig{});
    std::thread submitter([&] {
      try {
        for (int i = 0; i < 2000; ++i) engine->submit(numbered_prompt(i, 1 + i % 50), greedy(50));
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
      }
    });
    std::this_thread::sleep_for(std::chrono::microseconds(300 * round));
    engine->shutdown();
    submitter.join();
  }
}

IN_BOTH_MODES(Death);

TEST_P(Death, EveryRequestHearsOfIt) {
  for (ErrorCode code : {ErrorCode::kInternal, ErrorCode::kUnavailable, ErrorCode::kResourceExhausted}) {
    for (int step : {0, 1, 5}) {
      for (bool at_submit : {false, true}) {
        SCOPED_TRACE(testing::Message() << step << (at_submit ? " submit" : " collect"));
        auto controls = std::make_shared<Faulty::Controls>();
        (at_submit ? controls->throw_at_submit : controls->throw_at_collect) = step;
        controls->code = code;
        EngineConfig config;
        config.max_num_batched_tokens = config.max_num_seqs = 8;
        Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, config);
        int accepted = 0;
        try {
          for (; accepted < 20; ++accepted) {
            engine.submit(numbered_prompt(accepted, 5), accepted % 2 == 0 ? greedy(100) : several(100, 1, 3));
          }
        } catch (const Error& error) {  // it is dead already
          EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
        }
        Streams streams = collect(engine, accepted);
        for (auto& [key, stream] : streams) {
          EXPECT_EQ(stream.finish_reason, FinishReason::kError);
          EXPECT_NE(stream.error.find("the device caught fire"), std::string::npos);
          std::vector<int32_t> prompt = numbered_prompt(static_cast<int>(key.first) - 1, 5);
          EXPECT_EQ(stream.tokens, oracle(prompt, static_cast<int>(stream.tokens.size())));
        }
        expect_unavailable(engine, "the device caught fire");
        EngineStats stats = engine.stats();
        EXPECT_TRUE(stats.dead);
        EXPECT_EQ(stats.death_reason, "the device caught fire");
        EXPECT_EQ(stats.finished_error, static_cast<uint64_t>(accepted));
        EXPECT_EQ(stats.running + stats.waiting, 0);
        EXPECT_EQ(stats.current_step_start, 0);
        EXPECT_EQ(stats.free_blocks, stats.num_blocks);
        EXPECT_TRUE(engine.drain(kPatience));
        engine.abort(3);
        engine.abort_all();
        engine.shutdown();
        EXPECT_EQ(controls->calls_after_throw, 0);
      }
    }
  }
}

// An executor that breaks its contract is not believed.
TEST_P(Death, ALostTokenIsNoticed) {
  auto controls = std::make_shared<Faulty::Controls>();
  controls->drop_a_token = true;
  Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
  engine.submit({1}, greedy(10));
  Streams streams = collect(engine, 1);
  EXPECT_EQ(streams.begin()->second.finish_reason, FinishReason::kError);
  EXPECT_TRUE(streams.begin()->second.tokens.empty());
  EXPECT_TRUE(engine.stats().dead);
}

IN_BOTH_MODES(Failure);

TEST_P(Failure, OfOneSequenceHarmsNoOther) {
  for (int failing_step : {0, 3}) {
    auto controls = std::make_shared<Faulty::Controls>();
    controls->failing_step = failing_step;
    controls->failing_index = 1;
    Engine engine(std::make_unique<Faulty>(controls, null_executor()), nullptr, {});
    RequestId id = engine.submit({1, 2}, several(10, 3));
    Streams streams = collect(engine, 1);
    EXPECT_EQ((streams[{id, 1}].finish_reason), FinishReason::kError);
    EXPECT_EQ((streams[{id, 1}].error), "the logits are not finite");
    EXPECT_EQ((streams[{id, 1}].tokens), oracle({1, 2}, failing_step));
    for (int index : {0, 2}) {
      EXPECT_EQ((streams[{id, index}].finish_reason), FinishReason::kLength);
      EXPECT_EQ((streams[{id, index}].tokens), oracle({1, 2}, 10));
    }
    // With best_of the failed one comes last, here not at all.
    controls->failing_step = controls->submitted + failing_step;
    id = engine.submit({1, 2}, several(10, 2, 3));
    streams = collect(engine, 1);
    EXPECT_EQ(streams.size(), 2u);
    for (auto& [key, stream] : streams) EXPECT_EQ(stream.finish_reason, FinishReason::kLength);
    EXPECT_EQ(engine.stats().free_blocks, engine.stats().num_blocks);
    EXPECT_FALSE(engine.stats().dead);
  }
}

}  // namespace
}  // namespace taco
