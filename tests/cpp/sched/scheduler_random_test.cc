// Random traffic through a scheduler: whatever happens, every stream is what its prompt and seed say, the
// budgets hold, everybody finishes, and no block is left behind.
#include <algorithm>
#include <random>

#include "fake_model.h"

namespace taco {
namespace {

struct Traffic {
  int prompt_len, max_tokens, best_of, priority, arrival_step;
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
    out.push_back(t);
  }
  std::sort(out.begin(), out.end(), [](auto& a, auto& b) { return a.arrival_step < b.arrival_step; });
  return out;
}

void run_traffic(unsigned seed) {
  std::mt19937 random(seed);
  SchedulerConfig config = random_config(random);
  std::vector<Traffic> traffic = random_traffic(random, config);
  FakeEngine engine(config);
  bool with_aborts = random() % 2 == 0, with_failures = random() % 3 == 0;
  size_t next = 0;
  int step = 0;
  for (; next < traffic.size() || engine.scheduler.has_work(); ++step) {
    // Far more than any schedule needs, even one that recomputes a lot: what is not done by then starves.
    ASSERT_LT(step, 200000) << "no progress";
    for (; next < traffic.size() && traffic[next].arrival_step <= step; ++next) {
      const Traffic& t = traffic[next];
      engine.submit(prompt_of(t.prompt_len, static_cast<int>(next)), t.max_tokens, t.best_of, t.priority);
    }
    if (with_aborts && random() % 20 == 0 && !engine.requests.empty()) {
      Request& request = *engine.requests[random() % engine.requests.size()];
      engine.abort(request);
      ASSERT_EQ(request.num_unfinished, 0);
      check_invariants(engine.scheduler);
    }
    if (!engine.scheduler.has_work()) continue;
    if (with_failures && random() % 10 == 0) {
      engine.scheduler.plan(engine.proposal);
      const StepPlan& plan = engine.scheduler.reserve(engine.proposal);
      check_invariants(engine.scheduler);
      engine.choices.clear();
      if (random() % 2 == 0) engine.model.run(plan, engine.choices);
      engine.scheduler.rollback();
      check_invariants(engine.scheduler);
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
        EXPECT_EQ(seq.finish_reason, FinishReason::kLength);
        generated += static_cast<uint64_t>(seq.output_len());
      }
    }
    EXPECT_EQ(engine.scheduler.num_prompt_tokens(), prompt_tokens);
    EXPECT_EQ(engine.scheduler.num_generation_tokens(), generated);
  }
}

class RandomTraffic : public testing::TestWithParam<unsigned> {};

TEST_P(RandomTraffic, KeepsItsPromises) {
  for (unsigned i = 0; i < 25; ++i) {
    SCOPED_TRACE(testing::Message() << "seed " << GetParam() * 25 + i);
    run_traffic(GetParam() * 25 + i);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomTraffic, testing::Range(0u, 8u));

// The same requests with room for all and with room for few: the streams are the same, token by token.
TEST(Preemption, ChangesNoStream) {
  for (int64_t num_blocks : {2000, 40, 26, 25}) {
    SchedulerConfig config;
    config.max_num_batched_tokens = 64;
    config.max_num_seqs = 32;
    config.block_size = 4;
    config.max_model_len = 100;
    config.num_blocks = num_blocks;
    FakeEngine engine(config);
    for (int i = 0; i < 40; ++i) engine.submit(prompt_of(1 + (i * 7) % 50, i), 50, 1 + i % 3);
    engine.run_to_end();
    engine.check_streams();
    EXPECT_EQ(engine.scheduler.num_preemptions() > 0, num_blocks < 2000);
    for (const auto& request : engine.requests) {
      for (const SeqState& seq : request->sequences) EXPECT_EQ(seq.output_len(), 50);
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
