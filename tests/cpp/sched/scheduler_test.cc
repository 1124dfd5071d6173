#include "sched/scheduler.h"

#include "fake_model.h"

namespace taco {
namespace {

SchedulerConfig config() {
  SchedulerConfig c;
  c.max_num_batched_tokens = 32;
  c.max_num_seqs = 8;
  c.max_model_len = 256;
  c.block_size = 4;
  c.num_blocks = 100;
  c.watermark = 0;
  return c;
}

int32_t count_of(const FakeEngine& engine, const Request& request, int index = 0) {
  for (const Proposal::Item& item : engine.proposal.items) {
    if (item.seq == &request.sequences[static_cast<size_t>(index)]) return item.count;
  }
  return 0;
}

std::string refusal(const SchedulerConfig& c, int64_t prompt_len, int best_of = 1) {
  try {
    Scheduler(c).check_admissible(prompt_len, best_of);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(Scheduler, RefusesWhatCouldNeverRun) {
  SchedulerConfig c = config();
  EXPECT_EQ(refusal(c, 256), "");
  EXPECT_NE(refusal(c, 0).find("empty"), std::string::npos);
  EXPECT_NE(refusal(c, 257).find("max_model_len (256)"), std::string::npos);
  EXPECT_NE(refusal(c, 8, 9).find("max_num_seqs (8)"), std::string::npos);
  c.num_blocks = 10;
  EXPECT_EQ(refusal(c, 40), "");
  EXPECT_NE(refusal(c, 41).find("KV cache"), std::string::npos);
  c.enable_chunked_prefill = false;
  EXPECT_EQ(refusal(c, 32), "");
  EXPECT_NE(refusal(c, 33).find("max_num_batched_tokens (32)"), std::string::npos);
}

TEST(Scheduler, RefusesABadConfig) {
  auto with = [](auto change) {
    SchedulerConfig c = config();
    change(c);
    return c;
  };
  EXPECT_THROW(Scheduler(with([](auto& c) { c.max_num_seqs = 0; })), Error);
  EXPECT_THROW(Scheduler(with([](auto& c) { c.max_num_batched_tokens = 7; })), Error);
  EXPECT_THROW(Scheduler(with([](auto& c) { c.block_size = 0; })), Error);
  EXPECT_THROW(Scheduler(with([](auto& c) { c.num_blocks = 0; })), Error);
  EXPECT_THROW(Scheduler(with([](auto& c) { c.watermark = 1.0; })), Error);
}

TEST(Scheduler, PlanChangesNothing) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(10), 5);
  engine.scheduler.plan(engine.proposal);
  engine.scheduler.plan(engine.proposal);
  EXPECT_EQ(a.sequences[0].status, SeqStatus::kWaiting);
  EXPECT_TRUE(a.sequences[0].blocks.empty());
  EXPECT_EQ(engine.scheduler.pool().num_used(), 0);
  EXPECT_EQ(engine.proposal.items.size(), 1u);
}

TEST(Scheduler, RunningFirstThenPromptsInChunks) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(10), 50);
  engine.step();
  EXPECT_EQ(count_of(engine, a), 10);
  Request& b = engine.submit(prompt_of(70), 50);
  Request& c = engine.submit(prompt_of(5), 50);
  engine.step();  // a: 1, b: 31
  EXPECT_EQ(count_of(engine, a), 1);
  EXPECT_EQ(count_of(engine, b), 31);
  EXPECT_EQ(count_of(engine, c), 0);
  EXPECT_TRUE(engine.plan->seqs[1].samplers.empty());
  engine.step();
  EXPECT_EQ(count_of(engine, b), 31);
  engine.step();  // the last 8 of b, and c
  EXPECT_EQ(count_of(engine, b), 8);
  EXPECT_EQ(count_of(engine, c), 5);
  EXPECT_EQ(engine.plan->num_tokens, 14);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, WholePromptsOnly) {
  SchedulerConfig c = config();
  c.enable_chunked_prefill = false;
  FakeEngine engine(c);
  Request& a = engine.submit(prompt_of(20), 50);
  Request& b = engine.submit(prompt_of(20, 1), 50);
  engine.step();
  EXPECT_EQ(count_of(engine, a), 20);
  EXPECT_EQ(count_of(engine, b), 0);
  engine.step();
  EXPECT_EQ(count_of(engine, a), 1);
  EXPECT_EQ(count_of(engine, b), 20);
  engine.run_to_end();
  engine.check_streams();
}

