// The scheduler with a prefix cache: what is found need not be computed, and nothing else changes.
#include "fake_model.h"

namespace taco {
namespace {

struct Setting {
  int block_size = 4;
  int64_t num_blocks = 100;
  int64_t num_host_blocks = 0;
};

SchedulerConfig cached(const Setting& setting) {
  SchedulerConfig c;
  c.max_num_batched_tokens = 256;
  c.max_num_seqs = 8;
  c.block_size = setting.block_size;
  c.num_blocks = setting.num_blocks;
  c.max_model_len = 400;
  c.watermark = 0;
  PrefixCacheConfig& prefix = c.prefix_cache.emplace();
  prefix.block_size = setting.block_size;
  prefix.block_bytes = 1000;
  prefix.num_host_blocks = setting.num_host_blocks;
  return c;
}

std::vector<int32_t> conversation(const Request& request) { return request.sequences.front().tokens; }

// Computes a request to its end and returns the rows that it took.
uint64_t rows_of(FakeEngine& engine, std::vector<int32_t> prompt, int max_tokens = 1, int best_of = 1) {
  const uint64_t before = engine.num_rows;
  engine.submit(std::move(prompt), max_tokens, best_of);
  engine.run_to_end();
  engine.check_streams();
  return engine.num_rows - before;
}

TEST(PrefixCache, TheSecondRequestComputesOnlyItsLastToken) {
  for (int length : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100}) {
    SCOPED_TRACE(length);
    FakeEngine engine(cached({}));
    EXPECT_EQ(rows_of(engine, prompt_of(length)), static_cast<uint64_t>(length));
    // Full blocks are shared, the last one of them but for its last token.
    const int32_t found = length % 4 == 0 ? length - 1 : length / 4 * 4;
    EXPECT_EQ(rows_of(engine, prompt_of(length)), static_cast<uint64_t>(length - found));
    EXPECT_EQ(engine.requests[0]->num_cached_tokens, 0);
    EXPECT_EQ(engine.requests[1]->num_cached_tokens, found);
    EXPECT_EQ(engine.scheduler.num_prompt_tokens(), static_cast<uint64_t>(2 * length));
    EXPECT_EQ(engine.scheduler.num_prompt_tokens_computed(), static_cast<uint64_t>(2 * length - found));
  }
}

TEST(PrefixCache, ATurnOfAConversationFindsPromptAndOutputOfTheTurnsBefore) {
  FakeEngine engine(cached({}));
  std::vector<int32_t> history = prompt_of(10);
  int32_t expected = 0;
  for (int turn = 0; turn < 5; ++turn) {
    Request& request = engine.submit(history, 9);
    engine.run_to_end();
    engine.check_streams();
    EXPECT_EQ(request.num_cached_tokens, expected);
    history = conversation(request);
    // The last token was sampled and never computed.
    expected = (static_cast<int32_t>(history.size()) - 1) / 4 * 4;
    for (int i = 0; i < 6; ++i) history.push_back((turn + i) % kFakeVocab);
  }
}

TEST(PrefixCache, PartOfABlockIsSharedByCopy) {
  FakeEngine engine(cached({}));
  rows_of(engine, prompt_of(12));
  std::vector<int32_t> other = prompt_of(12);
  other[10] = 96;
  other[11] = 95;
  EXPECT_EQ(rows_of(engine, other), 2u);  // two of the third block are the same
  EXPECT_EQ(engine.requests[1]->num_cached_tokens, 10);
  EXPECT_EQ(rows_of(engine, prompt_of(12)), 1u);
  EXPECT_EQ(rows_of(engine, other), 1u);
}

TEST(PrefixCache, RunningRequestsShareBlocks) {
  FakeEngine engine(cached({}));
  engine.submit(prompt_of(41), 20);
  engine.step();
  for (int i = 0; i < 5; ++i) engine.submit(prompt_of(41), 20);
  engine.step();
  // Ten blocks in common, and one or two of each one's own.
  EXPECT_LE(engine.scheduler.pool().num_used(), 10 + 6 * 2);
  EXPECT_EQ(engine.scheduler.running().size(), 6u);
  engine.run_to_end();
  engine.check_streams();
}

// Requests that come together compute what they have in common once; others do not wait for that.
TEST(PrefixCache, WhatIsBeingComputedIsWaitedFor) {
  for (bool runs_ahead : {false, true}) {
    for (int budget : {256, 32}) {
      SchedulerConfig config = cached({});
      config.max_num_batched_tokens = budget;
      config.min_shared_tokens = 16;
      FakeEngine engine(config, runs_ahead);
      for (int i = 0; i < 5; ++i) {
        std::vector<int32_t> prompt = prompt_of(40);
        for (int k = 0; k < 5; ++k) prompt.push_back((7 * i + k + 1) % kFakeVocab);
        engine.submit(prompt, 1);
      }
      std::vector<int32_t> unrelated(10, 3);
      Request& other = engine.submit(unrelated, 1);
      engine.step();
      if (budget == 256) EXPECT_GE(other.sequences.front().num_computed, 10);
      engine.run_to_end();
      engine.check_streams();
      // In steps of 32 rows the last 8 tokens in common are not worth another step.
      const int32_t found = budget == 256 ? 40 : 32;
      EXPECT_LE(engine.num_rows, 45u + 4 * (45 - static_cast<uint64_t>(found)) + 10);
      for (int i = 1; i < 5; ++i)
        EXPECT_GE(engine.requests[static_cast<size_t>(i)]->num_cached_tokens, found);
    }
  }
}

TEST(PrefixCache, WhoeverIsWaitedForMayEnd) {
  for (bool runs_ahead : {false, true}) {
    SchedulerConfig config = cached({});
    config.max_num_batched_tokens = 16;
    config.min_shared_tokens = 16;
    FakeEngine engine(config, runs_ahead);
    Request& first = engine.submit(prompt_of(100), 5);
    Request& second = engine.submit(prompt_of(100), 5);
    engine.step();
    engine.step();
    EXPECT_EQ(second.sequences.front().num_computed, 0);
    engine.abort(first);
    engine.run_to_end();
    engine.check_streams();
    EXPECT_EQ(second.num_cached_tokens, 32);
  }
}

TEST(PrefixCache, DifferentRootsShareNothing) {
  FakeEngine engine(cached({}));
  rows_of(engine, prompt_of(40));
  Request& request = engine.submit(prompt_of(40), 1);
  request.cache_root.bytes[31] = 1;
  engine.run_to_end();
  EXPECT_EQ(request.num_cached_tokens, 0);
}

TEST(PrefixCache, PromptLogprobsAreComputedAndTheBlocksPublished) {
  FakeEngine engine(cached({}));
  auto params = std::make_shared<SamplingParams>();
  params->max_tokens = 1;
  params->prompt_logprobs = 1;
  for (int i = 0; i < 2; ++i) {
    const uint64_t before = engine.num_rows;
    Request& request = engine.submit(prompt_of(40), params);
    engine.run_to_end();
    EXPECT_EQ(engine.num_rows - before, 40u);
    EXPECT_EQ(request.num_cached_tokens, 0);
  }
  EXPECT_EQ(rows_of(engine, prompt_of(40)), 1u);
}

TEST(PrefixCache, SeveralSequencesOfARequest) {
  FakeEngine engine(cached({}));
  EXPECT_EQ(rows_of(engine, prompt_of(30), 1, 4), 30u);
  engine.submit(prompt_of(30), 20, 4);
  engine.submit(prompt_of(30), 20, 3);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(engine.requests[1]->num_cached_tokens, 28);
  EXPECT_EQ(engine.requests[2]->num_cached_tokens, 28);
}

// What has been committed outlives the request, but not what its last step computed.
TEST(PrefixCache, AnAbortedRequestLeavesWhatWasCommitted) {
  SchedulerConfig config = cached({});
  config.max_num_batched_tokens = 16;
  for (bool runs_ahead : {false, true}) {
    FakeEngine engine(config, runs_ahead);
    Request& request = engine.submit(prompt_of(100), 5);
    engine.step();
    engine.step();
    const int32_t committed = request.sequences.front().num_committed;
    EXPECT_EQ(committed, 32);
    engine.abort(request);
    engine.run_to_end();
    Request& second = engine.submit(prompt_of(100), 5);
    engine.run_to_end();
    engine.check_streams();
    EXPECT_EQ(second.num_cached_tokens, committed);
  }
}

TEST(PrefixCache, AFailedSequencePublishesNothingOfItsLastStep) {
  FakeEngine engine(cached({}));
  Request& request = engine.submit(prompt_of(40), 5);
  engine.scheduler.plan(engine.proposal);
  engine.submit_proposal();
  engine.results.front().front().failed = true;
  engine.scheduler.commit(engine.results.front(), engine.sampled);
  engine.results.pop_front();
  engine.scheduler.finish(request.sequences.front(), FinishReason::kError);
  EXPECT_EQ(rows_of(engine, prompt_of(40)), 40u);
}

TEST(PrefixCache, APreemptedRequestFindsItsBlocksAgain) {
  // Two requests that grow until one must go; afterwards the other leaves enough blocks alone.
  FakeEngine engine(cached({.num_blocks = 20}));
  engine.submit(prompt_of(30, 1), 12);
  engine.submit(prompt_of(30, 2), 30);
  engine.run_to_end();
  engine.check_streams();
  ASSERT_GT(engine.scheduler.num_preemptions(), 0u);
  // Each token once, and a little of what was recomputed: far from the thirty and more of a whole sequence.
  EXPECT_LT(engine.num_rows, 30u + 11 + 30 + 29 + 8);
}

TEST(PrefixCache, ExplicitSwapStillSwaps) {
  SchedulerConfig config = cached({.num_blocks = 20});
  config.preemption_mode = PreemptionMode::kSwap;
  config.num_swap_blocks = 50;
  config.prefix_cache->first_host_block = 50;
  config.prefix_cache->num_host_blocks = 50;
  FakeEngine engine(config);
  engine.submit(prompt_of(30, 1), 30);
  engine.submit(prompt_of(30, 2), 30);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_GT(engine.num_swapped_in, 0u);
}

TEST(PrefixCache, ASequenceOfTheWholePoolIsAdmitted) {
  // All blocks are idle, and the tail would take one more than there are.
  FakeEngine engine(cached({.num_blocks = 10}));
  rows_of(engine, prompt_of(39));
  Request& request = engine.submit(prompt_of(40), 1);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(request.num_cached_tokens, 36);
  Request& again = engine.submit(prompt_of(40), 1);
  engine.run_to_end();
  EXPECT_EQ(again.num_cached_tokens, 36);
}

TEST(PrefixCache, ABlockThatAnAdmissionFindsIsNotTakenByTheSameStep) {
  // The first of the running ones takes a block in the very step that admits a request whose prefix is idle.
  FakeEngine engine(cached({.num_blocks = 12}));
  rows_of(engine, prompt_of(32, 50));  // eight idle blocks
  engine.submit(prompt_of(8, 1), 10);  // two, and one more at its first step
  engine.step();
  Request& request = engine.submit(prompt_of(33, 50), 1);  // nine, eight of them cached
  engine.run_to_end();
  engine.check_streams();
  EXPECT_GT(request.num_cached_tokens, 0);
}

TEST(PrefixCache, WithoutChunkingTheRestOfAPromptCounts) {
  SchedulerConfig config = cached({.num_blocks = 200});
  config.enable_chunked_prefill = false;
  config.max_num_batched_tokens = 64;
  FakeEngine engine(config);
  rows_of(engine, prompt_of(60));
  for (int i = 0; i < 8; ++i) engine.submit(prompt_of(61), 3);
  engine.step();
  // Eight whole prompts of sixty-one tokens fit, because hardly anything of them is left to compute.
  EXPECT_EQ(engine.scheduler.running().size(), 8u);
  engine.run_to_end();
  engine.check_streams();
}

TEST(PrefixCache, ARolledBackAdmissionHoldsNothing) {
  FakeEngine engine(cached({.num_blocks = 20}));
  rows_of(engine, prompt_of(40));
  Request& request = engine.submit(prompt_of(42), 2);
  engine.scheduler.plan(engine.proposal);
  engine.scheduler.reserve(engine.proposal);
  engine.scheduler.rollback();
  check_invariants(engine.scheduler);
  EXPECT_EQ(engine.scheduler.pool().num_used(), 0);
  EXPECT_EQ(request.sequences.front().num_computed, 0);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(request.num_cached_tokens, 40);
}

TEST(PrefixCache, ResetForgetsAndHurtsNobody) {
  FakeEngine engine(cached({}));
  engine.submit(prompt_of(40), 30);
  for (int i = 0; i < 10; ++i) engine.step();
  engine.scheduler.prefix_cache()->reset();
  check_invariants(engine.scheduler);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(rows_of(engine, prompt_of(40)), 40u);
}

// The order of the product's own example: 11 prefixes of 10 blocks over a cache of 100, then the first again.
uint64_t rows_of_the_first_again(int64_t num_host_blocks) {
  FakeEngine engine(cached({.num_blocks = 100, .num_host_blocks = num_host_blocks}));
  for (int i = 0; i < 11; ++i) rows_of(engine, prompt_of(40, 3 * i));
  engine.scheduler.prefix_cache()->measured_prefill(1000, 1000);  // slow enough that a fetch is worth it
  return rows_of(engine, prompt_of(41));
}

TEST(PrefixCacheTiers, ElevenPrefixesOverAHundredBlocks) {
  EXPECT_EQ(rows_of_the_first_again(0), 41u);
  EXPECT_EQ(rows_of_the_first_again(200), 1u);
}

// Fills the device so that the first prompt is on the host only.
void push_out(FakeEngine& engine, int prompts) {
  for (int i = 0; i < prompts; ++i) rows_of(engine, prompt_of(40, 1 + i));
  engine.scheduler.prefix_cache()->measured_prefill(1000, 1000);
}

// A request whose fetch has begun, and does not end.
Request& hold_its_load(FakeEngine& engine, std::vector<int32_t> prompt) {
  Request& request = engine.submit(std::move(prompt), 1);
  for (int i = 0; i < 10 && request.sequences.front().fetch.state != FetchState::kOpen; ++i) engine.step();
  EXPECT_EQ(request.sequences.front().fetch.state, FetchState::kOpen);
  engine.model.transfers().hold();
  return request;
}

TEST(PrefixCacheTiers, NobodyWaitsForAnothersLoad) {
  SchedulerConfig config = cached({.num_blocks = 30, .num_host_blocks = 100});
  config.prefix_cache->lazy = false;
  FakeEngine engine(config);
  rows_of(engine, prompt_of(41));
  push_out(engine, 6);
  Request& loads = hold_its_load(engine, prompt_of(41));
  Request& goes = engine.submit(prompt_of(9, 60), 15);
  for (int i = 0; i < 15; ++i) {
    engine.step();
    ASSERT_EQ(goes.sequences.front().output_len(), i + 1);  // a token in every step
  }
  EXPECT_EQ(loads.sequences.front().fetch.state, FetchState::kOpen);
  EXPECT_EQ(loads.sequences.front().status, SeqStatus::kWaiting);
  engine.model.transfers().release();
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(loads.num_cached_tokens, 40);
}

TEST(PrefixCacheTiers, AnAbortedFetchLeavesNothingBehind) {
  FakeEngine engine(cached({.num_blocks = 30, .num_host_blocks = 100}));
  rows_of(engine, prompt_of(41));
  push_out(engine, 6);
  Request& loads = hold_its_load(engine, prompt_of(41));
  engine.abort(loads);
  EXPECT_FALSE(engine.has_work());
  engine.model.transfers().release();
  engine.run_to_end();
}

// With a load nearly done, the step waits for the rest of it.
TEST(PrefixCacheTiers, ALoadThatIsNearlyDoneIsWaitedForInTheStep) {
  for (bool lazy : {false, true}) {
    SchedulerConfig config = cached({.num_blocks = 30, .num_host_blocks = 100});
    config.prefix_cache->lazy = lazy;
    FakeEngine engine(config);
    rows_of(engine, prompt_of(41));
    push_out(engine, 6);  // computing takes a second for each token
    Request& request = hold_its_load(engine, prompt_of(50));
    for (int i = 0; i < 20 && !request.num_cached_tokens; ++i) engine.step();
    EXPECT_EQ(request.num_cached_tokens, lazy ? 40 : 0);
    if (lazy) {
      EXPECT_FALSE(engine.plan->wait_for.empty());
    }
    engine.model.transfers().release();
    engine.run_to_end();
    engine.check_streams();
    EXPECT_EQ(request.num_cached_tokens, 40);
  }
}

// More than are brought back at once: the others wait for their turn, however long, and compute nothing
// twice.
TEST(PrefixCacheTiers, ManyFetchesTakeTurns) {
  SchedulerConfig config = cached({.num_blocks = 400, .num_host_blocks = 1000});
  config.max_num_seqs = 32;
  config.prefix_cache->lazy = false;
  FakeEngine engine(config);
  engine.step_seconds = 0.02;
  engine.model.transfers().set_delay_calls(4);
  for (int i = 0; i < 30; ++i) rows_of(engine, prompt_of(41, i));
  for (int i = 0; i < 15; ++i) rows_of(engine, prompt_of(160, 40 + i));
  engine.scheduler.prefix_cache()->measured_prefill(1000, 1000);
  for (int i = 0; i < 30; ++i) engine.submit(prompt_of(41, i), 1);
  engine.run_to_end();
  engine.check_streams();
  int found = 0;
  for (size_t i = 45; i < engine.requests.size(); ++i) found += engine.requests[i]->num_cached_tokens == 40;
  EXPECT_GE(found, 28);
  EXPECT_GT(engine.scheduler.prefix_cache()->stats().fetches_started, 20u);
}

TEST(PrefixCacheTiers, AllWaitForFetchesInASmallPool) {
  for (int delay : {0, 1, 5, 20, 23}) {  // the pool has room for two of them, or for three
    SchedulerConfig config = cached({.num_blocks = delay == 23 ? 24 : 40, .num_host_blocks = 300});
    FakeEngine engine(config);
    engine.model.transfers().set_delay_calls(delay);
    for (int i = 0; i < 12; ++i) rows_of(engine, prompt_of(45, 5 * i));
    engine.scheduler.prefix_cache()->measured_prefill(1000, 1000);
    const uint64_t before = engine.num_rows;
    const uint64_t begun = engine.scheduler.prefix_cache()->stats().fetches_started;
    for (int i = 0; i < 12; ++i) engine.submit(prompt_of(46, 5 * i), 6);
    engine.run_to_end();
    engine.check_streams();
    EXPECT_GE(engine.scheduler.prefix_cache()->stats().fetches_started - begun, 9u);
    // Of 612 without a cache; some are preempted, and find less the second time.
    if (delay != 23) EXPECT_LT(engine.num_rows - before, 400u) << "what was fetched was of no use";
  }
}

TEST(HitLine, IsWhatOperatorsKnow) {
  EXPECT_EQ(hit_line({177800, 21944, 66166}),
            "[HIT CNT] total: 177800, gpu: 21944 (12.34%) cpu: 66166 (37.21%) not hit: 89690 (50.44%)");
  HitCounter counter;
  counter.count(1000, 0, 0);
  EXPECT_TRUE(counter.lines().empty());
  counter.set_logging(true);
  counter.count(150, 20, 90);
  counter.count(60, 0, 0);
  ASSERT_EQ(counter.lines().size(), 2u);
  EXPECT_EQ(counter.lines()[0],
            "[HIT CNT] total: 1100, gpu: 20 (1.82%) cpu: 80 (7.27%) not hit: 1000 (90.91%)");
  EXPECT_EQ(counter.lines()[1],
            "[HIT CNT] total: 1200, gpu: 20 (1.67%) cpu: 90 (7.50%) not hit: 1090 (90.83%)");
}

}  // namespace
}  // namespace taco
