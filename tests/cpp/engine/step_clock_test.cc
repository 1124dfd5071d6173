#include "engine/step_clock.h"

#include <gtest/gtest.h>

namespace taco {
namespace {

const Sequence kSequence;

StepPlan plan(uint64_t number, int prompt_rows, int decoding, bool samples = true) {
  StepPlan out;
  out.number = number;
  if (prompt_rows > 0)
    out.seqs.push_back({.sequence = &kSequence, .start = 0, .count = prompt_rows, .samplers = {}});
  if (prompt_rows > 0 && samples) out.seqs.back().samplers = {&kSequence};
  for (int i = 0; i < decoding; ++i)
    out.seqs.push_back({.sequence = &kSequence, .start = 9, .count = 1, .samplers = {&kSequence}});
  out.num_tokens = prompt_rows + decoding;
  return out;
}

TEST(StepClock, AStepBeginsWhenTheOneBeforeItEnds) {
  StepClock clock(true);
  const StepPlan first = plan(0, 0, 2), second = plan(1, 0, 3);
  clock.submitted(first, 10.0);
  clock.submitted(second, 10.001);
  auto time = clock.completed(first, 10.008);
  ASSERT_TRUE(time);
  EXPECT_NEAR(time->seconds, 0.008, 1e-9);
  EXPECT_EQ(time->steps, 1);
  EXPECT_EQ(time->tokens, 2);
  EXPECT_EQ(time->prompt_tokens, 0);
  time = clock.completed(second, 10.017);
  EXPECT_NEAR(time->seconds, 0.009, 1e-9);
}

// What the host does between two steps counts, as it does where it is done while a step runs.
TEST(StepClock, AStepThatDoesNotRunAheadBeginsThereToo) {
  for (const bool runs_ahead : {false, true}) {
    StepClock clock(runs_ahead);
    const StepPlan steps[] = {plan(0, 0, 2), plan(1, 0, 2), plan(2, 0, 2)};
    clock.submitted(steps[0], 10.0);
    EXPECT_NEAR(clock.completed(steps[0], 10.008)->seconds, 0.008, 1e-9);
    clock.submitted(steps[1], 10.009);
    EXPECT_NEAR(clock.completed(steps[1], 10.017)->seconds, 0.009, 1e-9);
    clock.idle();
    clock.submitted(steps[2], 10.020);
    EXPECT_NEAR(clock.completed(steps[2], 10.028)->seconds, 0.008, 1e-9);
    // What new sequences need is not the next step's.
    const StepPlan prompts = plan(3, 100, 2), next = plan(4, 0, 3);
    clock.submitted(prompts, 10.029);
    EXPECT_NEAR(clock.completed(prompts, 10.038)->seconds, 0.010, 1e-9);
    clock.submitted(next, 10.040);
    EXPECT_NEAR(clock.completed(next, 10.048)->seconds, 0.008, 1e-9);
  }
}

TEST(StepClock, ChunksThatSampleNothingEndWithTheNextThatDoes) {
  StepClock clock(true);
  const StepPlan chunks[] = {plan(0, 100, 0, false), plan(1, 100, 0, false), plan(2, 30, 1)};
  clock.submitted(chunks[0], 5.0);
  clock.submitted(chunks[1], 5.001);
  EXPECT_FALSE(clock.completed(chunks[0], 5.001));  // at once, and the device computes
  clock.submitted(chunks[2], 5.002);
  EXPECT_FALSE(clock.completed(chunks[1], 5.002));
  const auto time = clock.completed(chunks[2], 5.2);
  ASSERT_TRUE(time);
  EXPECT_NEAR(time->seconds, 0.2, 1e-9);
  EXPECT_EQ(time->steps, 3);
  EXPECT_EQ(time->tokens, 231);
  EXPECT_EQ(time->prompt_tokens, 230);
}

// A host that computes while it collects knows when each step ends.
TEST(StepClock, WithoutRunningAheadEachStepIsMeasured) {
  StepClock clock(false);
  const StepPlan chunk = plan(0, 100, 0, false);
  clock.submitted(chunk, 1.0);
  const auto time = clock.completed(chunk, 1.5);
  ASSERT_TRUE(time);
  EXPECT_NEAR(time->seconds, 0.5, 1e-9);
}

TEST(StepClock, PausesAndTransfersEndWhatWasOpen) {
  StepClock clock(true);
  const StepPlan chunk = plan(0, 100, 0, false), next = plan(1, 50, 0);
  clock.submitted(chunk, 1.0);
  EXPECT_FALSE(clock.completed(chunk, 1.001));
  clock.submitted(next, 3.0);  // the chunk has long been computed
  auto time = clock.completed(next, 3.1);
  ASSERT_TRUE(time);
  EXPECT_NEAR(time->seconds, 0.1, 1e-9);
  EXPECT_EQ(time->steps, 1);
  EXPECT_EQ(time->tokens, 50);

  StepPlan waiting = plan(2, 0, 1), after = plan(3, 0, 1);
  waiting.wait_for = {7};
  clock.submitted(chunk, 3.1);
  EXPECT_FALSE(clock.completed(chunk, 3.101));
  clock.submitted(waiting, 3.102);
  clock.submitted(after, 3.103);
  EXPECT_FALSE(clock.completed(waiting, 3.2));
  time = clock.completed(after, 3.205);
  ASSERT_TRUE(time);
  EXPECT_NEAR(time->seconds, 0.005, 1e-9);
  EXPECT_EQ(time->steps, 1);
}

}  // namespace
}  // namespace taco
