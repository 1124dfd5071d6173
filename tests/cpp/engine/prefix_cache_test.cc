// The engine with a prefix cache over the null executor, which knows every token beforehand and checks every
// slot of its cache: answers are those of an engine without one, whatever is shared, moved or late.
#include <time.h>

#include <random>
#include <thread>

#include "base/error.h"
#include "engine_test_util.h"
#include "test_drafters.h"

namespace taco {
namespace {

IN_BOTH_MODES(PrefixCaching);

EngineConfig cached(int64_t host_blocks = 0) {
  EngineConfig config;
  config.max_num_batched_tokens = 512;
  config.max_num_seqs = 16;
  config.prefix_caching.enabled = true;
  config.prefix_caching.host_blocks = host_blocks;
  config.prefix_caching.block_bytes = 1000;
  config.prefix_caching.log_hits = true;
  return config;
}

struct Answer {
  std::vector<int32_t> tokens;
  int cached = 0;
  FinishReason reason = FinishReason::kNone;
};

// One request to its end; others may be answered meanwhile.
Answer answer(Engine& engine, const std::vector<int32_t>& prompt, int max_tokens) {
  const RequestId id = engine.submit(prompt, greedy(max_tokens));
  Answer out;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (out.reason == FinishReason::kNone && std::chrono::steady_clock::now() < deadline) {
    for (const Output& output : engine.poll(std::chrono::seconds(1))) {
      if (output.request != id) continue;
      out.tokens.insert(out.tokens.end(), output.token_ids.begin(), output.token_ids.end());
      out.cached = output.num_cached_tokens;
      out.reason = output.finish_reason;
    }
  }
  EXPECT_EQ(out.tokens, oracle(prompt, max_tokens));
  return out;
}

TEST_P(PrefixCaching, TellsWhatWasCached) {
  Engine engine(null_executor(), nullptr, cached());
  std::vector<int32_t> prompt = numbered_prompt(3, 100);
  EXPECT_EQ(answer(engine, prompt, 20).cached, 0);
  EXPECT_EQ(answer(engine, prompt, 20).cached, 99);  // the last three from a block that the output filled
  const std::vector<int32_t> said = oracle(prompt, 20);
  prompt.insert(prompt.end(), said.begin(), said.end());
  prompt.push_back(7);
  EXPECT_EQ(answer(engine, prompt, 20).cached, 112);  // 119 were computed
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.prompt_tokens, 100u + 100 + 121);
  EXPECT_EQ(stats.prompt_tokens_computed, 100u + 1 + 9);
  EXPECT_EQ(stats.prefix_cache.tokens_hit[0], 99u + 112);
  EXPECT_EQ(stats.free_blocks, stats.num_blocks);
}

TEST_P(PrefixCaching, RootsKeepRequestsApart) {
  Engine engine(null_executor(), nullptr, cached());
  const std::vector<int32_t> prompt = numbered_prompt(3, 100);
  answer(engine, prompt, 2);
  Digest other;
  other.bytes[0] = 1;
  engine.submit(prompt, greedy(2), 0, 0, other);
  int found = -1;
  for (int i = 0; i < 100 && found < 0; ++i) {
    for (const Output& output : engine.poll(std::chrono::seconds(1)))
      if (output.request_finished) found = output.num_cached_tokens;
  }
  EXPECT_EQ(found, 0);
}

TEST_P(PrefixCaching, ReportsAndResets) {
  Engine engine(null_executor(), nullptr, cached());
  const std::vector<int32_t> prompt = numbered_prompt(3, 100);
  for (int i = 0; i < 3; ++i) answer(engine, prompt, 2);
  CacheReport report = engine.cache_report(5);
  ASSERT_EQ(report.hottest.size(), 1u);
  EXPECT_EQ(report.hottest[0].tokens, 96);
  EXPECT_EQ(report.stats.entries, 6);
  EXPECT_TRUE(engine.reset_prefix_cache());
  EXPECT_EQ(engine.cache_report(5).stats.entries, 0);
  EXPECT_EQ(answer(engine, prompt, 2).cached, 0);
  engine.shutdown();
  EXPECT_THROW(engine.reset_prefix_cache(), Error);
  EXPECT_THROW(engine.cache_report(5), Error);

  Engine plain(null_executor(), nullptr, EngineConfig{});
  EXPECT_FALSE(plain.reset_prefix_cache());
  EXPECT_THROW(plain.cache_report(5), Error);
}

struct ToldDisk : DiskTier {
  bool can_read() const override { return true; }
  bool can_write() const override { return true; }
  void used(std::span<const int64_t>) override {}
  uint64_t reset() override {
    reset_by = std::this_thread::get_id();
    return ++resets;
  }
  bool settle() override {
    settled_by = std::this_thread::get_id();
    settled = resets;
    return works;
  }
  std::thread::id reset_by, settled_by;
  uint64_t resets = 0, settled = 0;
  bool works = true;
};

TEST_P(PrefixCaching, AResetIsOnDiskWhenItReturns) {
  auto disk = std::make_shared<ToldDisk>();
  EngineConfig config = cached();
  config.prefix_caching.disk = disk;
  Engine engine(null_executor(), nullptr, config);
  EXPECT_TRUE(engine.reset_prefix_cache());
  EXPECT_EQ(disk->resets, 1u);
  EXPECT_EQ(disk->settled, 1u);
  EXPECT_EQ(disk->settled_by, std::this_thread::get_id());  // steps go on meanwhile
  EXPECT_NE(disk->reset_by, std::this_thread::get_id());
  disk->works = false;
  try {
    engine.reset_prefix_cache();
    ADD_FAILURE() << "it could not be noted on disk";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
  }
  EXPECT_EQ(disk->resets, 2u);
}

TEST_P(PrefixCaching, SaysALineEachHundredBlocks) {
  Engine engine(null_executor(), nullptr, cached());
  for (int i = 0; i < 10; ++i) answer(engine, numbered_prompt(3, 320), 1);  // twenty blocks each
  // Of each but the first 19 blocks and a part of the twentieth, which is copied.
  const std::vector<std::string> lines = engine.take_log_lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0], "[HIT CNT] total: 100, gpu: 76 (76.00%) cpu: 0 (0.00%) not hit: 24 (24.00%)");
  EXPECT_EQ(lines[1], "[HIT CNT] total: 200, gpu: 171 (85.50%) cpu: 0 (0.00%) not hit: 29 (14.50%)");
  EXPECT_TRUE(engine.take_log_lines().empty());
}

