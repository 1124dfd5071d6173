// Two steps in flight: what advances when, what is dropped, what can be taken back. And where preempted
// blocks go.
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

TEST(InFlight, APendingTokenIsPlannedAndThenResolved) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(5), 3);
  SeqState& seq = a.sequences[0];
  Scheduler& s = engine.scheduler;
  s.plan(engine.proposal);
  engine.submit_proposal();
  EXPECT_THROW(s.plan(engine.proposal), Error);  // not advanced yet
  EXPECT_EQ(seq.num_computed, 0);
  s.advance();
  EXPECT_THROW(s.advance(), Error);
  check_invariants(s);
  EXPECT_EQ(seq.num_computed, 5);
  EXPECT_EQ(seq.tokens.back(), kPendingToken);
  EXPECT_EQ(seq.output_len(), 1);
  EXPECT_EQ(s.num_generation_tokens(), 0u);
  s.plan(engine.proposal);
  engine.submit_proposal();
  EXPECT_EQ(engine.plan->number, 1u);
  EXPECT_EQ(engine.plan->seqs[0].start, 5);
  EXPECT_EQ(engine.plan->seqs[0].count, 1);
  EXPECT_EQ(engine.plan->seqs[0].samplers.size(), 1u);
  EXPECT_EQ(s.num_in_flight(), 2);
  EXPECT_EQ(a.num_in_flight, 2);
  EXPECT_THROW(s.reserve(engine.proposal), Error);  // two are the most
  engine.complete_oldest();
  EXPECT_NE(seq.tokens.back(), kPendingToken);
  EXPECT_EQ(seq.num_computed, 5);
  EXPECT_EQ(s.num_generation_tokens(), 1u);
  engine.runs_ahead = true;
  engine.run_to_end();
  EXPECT_EQ(seq.output_len(), 3);
  engine.check_streams();
}

TEST(InFlight, ACertainlyLastTokenIsNotPlanned) {
  for (bool by_length : {false, true}) {
    SchedulerConfig c = config();
    if (by_length) c.max_model_len = 7;
    FakeEngine engine(c, true);
    engine.submit(prompt_of(5), by_length ? 100 : 2);
    Request& other = engine.submit(prompt_of(1), 4);
    engine.step();
    engine.step();
    EXPECT_EQ(engine.plan->seqs.size(), 1u);
    EXPECT_EQ(engine.plan->seqs[0].sequence, &other.sequences[0]);
    engine.run_to_end();
    EXPECT_EQ(engine.num_steps, 4);  // as many as the longest stream
    engine.check_streams();
  }
}

// The same work in the same number of steps, when no stream ends by a token.
TEST(InFlight, NoStepIsWasted) {
  int steps[2];
  for (bool ahead : {false, true}) {
    FakeEngine engine(config(), ahead);
    for (int i = 0; i < 6; ++i) engine.submit(prompt_of(3 + 9 * i, i), 5 + i);
    engine.run_to_end();
    steps[ahead] = engine.num_steps;
    engine.check_streams();
  }
  EXPECT_EQ(steps[0], steps[1]);
}

TEST(InFlight, WhatEndedIsDroppedAndItsBlocksAreFree) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(5), 50);
  Request& b = engine.submit(prompt_of(6), 50);
  Scheduler& s = engine.scheduler;
  s.plan(engine.proposal);
  engine.submit_proposal();
  engine.run_ahead();
  ASSERT_EQ(s.num_in_flight(), 2);
  engine.abort(b);  // in both steps
  check_invariants(s);
  EXPECT_EQ(b.sequences[0].output_len(), 0);
  EXPECT_EQ(s.pool().num_used(), 2);
  EXPECT_EQ(b.num_in_flight, 2);
  EXPECT_THROW(s.rollback(), Error);  // a's neighbour has ended since
  engine.complete_oldest();
  EXPECT_EQ(engine.sampled, (std::vector<SeqState*>{&a.sequences[0], nullptr}));
  EXPECT_EQ(b.num_in_flight, 1);
  // The step in flight has a's second token; b's blocks go to somebody else, whose step comes after it.
  Request& c = engine.submit(prompt_of(9, 3), 3);
  engine.run_ahead();
  ASSERT_EQ(engine.plan->seqs.size(), 2u);
  EXPECT_EQ(engine.plan->seqs[1].sequence, &c.sequences[0]);
  engine.complete_oldest();
  EXPECT_EQ(b.num_in_flight, 0);
  EXPECT_EQ(s.num_generation_tokens(), 2u);
  engine.runs_ahead = true;
  engine.run_to_end();
  engine.check_streams();
}

