// Random conversations through a scheduler with a prefix cache, over pools that are too small, with tiers
// whose transfers come late: every stream is what its prompt and seed say, all invariants hold after each
// step, everybody finishes.
#include <cmath>
#include <cstdlib>
#include <random>

#include "fake_model.h"

namespace taco {
namespace {

struct Seen {  // over many runs
  uint64_t cached = 0, preemptions = 0, fetches = 0, stored_by_steps = 0, exchanged = 0, waited_for = 0;
  int stuck = 0, ahead = 0;
};

SchedulerConfig random_config(std::mt19937& random) {
  auto pick = [&](std::initializer_list<int> values) { return values.begin()[random() % values.size()]; };
  SchedulerConfig c;
  c.max_num_seqs = pick({1, 2, 4, 8, 16});
  c.max_num_batched_tokens = std::max(c.max_num_seqs, pick({16, 33, 128, 1000}));
  c.enable_chunked_prefill = random() % 4 != 0;
  c.priority_scheduling = random() % 3 == 0;
  c.block_size = pick({1, 4, 8, 16, 32});
  c.num_blocks = std::max(pick({60, 100, 300, 1000}) / c.block_size, 2) + 1;
  c.watermark = pick({0, 1, 10}) / 100.0;
  c.max_model_len = pick({50, 90, 400});
  c.preemption_mode = random() % 3 == 0 ? PreemptionMode::kSwap : PreemptionMode::kAuto;
  c.num_swap_blocks = pick({0, 20, 400}) / c.block_size;
  PrefixCacheConfig& p = c.prefix_cache.emplace();
  p.block_size = c.block_size;
  p.block_bytes = 1 << 20;
  p.first_host_block = c.num_swap_blocks;
  p.num_host_blocks = pick({0, 40, 100, 2000}) / c.block_size;
  p.num_disk_blocks = p.num_host_blocks > 0 ? pick({0, 0, 300}) / c.block_size : 0;
  p.min_accesses = pick({1, 1, 2});
  p.max_idle_blocks = random() % 4 == 0 ? c.num_blocks / 3 : -1;
  p.lazy = random() % 2 == 0;
  c.min_shared_tokens = static_cast<int>(1 + random() % 40);
  return c;
}

// A conversation that goes on, a prefix that many share, or something new. At block boundaries now and then.
std::vector<int32_t> random_prompt(std::mt19937& random, const FakeEngine& engine, int64_t longest) {
  std::vector<int32_t> prompt;
  switch (random() % 3) {
    case 0:
      if (!engine.requests.empty())
        prompt = engine.requests[random() % engine.requests.size()]->sequences.front().tokens;
      if (!prompt.empty() && prompt.back() == kPendingToken) prompt.pop_back();
      break;
    case 1:
      prompt = prompt_of(static_cast<int>(1 + random() % 60), static_cast<int>(random() % 3));
      break;
    default:
      break;
  }
  const int more = static_cast<int>(random() % 12);
  for (int i = 0; i < more || prompt.empty(); ++i)
    prompt.push_back(static_cast<int32_t>(random() % kFakeVocab));
  const auto bs = static_cast<size_t>(engine.scheduler.config().block_size);
  if (random() % 4 == 0 && prompt.size() > bs) prompt.resize(prompt.size() / bs * bs + random() % 2);
  if (std::ssize(prompt) > longest) prompt.resize(static_cast<size_t>(longest));
  return prompt;
}

void fail_a_step(FakeEngine& engine) {
  Scheduler& scheduler = engine.scheduler;
  if (scheduler.num_in_flight() > 0) return engine.complete_oldest();
  engine.plan_next();
  if (engine.proposal.empty()) return;
  scheduler.reserve(engine.proposal);
  check_invariants(scheduler);
  scheduler.rollback();
  check_invariants(scheduler);
}

void run_traffic(unsigned seed, int steps, Seen& seen) {
  std::mt19937 random(seed);
  const SchedulerConfig config = random_config(random);
  FakeEngine engine(config, seed % 2 == 1);
  NullTransfers& transfers = engine.model.transfers();
  transfers.set_delay_calls(static_cast<int>(random() % 3 == 0 ? 0 : random() % 20));
  if (random() % 3 == 0) transfers.set_read_failures(0.3);
  engine.stop_below = random() % 2 == 0 ? 3 : 0;
  const bool with_aborts = random() % 2 == 0, with_failures = random() % 3 == 0,
             with_resets = random() % 8 == 0;
  // From "fetching is always worth it" to "never".
  const double token_seconds = std::pow(10.0, -static_cast<double>(random() % 8));
  int64_t longest = std::min<int64_t>(config.max_model_len, config.num_blocks * config.block_size);
  if (!config.enable_chunked_prefill) longest = std::min<int64_t>(longest, config.max_num_batched_tokens);
  for (int step = 0; step < steps; ++step) {
    while (random() % 3 == 0 && engine.scheduler.num_requests() < 30) {
      auto params = std::make_shared<SamplingParams>();
      params->max_tokens = 1 + static_cast<int>(random() % 40);
      if (random() % 6 == 0)
        params->n = params->best_of =
            1 + static_cast<int>(random() % static_cast<unsigned>(config.max_num_seqs));
      if (random() % 16 == 0) params->presence_penalty = 1.0f;
      if (random() % 16 == 0) params->prompt_logprobs = 1;
      Request& request =
          engine.submit(random_prompt(random, engine, longest), params, static_cast<int>(random() % 3));
      request.cache_root.bytes[0] = random() % 8 == 0;
    }
    if (with_aborts && random() % 20 == 0 && !engine.requests.empty()) {
      engine.abort(*engine.requests[engine.requests.size() - 1 -
                                    random() % std::min<size_t>(engine.requests.size(), 30)]);
      check_invariants(engine.scheduler);
    }
    if (with_resets && random() % 200 == 0) {
      engine.scheduler.prefix_cache()->reset();
      check_invariants(engine.scheduler);
    }
    engine.scheduler.prefix_cache()->measured_prefill(1000, 1000 * token_seconds);
    if (!engine.has_work()) {
      engine.take_transfers();
      engine.begin_transfers();
      continue;
    }
    if (with_failures && random() % 10 == 0) {
      ASSERT_NO_FATAL_FAILURE(fail_a_step(engine));
      continue;
    }
    ASSERT_NO_FATAL_FAILURE(engine.step());
    if (engine.proposal.empty()) continue;
    seen.waited_for += engine.plan->wait_for.size();
    ASSERT_LE(engine.plan->num_tokens, config.max_num_batched_tokens);
    ASSERT_LE(engine.scheduler.num_slots(), config.max_num_seqs);
  }
  ASSERT_NO_FATAL_FAILURE(engine.run_to_end());
  engine.check_streams();
  uint64_t prompts = 0, cached = 0;
  for (const auto& request : engine.requests) {
    prompts += static_cast<uint64_t>(request->prompt_len);
    cached += static_cast<uint64_t>(request->num_cached_tokens);
  }
  if (!with_aborts) {
    EXPECT_EQ(engine.scheduler.num_prompt_tokens(), prompts);
    // Who was preempted may find more the second time.
    EXPECT_LE(engine.scheduler.num_prompt_tokens_computed(), prompts - cached);
  }
  const PrefixCacheStats stats = engine.scheduler.prefix_cache()->stats();
  seen.cached += cached;
  seen.preemptions += engine.scheduler.num_preemptions();
  seen.fetches += stats.fetches_started;
  seen.stored_by_steps += stats.stored_by_steps;
  seen.exchanged += stats.exchanged;
  seen.stuck += engine.num_stuck;
  seen.ahead += engine.num_ahead;
}

class RandomConversations : public testing::TestWithParam<unsigned> {};

TEST_P(RandomConversations, KeepTheirPromises) {
  Seen seen;
  const unsigned runs = std::getenv("TACO_LONG_TESTS") ? 2400 : 24;
  for (unsigned i = 0; i < runs; ++i) {
    const unsigned seed = GetParam() * runs + i;
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    try {
      run_traffic(seed, 250, seen);
    } catch (const std::exception& error) {
      FAIL() << error.what();
    }
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(seen.cached, 1000u);
  EXPECT_GT(seen.preemptions, 0u);
  EXPECT_GT(seen.fetches, 0u);
  EXPECT_GT(seen.stored_by_steps, 0u);
  EXPECT_GT(seen.exchanged, 0u);
  EXPECT_GT(seen.waited_for, 0u);
  EXPECT_GT(seen.stuck, 0);
  EXPECT_GT(seen.ahead, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomConversations, testing::Range(0u, 8u));

}  // namespace
}  // namespace taco