// Without chunking a prompt of the whole budget must not wait for all that runs to end, nor stop it for long.
TEST(Scheduler, AWholePromptTakesTurnsWithRunningSequences) {
  SchedulerConfig c = config();
  c.enable_chunked_prefill = false;
  FakeEngine engine(c);
  Request& a = engine.submit(prompt_of(4), 200);
  engine.step();
  for (int i = 0; i < 3; ++i) engine.submit(prompt_of(32, i), 200);
  int paused = 0;
  for (int i = 0; i < 6; ++i) {
    engine.step();
    ASSERT_LE(engine.plan->num_tokens, 32);
    EXPECT_EQ(count_of(engine, a), i % 2);
    paused += count_of(engine, a) == 0;
  }
  EXPECT_EQ(engine.scheduler.running().size(), 4u);
  EXPECT_EQ(paused, 3);
  EXPECT_EQ(a.sequences[0].output_len(), 4);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, NobodyOvertakes) {
  SchedulerConfig c = config();
  c.num_blocks = 20;
  FakeEngine engine(c);
  Request& a = engine.submit(prompt_of(50), 4);  // 13 blocks
  Request& big = engine.submit(prompt_of(60), 4);
  Request& small = engine.submit(prompt_of(4), 4);
  engine.step();
  engine.step();
  EXPECT_EQ(a.sequences[0].status, SeqStatus::kRunning);
  EXPECT_EQ(big.sequences[0].status, SeqStatus::kWaiting);
  EXPECT_EQ(small.sequences[0].status, SeqStatus::kWaiting);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, SequenceLimit) {
  SchedulerConfig c = config();
  c.max_num_seqs = 3;
  FakeEngine engine(c);
  engine.submit(prompt_of(2), 5);
  Request& pair = engine.submit(prompt_of(2, 1), 5, 2);
  Request& last = engine.submit(prompt_of(2, 2), 5);
  engine.step();
  EXPECT_EQ(pair.sequences[0].status, SeqStatus::kRunning);
  EXPECT_EQ(last.sequences[0].status, SeqStatus::kWaiting);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, WatermarkHoldsBackNewRequestsOnly) {
  SchedulerConfig c = config();
  c.num_blocks = 20;
  c.watermark = 0.25;  // 5 blocks
  FakeEngine engine(c);
  Request& a = engine.submit(prompt_of(48), 30);  // 12 blocks
  Request& b = engine.submit(prompt_of(16), 4);   // 4 blocks: 4 would be left
  engine.step();
  EXPECT_EQ(b.sequences[0].status, SeqStatus::kWaiting);
  while (a.num_unfinished > 0) engine.step();  // grows into the watermark
  EXPECT_EQ(engine.scheduler.num_preemptions(), 0u);
  engine.run_to_end();

  // Alone, a request may take everything.
  Request& all = engine.submit(prompt_of(80), 1);
  engine.step();
  EXPECT_EQ(all.sequences[0].status, SeqStatus::kRunning);
  engine.run_to_end();
}

TEST(Scheduler, PreemptsTheLastAndRecomputes) {
  SchedulerConfig c = config();
  c.num_blocks = 10;
  FakeEngine engine(c);
  Request& a = engine.submit(prompt_of(16), 20);  // grows to 9 blocks
  Request& b = engine.submit(prompt_of(16, 3), 20);
  while (engine.scheduler.num_preemptions() == 0) engine.step();
  EXPECT_EQ(b.sequences[0].status, SeqStatus::kPreempted);
  EXPECT_EQ(b.sequences[0].num_computed, 0);
  int kept = b.sequences[0].output_len();
  EXPECT_GT(kept, 0);
  EXPECT_EQ(a.sequences[0].status, SeqStatus::kRunning);
  Request& later = engine.submit(prompt_of(2), 2);
  EXPECT_EQ(*engine.scheduler.waiting().begin(), &b.sequences[0]);
  while (a.num_unfinished > 0) {
    engine.step();
    ASSERT_EQ(later.sequences[0].status, SeqStatus::kWaiting);
  }
  engine.step();
  EXPECT_EQ(count_of(engine, b), 16 + kept);  // prompt and output at once
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(engine.scheduler.num_prompt_tokens(), 16u + 16u + 2u);
  EXPECT_EQ(engine.scheduler.num_generation_tokens(), 20u + 20u + 2u);
}