TEST(InFlight, GroupsForkBeforeTheirFirstTokensAreKnown) {
  FakeEngine engine(config(), true);
  Request& a = engine.submit(prompt_of(10), 6, 3);
  Scheduler& s = engine.scheduler;
  s.plan(engine.proposal);
  engine.submit_proposal();
  EXPECT_FALSE(a.forked);
  engine.run_ahead();
  EXPECT_TRUE(a.forked);
  EXPECT_EQ(engine.plan->seqs.size(), 3u);
  EXPECT_EQ(engine.plan->copies.size(), 2u);
  // One fails in the step that forked; its part in the next one is dropped.
  engine.results.front()[1].failed = true;
  std::vector<Choice> choices = engine.results.front();
  s.commit(choices, engine.sampled);
  engine.results.pop_front();
  EXPECT_EQ(a.sequences[1].output_len(), 0);
  s.finish(a.sequences[1], FinishReason::kError);
  check_invariants(s);
  engine.run_to_end();
  EXPECT_EQ(a.sequences[0].output_len(), 6);
  EXPECT_EQ(a.sequences[2].output_len(), 6);
  engine.check_streams();
}

TEST(InFlight, OnlyTheNewestStepIsRolledBack) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(10), 6, 2);
  Scheduler& s = engine.scheduler;
  s.plan(engine.proposal);
  engine.submit_proposal();
  s.advance();
  EXPECT_THROW(s.rollback(), Error);
  Request& fresh = engine.submit(prompt_of(7), 6);
  std::vector<BlockTable> tables = {a.sequences[0].blocks, a.sequences[1].blocks};
  int64_t free_before = s.pool().num_free();
  s.plan(engine.proposal);
  const StepPlan& plan = s.reserve(engine.proposal);
  EXPECT_EQ(plan.seqs.size(), 3u);
  EXPECT_EQ(plan.copies.size(), 1u);
  s.rollback();
  check_invariants(s);
  EXPECT_EQ(s.num_in_flight(), 1);
  EXPECT_EQ(a.sequences[0].blocks, tables[0]);
  EXPECT_EQ(a.sequences[1].blocks, tables[1]);
  EXPECT_EQ(a.sequences[1].tokens.back(), kPendingToken);
  EXPECT_EQ(fresh.sequences[0].status, SeqStatus::kWaiting);
  EXPECT_EQ(fresh.num_in_flight, 0);
  EXPECT_EQ(s.pool().num_free(), free_before);
  engine.complete_oldest();
  engine.run_to_end();
  engine.check_streams();
}

TEST(InFlight, ABadOutputChangesNoToken) {
  FakeEngine engine(config());
  Request& a = engine.submit(prompt_of(5), 6);
  Scheduler& s = engine.scheduler;
  s.plan(engine.proposal);
  engine.submit_proposal();
  engine.run_ahead();
  std::vector<Choice> none;
  EXPECT_THROW(s.commit(none, engine.sampled), Error);
  EXPECT_EQ(a.sequences[0].tokens.back(), kPendingToken);
  EXPECT_EQ(s.num_in_flight(), 2);
  s.abandon();
  EXPECT_EQ(s.num_in_flight(), 0);
  EXPECT_EQ(a.num_in_flight, 0);
  engine.abort(a);
  EXPECT_EQ(a.sequences[0].output_len(), 0);
  EXPECT_EQ(s.pool().num_used(), 0);
  check_invariants(s);
}

TEST(InFlight, NobodyIsPreemptedMeanwhile) {
  SchedulerConfig c = config();
  c.num_blocks = 10;
  FakeEngine engine(c, true);
  Request& a = engine.submit(prompt_of(16), 20);
  Request& b = engine.submit(prompt_of(16, 3), 20);
  Scheduler& s = engine.scheduler;
  while (s.num_preemptions() == 0) {
    bool was_ahead = s.num_in_flight() == 1;
    engine.step();
    if (s.num_preemptions() > 0) {
      EXPECT_FALSE(was_ahead);
    }
  }
  EXPECT_EQ(b.sequences[0].status, SeqStatus::kPreempted);
  EXPECT_EQ(a.sequences[0].status, SeqStatus::kRunning);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_GT(engine.num_ahead, 20);
}

TEST(InFlight, ReserveRefusesToPreempt) {
  SchedulerConfig c = config();
  c.num_blocks = 10;
  FakeEngine engine(c, true);
  engine.submit(prompt_of(20), 20);
  engine.submit(prompt_of(20, 3), 20);
  Scheduler& s = engine.scheduler;
  s.plan(engine.proposal);
  engine.submit_proposal();
  while (s.num_in_flight() > 0) {
    s.advance();
    s.plan(engine.proposal);
    if (!engine.proposal.preempt.empty()) break;
    engine.submit_proposal();
    engine.complete_oldest();
  }
  ASSERT_FALSE(engine.proposal.preempt.empty());
  EXPECT_THROW(s.reserve(engine.proposal), Error);
  engine.complete_oldest();
  engine.run_to_end();
  engine.check_streams();
}