// The product's own example, with steps so slow that blocks are worth fetching.
TEST_P(PrefixCaching, ElevenPrefixesOverAHundredBlocks) {
  for (int64_t host_blocks : {0, 300}) {
    auto executor = null_executor(100, 2e-3, 2048, -1, host_blocks);
    Engine engine(std::move(executor), nullptr, cached(host_blocks));
    for (int i = 0; i < 11; ++i) answer(engine, numbered_prompt(37 * i, 160), 1);
    // Stores go on while nothing runs.
    EXPECT_TRUE(becomes([&] { return engine.cache_report(0).stats.transfers == 0; }));
    EXPECT_EQ(answer(engine, numbered_prompt(0, 161), 1).cached, host_blocks > 0 ? 160 : 0);
  }
}

// Requests that come while one waits for its blocks are served to their end.
TEST_P(PrefixCaching, NobodyWaitsForAnothersLoad) {
  auto executor = null_executor(100, 1e-3, 2048, -1, 300);
  NullTransfers& transfers = executor->transfers();
  EngineConfig config = cached(300);
  config.prefix_caching.lazy = false;
  Engine engine(std::move(executor), nullptr, config);
  for (int i = 0; i < 11; ++i) answer(engine, numbered_prompt(37 * i, 160), 1);
  EXPECT_TRUE(becomes([&] { return engine.cache_report(0).stats.transfers == 0; }));
  transfers.hold();
  const RequestId waits = engine.submit(numbered_prompt(0, 161), greedy(5));
  EXPECT_EQ(answer(engine, numbered_prompt(500, 40), 60).tokens.size(), 60u);
  EXPECT_EQ(engine.stats().waiting, 1);
  EXPECT_EQ(engine.stats().prefix_cache.fetches, 1);

  // Now nothing can run. The thread sleeps, and still listens.
  timespec before, after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  EXPECT_LT(static_cast<double>(after.tv_sec - before.tv_sec) +
                1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec),
            0.1);
  const RequestId second = engine.submit(numbered_prompt(37, 161), greedy(5));
  engine.abort(second);
  Streams streams;
  while (streams[{second, 0}].finish_reason == FinishReason::kNone)
    add_outputs(streams, engine.poll(std::chrono::seconds(1)));
  EXPECT_EQ((streams[{second, 0}].finish_reason), FinishReason::kAbort);

  transfers.release();
  while (streams[{waits, 0}].finish_reason == FinishReason::kNone)
    add_outputs(streams, engine.poll(std::chrono::seconds(1)));
  EXPECT_EQ((streams[{waits, 0}].tokens), oracle(numbered_prompt(0, 161), 5));
}