// What was preempted may be longer than a step's budget; it is then cut even without chunking.
TEST(Scheduler, RecomputesMoreThanABudgetWithoutChunking) {
  SchedulerConfig c = config();
  c.enable_chunked_prefill = false;
  c.num_blocks = 20;
  FakeEngine engine(c);
  engine.submit(prompt_of(30), 50);
  engine.submit(prompt_of(30, 3), 50);
  engine.run_to_end();
  EXPECT_GT(engine.scheduler.num_preemptions(), 0u);
  engine.check_streams();
}

// ... and its rest goes on in whatever the running sequences leave.
TEST(Scheduler, WhatWasCutGoesOnWithoutChunking) {
  SchedulerConfig c = config();
  c.enable_chunked_prefill = false;
  c.priority_scheduling = true;
  c.max_num_seqs = 4;
  FakeEngine engine(c);
  SeqState& low = engine.submit(prompt_of(20), 100, 1, 9).sequences[0];
  engine.step();
  for (int i = 0; i < 3; ++i) engine.submit(prompt_of(2, i), 200);
  while (low.len() < 60) engine.step();
  engine.submit(prompt_of(2, 5), 1);
  engine.step();
  ASSERT_EQ(low.status, SeqStatus::kPreempted);
  for (int computed : {29, 58, 60}) {
    engine.step();
    EXPECT_EQ(low.num_computed, computed);
  }
  engine.run_to_end();
  engine.check_streams();
}

// A preempted sequence comes back when there is room for it and for one more block of everybody else.
TEST(Scheduler, DoesNotBringBackWhatItWouldPreemptAgain) {
  SchedulerConfig c = config();
  c.num_blocks = 10;
  c.max_num_batched_tokens = 64;
  FakeEngine engine(c);
  Request& first = engine.submit(prompt_of(5), 20);  // 2 blocks
  Request& a = engine.submit(prompt_of(16), 20);
  Request& b = engine.submit(prompt_of(16, 3), 20);
  engine.step();
  engine.step();
  ASSERT_EQ(b.sequences[0].status, SeqStatus::kPreempted);
  ASSERT_EQ(engine.scheduler.pool().num_free(), 3);
  engine.abort(first);
  engine.step();  // b needs the 5 blocks that are free
  EXPECT_EQ(engine.scheduler.pool().num_free(), 5);
  EXPECT_EQ(b.sequences[0].status, SeqStatus::kPreempted);
  engine.abort(a);
  engine.step();
  EXPECT_EQ(b.sequences[0].status, SeqStatus::kRunning);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, ASequenceMayFillTheWholeCache) {
  SchedulerConfig c = config();
  c.num_blocks = 10;
  FakeEngine engine(c);
  Request& a = engine.submit(prompt_of(30), 100);
  Request& b = engine.submit(prompt_of(40), 100);
  engine.run_to_end();
  EXPECT_EQ(a.sequences[0].len(), 40);
  EXPECT_EQ(b.sequences[0].len(), 41);  // a full prompt still gets its one token
  engine.check_streams();
}

TEST(Scheduler, ForksShareFullBlocksAndCopyThePartialOne) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(10), 6, 3);
  engine.step();
  ASSERT_EQ(engine.plan->seqs.size(), 1u);
  EXPECT_EQ(engine.plan->seqs[0].samplers.size(), 3u);
  EXPECT_EQ(engine.scheduler.pool().num_used(), 3);
  engine.step();
  EXPECT_EQ(engine.plan->copies.size(), 2u);  // the last one may write the original
  EXPECT_EQ(engine.scheduler.pool().num_used(), 2 + 3);
  for (int i = 1; i < 3; ++i) {
    EXPECT_EQ(a.sequences[static_cast<size_t>(i)].blocks[0], a.sequences[0].blocks[0]);
    EXPECT_NE(a.sequences[static_cast<size_t>(i)].blocks[2], a.sequences[0].blocks[2]);
  }
  engine.step();
  EXPECT_TRUE(engine.plan->copies.empty());
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(engine.scheduler.num_prompt_tokens(), 10u);
  EXPECT_EQ(engine.scheduler.num_generation_tokens(), 18u);
}

TEST(Scheduler, ForksAtABlockBoundaryCopyNothing) {
  FakeEngine engine(config());
  engine.submit(prompt_of(8), 6, 3);
  engine.step();
  engine.step();
  EXPECT_TRUE(engine.plan->copies.empty());
  EXPECT_EQ(engine.scheduler.pool().num_used(), 2 + 3);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, GroupsSurvivePreemption) {
  SchedulerConfig c = config();
  c.num_blocks = 12;
  for (int prompt_len : {1, 3, 4, 11, 16}) {
    FakeEngine engine(c);
    engine.submit(prompt_of(prompt_len), 25, 4);
    engine.submit(prompt_of(prompt_len, 9), 25, 2);
    engine.run_to_end();
    EXPECT_GT(engine.scheduler.num_preemptions(), 0u) << prompt_len;
    engine.check_streams();
  }
}