TEST(InFlight, HistoryIsAskedForWhileItSamples) {
  FakeEngine engine(config(), true);
  auto params = std::make_shared<SamplingParams>();
  params->frequency_penalty = 1.0f;
  params->max_tokens = 3;
  engine.submit(prompt_of(70), params);  // three chunks
  engine.submit(prompt_of(1), 12);
  Scheduler& s = engine.scheduler;
  std::vector<bool> needs;
  while (engine.has_work()) {
    if (s.num_in_flight() == 0) {
      s.plan(engine.proposal);
      engine.submit_proposal();
    }
    needs.push_back(s.oldest_needs_its_tokens());
    engine.run_ahead();
    engine.complete_oldest();
  }
  EXPECT_EQ(needs[0], false);
  EXPECT_EQ(needs[1], false);
  EXPECT_EQ(std::count(needs.begin(), needs.end(), true), 3);
  engine.run_to_end();
  engine.check_streams();
}

SchedulerConfig swap_config(PreemptionMode mode, int64_t num_swap_blocks = 100) {
  SchedulerConfig c = config();
  c.num_blocks = 10;
  c.num_swap_blocks = num_swap_blocks;
  c.preemption_mode = mode;
  return c;
}

TEST(Swap, KeepsWhatWasComputed) {
  for (bool ahead : {false, true}) {
    FakeEngine engine(swap_config(PreemptionMode::kSwap), ahead);
    Request& a = engine.submit(prompt_of(16), 20);
    SeqState& b = engine.submit(prompt_of(16, 3), 20).sequences[0];
    while (engine.scheduler.num_preemptions() == 0) engine.step();
    EXPECT_EQ(b.status, SeqStatus::kPreempted);
    EXPECT_TRUE(b.blocks.empty());
    int32_t computed = b.num_computed;
    EXPECT_EQ(computed, b.len() - 1);
    EXPECT_EQ(static_cast<int64_t>(b.host_blocks.size()), blocks_for(computed, 4));
    EXPECT_EQ(engine.scheduler.host_pool()->num_used(), blocks_for(computed, 4));
    EXPECT_EQ(engine.num_swapped_out, b.host_blocks.size());
    while (b.status != SeqStatus::kRunning) engine.step();
    EXPECT_GE(b.num_computed, computed);
    EXPECT_EQ(a.num_unfinished, 0);
    engine.run_to_end();
    engine.check_streams();
    EXPECT_EQ(engine.num_swapped_in, engine.num_swapped_out);
  }
}

TEST(Swap, ModesDecideWhoIsMoved) {
  auto swapped = [](PreemptionMode mode, int best_of, int64_t num_swap_blocks) {
    FakeEngine engine(swap_config(mode, num_swap_blocks));
    engine.submit(prompt_of(12), 28);
    engine.submit(prompt_of(12, 3), 20, best_of);
    engine.run_to_end();
    engine.check_streams();
    EXPECT_GT(engine.scheduler.num_preemptions(), 0u);
    return engine.num_swapped_out > 0;
  };
  EXPECT_FALSE(swapped(PreemptionMode::kAuto, 1, 100));
  EXPECT_TRUE(swapped(PreemptionMode::kAuto, 2, 100));
  EXPECT_TRUE(swapped(PreemptionMode::kSwap, 1, 100));
  EXPECT_TRUE(swapped(PreemptionMode::kSwap, 2, 100));
  EXPECT_FALSE(swapped(PreemptionMode::kRecompute, 2, 100));
  EXPECT_FALSE(swapped(PreemptionMode::kSwap, 2, 0));
  EXPECT_FALSE(swapped(PreemptionMode::kSwap, 1, 2));  // too small for any: recompute
}

// What a group shares is moved once, when several of it go in one step.
TEST(Swap, SharedBlocksAreMovedOnce) {
  SchedulerConfig c = swap_config(PreemptionMode::kAuto);
  c.num_blocks = 20;
  c.priority_scheduling = true;
  FakeEngine engine(c);
  Request& group = engine.submit(prompt_of(30), 40, 3, 5);  // 7 full blocks shared, and one each
  engine.step();
  engine.step();
  engine.submit(prompt_of(60), 4, 1, 0);  // 15 blocks
  engine.step();
  for (const SeqState& seq : group.sequences) {
    ASSERT_EQ(seq.status, SeqStatus::kPreempted);
    EXPECT_EQ(seq.num_computed, 31);
    EXPECT_EQ(seq.host_blocks.size(), 8u);
    EXPECT_EQ(seq.host_blocks[0], group.sequences[0].host_blocks[0]);
  }
  EXPECT_EQ(engine.num_swapped_out, 7u + 3u);
  EXPECT_EQ(engine.scheduler.host_pool()->num_used(), 7 + 3);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Swap, AFinishedSequenceLeavesTheHost) {
  FakeEngine engine(swap_config(PreemptionMode::kSwap));
  engine.submit(prompt_of(16), 20);
  Request& b = engine.submit(prompt_of(16, 3), 20);
  while (engine.scheduler.num_preemptions() == 0) engine.step();
  ASSERT_GT(engine.scheduler.host_pool()->num_used(), 0);
  engine.abort(b);
  EXPECT_EQ(engine.scheduler.host_pool()->num_used(), 0);
  engine.run_to_end();
}