TEST_P(PrefixCaching, ShutsDownWhileBlocksAreOnTheirWay) {
  auto executor = null_executor(60, 0, 2048, -1, 300);
  NullTransfers& transfers = executor->transfers();
  Engine engine(std::move(executor), nullptr, cached(300));
  transfers.hold();
  for (int i = 0; i < 8; ++i) answer(engine, numbered_prompt(37 * i, 160), 1);
  engine.submit(numbered_prompt(0, 161), greedy(500));
  engine.shutdown();
}

// Conversations, shared prefixes and newcomers over a small pool, with aborts, several sequences, drafts and
// transfers that take their time.
void converse(int max_in_flight, int block_size, uint32_t seed, bool drafts) {
  std::mt19937 random(seed);
  auto executor = std::make_unique<NullExecutor>(kVocab, 700, block_size, 1600 / block_size, 0.0, -1,
                                                 max_in_flight, 3200 / block_size);
  executor->set_thorough(true);
  executor->set_random_delays(1e-4, seed);
  executor->transfers().set_delay(2e-3);
  EngineConfig config = cached(3200 / block_size);
  config.priority_scheduling = seed % 2 == 0;
  config.enable_chunked_prefill = seed % 3 != 0;
  config.max_num_batched_tokens = config.enable_chunked_prefill ? 128 : 700;
  if (drafts) {
    auto truth = [](std::span<const int32_t> prompt, int position) {
      return NullExecutor::token_at(prompt, position, kVocab);
    };
    config.speculation.method = SpeculationMethod::kNgram;
    config.speculation.cost_model = false;
    config.drafter = std::make_shared<RandomTreeDrafter<decltype(truth)>>(kVocab, seed, truth);
  }
  Engine engine(std::move(executor), nullptr, config);
  struct Submitted {
    std::vector<int32_t> prompt;
    bool aborted = false;
  };
  std::map<RequestId, Submitted> all;
  Streams streams;
  int finished = 0;
  const int kRequests = 150;
  while (finished < kRequests) {
    while (std::ssize(all) < kRequests && std::ssize(all) - finished < 24) {
      std::vector<int32_t> prompt;
      const auto kind = random() % 3;
      if (kind == 0 && !all.empty()) {
        auto at = std::next(all.begin(), static_cast<long>(random() % all.size()));
        prompt = at->second.prompt;
        const std::vector<int32_t>& said = streams[{at->first, 0}].tokens;
        prompt.insert(prompt.end(), said.begin(), said.end());
      } else if (kind == 1) {
        prompt = numbered_prompt(static_cast<int>(random() % 3), static_cast<int>(1 + random() % 300));
      }
      for (auto more = 1 + random() % 40; more > 0; --more)
        prompt.push_back(static_cast<int32_t>(random() % kVocab));
      if (prompt.size() > 600) prompt.resize(600);
      if (random() % 4 == 0 && std::ssize(prompt) > block_size)
        prompt.resize(prompt.size() / static_cast<size_t>(block_size) * static_cast<size_t>(block_size));
      SamplingParams params = several(static_cast<int>(1 + random() % 60), random() % 8 == 0 ? 3 : 1);
      if (random() % 10 == 0) params.prompt_logprobs = 1;
      const RequestId id = engine.submit(prompt, params, static_cast<int>(random() % 3));
      all[id].prompt = std::move(prompt);
      if (random() % 8 == 0) {
        auto victim = std::next(all.begin(), static_cast<long>(random() % all.size()));
        victim->second.aborted = true;
        engine.abort(victim->first);
      }
      if (random() % 60 == 0) engine.reset_prefix_cache();
    }
    finished += add_outputs(streams, engine.poll(std::chrono::seconds(20)));
    ASSERT_FALSE(engine.stats().dead) << engine.stats().death_reason;
  }
  for (const auto& [key, stream] : streams) {
    const Submitted& request = all[key.first];
    EXPECT_EQ(stream.tokens, oracle(request.prompt, static_cast<int>(stream.tokens.size())));
    if (!request.aborted) {
      EXPECT_EQ(stream.finish_reason, FinishReason::kLength);
    }
  }
  const EngineStats stats = engine.stats();
  EXPECT_GT(stats.prefix_cache.tokens_hit[0], 0u);
  EXPECT_GT(stats.prefix_cache.stored + stats.prefix_cache.stored_by_steps, 0u);
}

TEST_P(PrefixCaching, ConversationsAreAsWithoutIt) {
  for (int block_size : {8, 16, 32}) {
    for (uint32_t seed = 0; seed < 6; ++seed) {
      SCOPED_TRACE(testing::Message() << block_size << " " << seed);
      converse(GetParam(), block_size, seed, seed % 2 == 1);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace taco