TEST(Scheduler, PrioritiesGoFirstAndDisplace) {
  SchedulerConfig c = config();
  c.priority_scheduling = true;
  c.max_num_seqs = 2;
  FakeEngine engine(c);
  Request& low = engine.submit(prompt_of(4), 30, 1, 5);
  Request& lower = engine.submit(prompt_of(4, 1), 30, 1, 9);
  engine.step();
  engine.step();
  Request& equal = engine.submit(prompt_of(4, 2), 30, 1, 9);
  engine.step();
  EXPECT_EQ(lower.sequences[0].status, SeqStatus::kRunning);  // its equal displaces nobody
  EXPECT_EQ(equal.sequences[0].status, SeqStatus::kWaiting);
  Request& high = engine.submit(prompt_of(4, 3), 30, 1, 0);
  engine.step();
  EXPECT_EQ(high.sequences[0].status, SeqStatus::kRunning);
  EXPECT_EQ(low.sequences[0].status, SeqStatus::kRunning);
  EXPECT_EQ(lower.sequences[0].status, SeqStatus::kPreempted);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, NothingIsDisplacedInVain) {
  SchedulerConfig c = config();
  c.priority_scheduling = true;
  c.max_num_seqs = 3;
  FakeEngine engine(c);
  engine.submit(prompt_of(4), 30, 2, 0);
  Request& low = engine.submit(prompt_of(4, 1), 30, 1, 5);
  engine.step();
  engine.submit(prompt_of(4, 3), 30, 2, 3);  // would need two places; only one can be had
  engine.step();
  EXPECT_EQ(low.sequences[0].status, SeqStatus::kRunning);
  EXPECT_EQ(engine.scheduler.num_preemptions(), 0u);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, FirstComeFirstServedIgnoresPriority) {
  SchedulerConfig c = config();
  c.max_num_seqs = 1;
  FakeEngine engine(c);
  engine.submit(prompt_of(4), 3, 1, 5);
  Request& second = engine.submit(prompt_of(4, 1), 3, 1, 9);
  Request& third = engine.submit(prompt_of(4, 2), 3, 1, 0);
  while (second.num_unfinished > 0) engine.step();
  EXPECT_EQ(third.sequences[0].status, SeqStatus::kWaiting);
  engine.run_to_end();
}

TEST(Scheduler, AbortInEveryState) {
  SchedulerConfig c = config();
  c.num_blocks = 24;
  FakeEngine engine(c);
  Request& waiting = engine.submit(prompt_of(4), 5, 2);
  engine.abort(waiting);
  EXPECT_FALSE(engine.scheduler.has_work());

  Request& prefill = engine.submit(prompt_of(60), 5, 3);
  engine.step();
  EXPECT_GT(prefill.sequences[0].num_computed, 0);
  engine.abort(prefill);
  check_invariants(engine.scheduler);
  EXPECT_EQ(engine.scheduler.pool().num_used(), 0);

  Request& forked = engine.submit(prompt_of(10), 50, 3);
  engine.step();
  engine.step();
  engine.abort(forked);
  engine.abort(forked);  // twice does no harm
  check_invariants(engine.scheduler);
  EXPECT_EQ(engine.scheduler.pool().num_used(), 0);

  engine.submit(prompt_of(40), 40);
  Request& preempted = engine.submit(prompt_of(40, 1), 40);
  while (preempted.sequences[0].status != SeqStatus::kPreempted) engine.step();
  engine.abort(preempted);
  check_invariants(engine.scheduler);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, RollbackRestores) {
  SchedulerConfig c = config();
  FakeEngine engine(c);
  Request& group = engine.submit(prompt_of(10), 6, 3);
  engine.step();
  Request& fresh = engine.submit(prompt_of(50), 6);
  std::vector<BlockTable> tables;
  for (const SeqState& seq : group.sequences) tables.push_back(seq.blocks);
  std::vector<BlockId> free_before = engine.scheduler.pool().free_list();

  // The step copies on write, takes new blocks and admits; its model writes garbage before it fails.
  engine.scheduler.plan(engine.proposal);
  const StepPlan& plan = engine.scheduler.reserve(engine.proposal);
  EXPECT_EQ(plan.copies.size(), 2u);
  EXPECT_EQ(plan.seqs.size(), 4u);
  engine.choices.clear();
  engine.model.run(plan, engine.choices);
  engine.scheduler.rollback();
  check_invariants(engine.scheduler);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(group.sequences[i].blocks, tables[i]);
    EXPECT_EQ(group.sequences[i].num_computed, 10);
    EXPECT_EQ(group.sequences[i].output_len(), 1);
  }
  EXPECT_EQ(fresh.sequences[0].status, SeqStatus::kWaiting);
  EXPECT_TRUE(fresh.sequences[0].blocks.empty());
  EXPECT_EQ(engine.scheduler.pool().num_free(), static_cast<int64_t>(free_before.size()));
  engine.run_to_end();
  engine.check_streams();
}