TEST(Swap, RollbackForgetsWhatMayNotHaveBeenMoved) {
  FakeEngine engine(swap_config(PreemptionMode::kSwap));
  engine.submit(prompt_of(16), 20);
  SeqState& b = engine.submit(prompt_of(16, 3), 20).sequences[0];
  Scheduler& s = engine.scheduler;
  for (;;) {
    s.plan(engine.proposal);
    if (!engine.proposal.preempt.empty()) break;
    engine.step();
  }
  s.reserve(engine.proposal);
  ASSERT_FALSE(b.host_blocks.empty());
  s.rollback();
  check_invariants(s);
  EXPECT_EQ(b.status, SeqStatus::kPreempted);
  EXPECT_EQ(b.num_computed, 0);
  EXPECT_EQ(s.host_pool()->num_used(), 0);
  engine.run_to_end();
  engine.check_streams();
}

TEST(Swap, RollbackOfAReturnLeavesItOnTheHost) {
  FakeEngine engine(swap_config(PreemptionMode::kSwap));
  Request& a = engine.submit(prompt_of(16), 20);
  SeqState& b = engine.submit(prompt_of(16, 3), 20).sequences[0];
  Scheduler& s = engine.scheduler;
  while (s.num_preemptions() == 0) engine.step();
  engine.abort(a);
  std::vector<BlockId> host = b.host_blocks;
  int32_t computed = b.num_computed;
  s.plan(engine.proposal);
  const StepPlan& plan = s.reserve(engine.proposal);
  EXPECT_EQ(plan.swap_in.size(), host.size());
  EXPECT_EQ(plan.seqs[0].start, computed);
  s.rollback();
  check_invariants(s);
  EXPECT_EQ(b.status, SeqStatus::kPreempted);
  EXPECT_EQ(b.host_blocks, host);
  EXPECT_EQ(b.num_computed, computed);
  EXPECT_TRUE(b.blocks.empty());
  engine.step();
  EXPECT_EQ(b.status, SeqStatus::kRunning);
  EXPECT_TRUE(b.host_blocks.empty());
  engine.run_to_end();
  engine.check_streams();
}

// What comes back from the host is no whole prompt to make room for: it lacks one token.
TEST(Swap, AReturnStopsNobodyWithoutChunking) {
  SchedulerConfig c = swap_config(PreemptionMode::kSwap);
  c.num_blocks = 40;
  c.enable_chunked_prefill = false;
  c.priority_scheduling = true;
  c.max_num_seqs = 2;
  FakeEngine engine(c);
  SeqState& low = engine.submit(prompt_of(30), 40, 1, 9).sequences[0];
  SeqState& mid = engine.submit(prompt_of(2, 1), 40, 1, 0).sequences[0];
  engine.step();
  engine.step();
  ASSERT_EQ(low.len(), 32);
  Request& high = engine.submit(prompt_of(2, 2), 3, 1, 0);
  engine.step();
  ASSERT_EQ(low.status, SeqStatus::kPreempted);
  while (high.num_unfinished > 0) engine.step();
  int32_t before = mid.len();
  engine.step();
  EXPECT_EQ(low.len(), 33);
  EXPECT_EQ(mid.len(), before + 1);
  engine.run_to_end();
  engine.check_streams();
}

// A prompt that is preempted between two of its chunks goes on where it was.
TEST(Swap, InTheMiddleOfAPrompt) {
  SchedulerConfig c = swap_config(PreemptionMode::kSwap);
  c.num_blocks = 30;
  c.priority_scheduling = true;
  FakeEngine engine(c, true);
  SeqState& low = engine.submit(prompt_of(100), 5, 2, 9).sequences[0];
  engine.step();
  engine.submit(prompt_of(60), 5, 1, 0);
  while (low.status != SeqStatus::kPreempted) engine.step();
  EXPECT_GT(low.num_computed, 0);
  EXPECT_LT(low.num_computed, 100);
  engine.run_to_end();
  engine.check_streams();
  EXPECT_EQ(engine.scheduler.num_prompt_tokens(), 160u);
}

}  // namespace
}  // namespace taco
