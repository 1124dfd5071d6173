// Random traffic through a scheduler: whatever happens, every stream is what its prompt and seed say, the
// budgets hold, everybody finishes, and no block is left behind.
#include <algorithm>
#include <random>

#include "fake_model.h"

namespace taco {
namespace {

struct Traffic {
  int prompt_len, max_tokens, best_of, priority, arrival_step;
  bool from_history;
};

SchedulerConfig random_config(std::mt19937& random) {
  auto pick = [&](std::initializer_list<int> values) { return values.begin()[random() % values.size()]; };
  SchedulerConfig c;
  c.max_num_seqs = pick({1, 2, 4, 8, 16});
  c.max_num_batched_tokens = std::max(c.max_num_seqs, pick({4, 16, 33, 128, 1000}));
  c.enable_chunked_prefill = random() % 4 != 0;
  c.priority_scheduling = random() % 2 == 0;
  c.block_size = pick({1, 2, 4, 16});
  c.num_blocks = pick({60, 100, 300, 1000}) / c.block_size + 1;
  c.watermark = pick({0, 1, 10}) / 100.0;
  c.max_model_len = pick({50, 90, 400});
  c.num_swap_blocks = pick({0, 0, 20, 400}) / c.block_size;
  c.preemption_mode = random() % 2 == 0 ? PreemptionMode::kAuto : PreemptionMode::kSwap;
  return c;
}

std::vector<Traffic> random_traffic(std::mt19937& random, const SchedulerConfig& c) {
  std::vector<Traffic> out;
  int64_t longest = std::min<int64_t>(c.max_model_len, c.num_blocks * c.block_size);
  if (!c.enable_chunked_prefill) longest = std::min<int64_t>(longest, c.max_num_batched_tokens);
  for (int i = 0; i < 40; ++i) {
    Traffic t;
    int64_t limit = random() % 4 == 0 ? longest : std::min<int64_t>(longest, 20);
    t.prompt_len = 1 + static_cast<int>(random() % static_cast<unsigned>(limit));
    t.max_tokens = 1 + static_cast<int>(random() % 60);
    t.best_of =
        random() % 3 == 0 ? 1 + static_cast<int>(random() % static_cast<unsigned>(c.max_num_seqs)) : 1;
    t.priority = static_cast<int>(random() % 4) - 1;
    t.arrival_step = static_cast<int>(random() % 100);
    t.from_history = random() % 16 == 0;
    out.push_back(t);
  }
  std::sort(out.begin(), out.end(), [](auto& a, auto& b) { return a.arrival_step < b.arrival_step; });
  return out;
}

// A step that never reached the executor, with another in flight or not.
void fail_a_step(FakeEngine& engine, bool compute) {
  Scheduler& scheduler = engine.scheduler;
  bool ahead = scheduler.num_in_flight() > 0;
  if (ahead && (!scheduler.has_work() || scheduler.oldest_needs_its_tokens()))
    return engine.complete_oldest();
  if (ahead) scheduler.advance();
  scheduler.plan(engine.proposal);
  if (!ahead || (!engine.proposal.empty() && engine.proposal.preempt.empty())) {
    const StepPlan& plan = scheduler.reserve(engine.proposal);
    check_invariants(scheduler);
    std::vector<Choice> choices;
    if (compute && !ahead) engine.model.run(plan, choices);
    scheduler.rollback();
    check_invariants(scheduler);
  }
  if (ahead) engine.complete_oldest();
}

struct Seen {  // over many runs
  int ahead = 0;
  size_t swapped_in = 0;
};

void run_traffic(unsigned seed, bool runs_ahead, Seen& seen) {
  std::mt19937 random(seed);
  SchedulerConfig config = random_config(random);
  std::vector<Traffic> traffic = random_traffic(random, config);
  FakeEngine engine(config, runs_ahead);
  bool with_aborts = random() % 2 == 0, with_failures = random() % 3 == 0;
  engine.stop_below = random() % 2 == 0 ? 3 : 0;
  size_t next = 0;
  int step = 0;
  for (; next < traffic.size() || engine.has_work(); ++step) {
    // Far more than any schedule needs, even one that recomputes a lot: what is not done by then starves.
    ASSERT_LT(step, 200000) << "no progress";
    for (; next < traffic.size() && traffic[next].arrival_step <= step; ++next) {
      const Traffic& t = traffic[next];
      auto params = std::make_shared<SamplingParams>();
      params->max_tokens = t.max_tokens;
      params->n = params->best_of = t.best_of;
      if (t.from_history) params->presence_penalty = 1.0f;
      engine.submit(prompt_of(t.prompt_len, static_cast<int>(next)), params, t.priority);
    }
    if (with_aborts && random() % 20 == 0 && !engine.requests.empty()) {
      Request& request = *engine.requests[random() % engine.requests.size()];
      engine.abort(request);
      ASSERT_EQ(request.num_unfinished, 0);
      check_invariants(engine.scheduler);
    }
    if (!engine.has_work()) continue;
    if (with_failures && random() % 10 == 0) {
      ASSERT_NO_FATAL_FAILURE(fail_a_step(engine, random() % 2 == 0));
      continue;
    }
    ASSERT_NO_FATAL_FAILURE(engine.step());
    ASSERT_LE(engine.plan->num_tokens, config.max_num_batched_tokens);
    ASSERT_LE(engine.scheduler.num_slots(), config.max_num_seqs);
    if (!config.enable_chunked_prefill) {
      for (const SeqStep& part : engine.plan->seqs) {
        bool whole = part.start + part.count == part.sequence->prompt_len ||
                     part.start >= part.sequence->prompt_len || !part.samplers.empty() ||
                     part.sequence->len() > config.max_num_batched_tokens;
        ASSERT_TRUE(whole) << "a prompt was cut";
      }
    }
  }
  ASSERT_NO_FATAL_FAILURE(engine.run_to_end());
  engine.check_streams();
  if (!with_aborts) {
    uint64_t prompt_tokens = 0, generated = 0;
    for (const auto& request : engine.requests) {
      prompt_tokens += static_cast<uint64_t>(request->prompt_len);
      for (const SeqState& seq : request->sequences) {
        EXPECT_NE(seq.finish_reason, FinishReason::kAbort);
        generated += static_cast<uint64_t>(seq.output_len());
      }
    }
    EXPECT_EQ(engine.scheduler.num_prompt_tokens(), prompt_tokens);
    EXPECT_EQ(engine.scheduler.num_generation_tokens(), generated);
  }
  seen.ahead += engine.num_ahead;
  seen.swapped_in += engine.num_swapped_in;
}

class RandomTraffic : public testing::TestWithParam<unsigned> {};

TEST_P(RandomTraffic, KeepsItsPromises) {
  Seen seen;
  for (unsigned i = 0; i < 50; ++i) {
    bool runs_ahead = i % 2 == 1;
    SCOPED_TRACE(testing::Message() << "seed " << GetParam() * 25 + i / 2 << ", runs ahead: " << runs_ahead);
    run_traffic(GetParam() * 25 + i / 2, runs_ahead, seen);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(seen.ahead, 0);
  EXPECT_GT(seen.swapped_in, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomTraffic, testing::Range(0u, 8u));

// The same requests with room for all and with room for few: the streams are the same, token by token.
void preempt_a_lot(int64_t num_blocks, int64_t num_swap_blocks, bool runs_ahead) {
  SchedulerConfig config;
  config.max_num_batched_tokens = 64;
  config.max_num_seqs = 32;
  config.block_size = 4;
  config.max_model_len = 100;
  config.num_blocks = num_blocks;
  config.num_swap_blocks = num_swap_blocks;
  config.preemption_mode = PreemptionMode::kSwap;
  FakeEngine engine(config, runs_ahead);
  for (int i = 0; i < 40; ++i) engine.submit(prompt_of(1 + (i * 7) % 50, i), 50, 1 + i % 3);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(engine.scheduler.num_preemptions() > 0, num_blocks < 2000);
  for (const auto& request : engine.requests) {
    for (const SeqState& seq : request->sequences) EXPECT_EQ(seq.output_len(), 50);
  }
  EXPECT_EQ(engine.num_swapped_out > 0, num_swap_blocks > 0 && engine.scheduler.num_preemptions() > 0);
  EXPECT_GE(engine.num_swapped_in, engine.num_swapped_out);
}

TEST(Preemption, ChangesNoStream) {
  for (int64_t num_blocks : {2000, 40, 26, 25}) {
    for (int64_t num_swap_blocks : {0, 17, 1000}) {
      for (bool runs_ahead : {false, true}) {
        SCOPED_TRACE(testing::Message() << num_blocks << " " << num_swap_blocks << " " << runs_ahead);
        preempt_a_lot(num_blocks, num_swap_blocks, runs_ahead);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// First come, first served: requests are first scheduled in the order of their arrival, and while a stream of
// newcomers never ends, the old ones still finish.
TEST(Fairness, OldRequestsFinishUnderAStreamOfNewOnes) {
  SchedulerConfig config;
  config.max_num_batched_tokens = 24;
  config.max_num_seqs = 6;
  config.block_size = 4;
  config.max_model_len = 60;
  config.num_blocks = 30;
  FakeEngine engine(config);
  std::mt19937 random(1);
  std::vector<const Request*> order;
  for (int step = 0; step < 3000; ++step) {
    if (step % 2 == 0) {
      engine.submit(prompt_of(1 + static_cast<int>(random() % 40), step),
                    1 + static_cast<int>(random() % 15));
    }
    if (!engine.scheduler.has_work()) continue;
    ASSERT_NO_FATAL_FAILURE(engine.step());
    for (SeqState* seq : engine.proposal.admit) {
      if (order.empty() || seq->owner->id > order.back()->id) {
        if (!order.empty()) {
          ASSERT_EQ(seq->owner->id, order.back()->id + 1);
        }
        order.push_back(seq->owner);
      }
    }
    // Whoever was admitted long ago has finished.
    if (order.size() > 20) {
      ASSERT_EQ(order[order.size() - 20]->num_unfinished, 0) << "step " << step;
    }
  }
  EXPECT_GT(order.size(), 200u);
  EXPECT_GT(engine.scheduler.num_preemptions(), 0u);
}

}  // namespace
}  // namespace taco
