// The oracle of the other tests must itself notice what is wrong.
#include "exec/null_executor.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace taco {
namespace {

constexpr int kVocab = 50, kBlock = 4;

struct One {  // a sequence with its blocks, and plans of it alone
  explicit One(std::vector<int32_t> prompt, std::vector<BlockId> blocks) {
    static SeqId next = 1;
    seq.id = next++;
    seq.params = std::make_shared<SamplingParams>();
    seq.prompt_len = static_cast<int32_t>(prompt.size());
    seq.tokens = std::move(prompt);
    seq.blocks = std::move(blocks);
  }
  // All that is known and not computed.
  StepPlan plan() {
    StepPlan plan;
    plan.num_tokens = seq.len() - seq.num_computed;
    plan.seqs.push_back({&seq, seq.num_computed, plan.num_tokens, {&seq}});
    seq.num_computed = seq.len();
    return plan;
  }
  void push(int32_t token) { seq.tokens.push_back(token); }
  int32_t expected(int position) const { return NullExecutor::token_at(seq.prompt(), position, kVocab); }
  Sequence seq;
};

NullExecutor make(int max_in_flight, int64_t num_host_blocks = 0) {
  return NullExecutor(kVocab, 100, kBlock, 8, 0.0, -1, max_in_flight, num_host_blocks);
}

TEST(NullExecutor, TakesPendingTokensFromTheStepBefore) {
  NullExecutor executor = make(2);
  One a({1, 2, 3}, {0, 1});
  executor.submit(a.plan());
  for (int position = 3; position < 7; ++position) {
    a.push(kPendingToken);
    executor.submit(a.plan());
    a.seq.tokens.back() = executor.collect().sampled.at(0).token;
    EXPECT_EQ(a.seq.tokens.back(), a.expected(position));
  }
  EXPECT_EQ(executor.collect().sampled.at(0).token, a.expected(7));
  EXPECT_THROW(executor.collect(), Error);
}

TEST(NullExecutor, RefusesMoreStepsThanItTakes) {
  for (int max_in_flight : {1, 2}) {
    NullExecutor executor = make(max_in_flight);
    EXPECT_EQ(executor.max_in_flight(), max_in_flight);
    One a({1}, {0}), b({2}, {1}), c({3}, {2});
    executor.submit(a.plan());
    if (max_in_flight == 2) executor.submit(b.plan());
    EXPECT_THROW(executor.submit(c.plan()), Error);
  }
  EXPECT_THROW(make(3), Error);
  EXPECT_THROW(make(0), Error);
}

TEST(NullExecutor, APendingTokenNeedsAStepInFlight) {
  {
    NullExecutor executor = make(2);
    One a({1, 2, 3}, {0, 1});
    executor.run(a.plan());
    a.push(kPendingToken);  // it was collected: the host knows it
    EXPECT_THROW(executor.submit(a.plan()), Error);
  }
  {
    NullExecutor executor = make(2);
    One a({1, 2, 3}, {0, 1}), b({4}, {2});
    executor.run(a.plan());
    executor.submit(b.plan());  // samples nothing for a
    a.push(kPendingToken);
    EXPECT_THROW(executor.submit(a.plan()), Error);
  }
}

TEST(NullExecutor, AKnownTokenMustHaveBeenCollected) {
  NullExecutor executor = make(2);
  One a({1, 2, 3}, {0, 1});
  executor.submit(a.plan());
  a.push(a.expected(3));  // right, but nobody can know it
  EXPECT_THROW(executor.submit(a.plan()), Error);
}

TEST(NullExecutor, AWrongTokenIsNoticed) {
  NullExecutor executor = make(2);
  One a({1, 2, 3}, {0, 1});
  executor.run(a.plan());
  a.push((a.expected(3) + 1) % kVocab);
  EXPECT_THROW(executor.submit(a.plan()), Error);
}

TEST(NullExecutor, MovesBlocksInOrder) {
  NullExecutor executor = make(1, 4);
  executor.set_thorough(true);
  One a({1, 2, 3, 4, 5}, {0, 1}), b({6, 7, 8, 9, 10}, {2, 3});
  a.push(executor.run(a.plan()).sampled[0].token);
  b.push(executor.run(b.plan()).sampled[0].token);
  // a goes out; b's content takes its place in the same step, through the host and on the device.
  StepPlan plan = b.plan();
  plan.swap_out = {{0, 3}, {1, 1}, {2, 0}};
  plan.swap_in = {{0, 0}};
  plan.copies = {{3, 1}};
  b.seq.blocks = {0, 1};
  b.push(executor.run(plan).sampled.at(0).token);
  EXPECT_EQ(b.seq.tokens.back(), b.expected(6));
  // And a comes back somewhere else.
  plan = a.plan();
  plan.swap_in = {{5, 3}, {4, 1}};
  a.seq.blocks = {5, 4};
  EXPECT_EQ(executor.run(plan).sampled.at(0).token, a.expected(6));
  // Without its move a sequence is not what it was.
  plan = b.plan();
  b.seq.blocks = {7, 1};
  EXPECT_THROW(executor.run(plan), Error);
}

TEST(NullExecutor, RefusesBlocksThatDoNotExist) {
  One a({1}, {0});
  StepPlan plan = a.plan();
  plan.swap_out = {{0, 4}};
  EXPECT_THROW(make(1, 4).run(plan), Error);
  plan.swap_out = {{8, 0}};
  EXPECT_THROW(make(1, 4).run(plan), Error);
  plan.swap_out.clear();
  plan.swap_in = {{0, 0}};
  EXPECT_THROW(make(1).run(plan), Error);
}

}  // namespace
}  // namespace taco