TEST(Scheduler, ABadOutputChangesNothing) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(5), 6);
  Request& b = engine.submit(prompt_of(6), 6);
  engine.scheduler.plan(engine.proposal);
  engine.scheduler.reserve(engine.proposal);
  SeqId ida = a.sequences[0].id, idb = b.sequences[0].id;
  std::vector<std::vector<Choice>> bad = {{},
                                          {{ida, 1, 0, false}},
                                          {{ida, 1, 0, false}, {ida, 1, 0, false}},
                                          {{ida, 1, 0, false}, {idb + 100, 1, 0, false}}};
  for (const auto& choices : bad) {
    EXPECT_THROW(engine.scheduler.commit(choices, engine.sampled), Error);
    EXPECT_EQ(a.sequences[0].num_computed, 0);
  }
  // Any order will do.
  std::vector<Choice> swapped = {{idb, 11, 0, false}, {ida, 22, 0, false}};
  engine.scheduler.commit(swapped, engine.sampled);
  EXPECT_EQ(a.sequences[0].tokens.back(), 22);
  EXPECT_EQ(b.sequences[0].tokens.back(), 11);
  EXPECT_EQ(engine.sampled[0], &b.sequences[0]);
}

TEST(Scheduler, PromptLogprobsAreAskedForOnce) {
  SchedulerConfig c = config();
  c.num_blocks = 20;
  FakeEngine engine(c);
  engine.submit(prompt_of(20), 20);
  auto params = std::make_shared<SamplingParams>();
  params->prompt_logprobs = 1;
  params->max_tokens = 40;
  Request& a = engine.submit(prompt_of(40), params);
  std::vector<int> asked(40, 0);
  while (a.num_unfinished > 0) {
    engine.step();
    for (const SeqStep& step : engine.plan->seqs) {
      if (!step.prompt_logprobs) continue;
      EXPECT_EQ(step.sequence, &a.sequences[0]);
      for (int i = step.start + 1; i <= std::min(step.start + step.count, 39); ++i)
        ++asked[static_cast<size_t>(i)];
    }
  }
  EXPECT_GT(engine.scheduler.num_preemptions(), 0u);
  EXPECT_EQ(asked[0], 0);
  for (size_t i = 1; i < asked.size(); ++i) EXPECT_EQ(asked[i], 1) << i;
}

TEST(Invariants, FindWhatIsWrong) {
  auto breaks = [](auto&& change) {
    FakeEngine engine(config());
    Request& a = engine.submit(prompt_of(5), 6);
    Request& b = engine.submit(prompt_of(6), 6);
    engine.step();
    check_invariants(engine.scheduler);
    change(a.sequences[0], b.sequences[0]);
    EXPECT_THROW(check_invariants(engine.scheduler), Error);
  };
  breaks([](SeqState& a, SeqState&) { a.num_computed = a.len(); });
  breaks([](SeqState& a, SeqState&) { a.num_computed = -1; });
  breaks([](SeqState& a, SeqState&) { a.blocks.pop_back(); });          // a leak
  breaks([](SeqState& a, SeqState& b) { a.blocks[0] = b.blocks[0]; });  // two writers
  breaks([](SeqState& a, SeqState&) { a.blocks[0] = a.blocks[1]; });
  breaks([](SeqState& a, SeqState&) { a.blocks[0] = 100; });
  breaks([](SeqState& a, SeqState&) { a.status = SeqStatus::kWaiting; });
  breaks([](SeqState& a, SeqState& b) { std::swap(a.key, b.key); });
}

}  // namespace
}  // namespace taco
