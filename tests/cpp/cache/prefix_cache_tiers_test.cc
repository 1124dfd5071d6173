// The tiers below the device: who moves when, and what becomes of it.
#include <algorithm>
#include <cmath>

#include "prefix_cache_case.h"

namespace taco {
namespace {

class PrefixCacheTiers : public PrefixCacheCase {};

TEST_F(PrefixCacheTiers, AStepStoresWhatItOverwrites) {
  make(8, 8);
  run(text_of(1, 12));
  TestSequence taker = start(text_of(2, 28));  // 5 free ones, and 2 of the 3
  ASSERT_EQ(swap_out.size(), 2u);
  EXPECT_EQ(swap_out[0].device, 2);  // the end first
  EXPECT_EQ(swap_out[0].host, 100);
  EXPECT_EQ(swap_out[1].device, 1);
  PrefixCache::Match found = match(text_of(1, 13));
  EXPECT_EQ(found.device_blocks, 1);
  EXPECT_EQ(found.lower_blocks, 2);
  end(taker);

  const uint64_t id = begin_fetch(text_of(1, 13));
  std::vector<Transfer> loads = transfers();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].kind, TransferKind::kLoad);
  ASSERT_EQ(loads[0].moves.size(), 2u);
  EXPECT_EQ(loads[0].moves[0].host, 101);
  EXPECT_EQ(loads[0].moves[1].host, 100);
  EXPECT_GT(cache->remaining(id, now), 0.0);
  EXPECT_EQ(pool->num_available(), 5);  // three are held
  found = match(text_of(1, 13));
  EXPECT_EQ(found.device_blocks, 1);
  EXPECT_EQ(found.loading_blocks, 2);
  EXPECT_EQ(found.tokens(kBlock, false), 4);
  EXPECT_EQ(found.tokens(kBlock, true), 12);
  finish(loads[0]);
  EXPECT_EQ(cache->remaining(id, now), 0.0);
  EXPECT_EQ(pool->num_available(), 8);
  TestSequence again = start(text_of(1, 13));
  EXPECT_EQ(again.cached, 12);
  EXPECT_EQ(cache->stats().blocks_hit, (std::array<uint64_t, 3>{1, 2, 0}));
  end(again);
}

TEST_F(PrefixCacheTiers, WithoutAHostTierItIsForgotten) {
  make(8);
  run(text_of(1, 12));
  TestSequence taker = start(text_of(2, 32));
  EXPECT_TRUE(swap_out.empty());
  EXPECT_EQ(match(text_of(1, 13)).lower_blocks, 0);
  uint64_t id = 0;
  EXPECT_EQ(fetch(text_of(1, 13), id), Fetch::kNone);
  EXPECT_EQ(cache->stats().dropped, 3u);
  end(taker);
}

TEST_F(PrefixCacheTiers, WhatWasUsedTooSeldomIsNotStored) {
  make(8, 8, 0, 2);
  run(text_of(1, 12));
  run(text_of(1, 5));  // its first block a second time
  displace(8);
  EXPECT_EQ(swap_out.size(), 1u);
  EXPECT_EQ(match(text_of(1, 13)).lower_blocks, 1);
  EXPECT_EQ(cache->stats().dropped, 2u);
}

TEST_F(PrefixCacheTiers, IdleBlocksAreStoredAhead) {
  make(16, 16);
  run(text_of(1, 15 * kBlock));
  cache->maintain(now);
  std::vector<Transfer> stores = transfers();  // one block is free: all are to be clean
  ASSERT_EQ(stores.size(), 1u);
  EXPECT_EQ(stores[0].kind, TransferKind::kStore);
  ASSERT_EQ(stores[0].moves.size(), 15u);
  EXPECT_EQ(stores[0].moves[0].device, 14);  // the first that would be given up
  EXPECT_EQ(cache->stats().clean_idle_blocks, 15);
  EXPECT_TRUE(settle().empty());
  finish(stores[0]);
  // Their room costs the next step nothing.
  TestSequence taker = start(text_of(2, 4 * kBlock));
  EXPECT_TRUE(swap_out.empty());
  EXPECT_TRUE(waits.empty());
  EXPECT_EQ(match(text_of(1, 15 * kBlock + 1)).lower_blocks, 3);
  end(taker);
}

TEST_F(PrefixCacheTiers, AStepWaitsForTheStoreThatItOvertakes) {
  make(16, 16);
  run(text_of(1, 15 * kBlock));
  cache->maintain(now);
  std::vector<Transfer> stores = transfers();
  ASSERT_EQ(stores.size(), 1u);
  TestSequence taker = start(text_of(2, 3 * kBlock));
  EXPECT_EQ(waits, (std::vector<uint64_t>{stores[0].id}));
  EXPECT_TRUE(swap_out.empty());
  uint64_t id = 0;
  EXPECT_EQ(fetch(text_of(1, 15 * kBlock + 1), id), Fetch::kNoRoom);  // all idle ones are being read
  end(taker);
  submit();
  EXPECT_EQ(waits.size(), 1u);  // and so does every step until it has been heard of
  finish(stores[0]);
  submit();
  EXPECT_TRUE(waits.empty());
  EXPECT_EQ(match(text_of(1, 15 * kBlock + 1)).lower_blocks, 2);
}

TEST_F(PrefixCacheTiers, AFailedStoreLosesTheCopyOnly) {
  make(16, 16);
  run(text_of(1, 15 * kBlock));
  cache->maintain(now);
  std::vector<Transfer> stores = transfers();
  finish(stores[0], true);
  EXPECT_EQ(cache->stats().blocks[1], 0);
  EXPECT_EQ(match(text_of(1, 15 * kBlock + 1)).device_blocks, 15);
  EXPECT_EQ(cache->stats().failed, 15u);
}

TEST_F(PrefixCacheTiers, TheHostGivesUpWhatWasUnusedLongest) {
  make(8, 4);
  run(text_of(1, 12));
  displace(8);
  EXPECT_EQ(match(text_of(1, 13)).lower_blocks, 3);
  // Four blocks of the first displacer at a time; the text leaves, its end first.
  displace(4);
  displace(4);
  EXPECT_EQ(match(text_of(1, 13)).lower_blocks, 0);
  EXPECT_EQ(cache->stats().blocks[1], 4);
  EXPECT_EQ(cache->stats().evicted[1], 7u);
}

TEST_F(PrefixCacheTiers, AHostFullOfBlocksUnderWay) {
  make(16, 2);
  run(text_of(1, 16 * kBlock));
  cache->maintain(now);
  std::vector<Transfer> stores = transfers();
  ASSERT_EQ(stores.size(), 1u);
  EXPECT_EQ(stores[0].moves.size(), 2u);
  // Four must go: the two that are being stored, and two for which there is no room.
  TestSequence taker = start(text_of(2, 4 * kBlock));
  EXPECT_TRUE(swap_out.empty());
  cache->check();
  // What is gone took the stored ones with it, which hang below it. Their rooms are still written.
  EXPECT_EQ(cache->stats().blocks[1], 0);
  EXPECT_EQ(cache->stats().entries, 12);
  displace(2);
  EXPECT_TRUE(swap_out.empty());
  finish(stores[0]);
  end(taker);
  displace(8);
  EXPECT_EQ(swap_out.size(), 2u);
}

TEST_F(PrefixCacheTiers, ARolledBackStepStoredNothing) {
  make(8, 8);
  run(text_of(1, 16));
  TestSequence seq;
  seq.tokens = text_of(2, 32);
  cache->attach({}, seq.tokens, 31, false, seq.table, seq.attachment, seq.wait_for);
  ASSERT_TRUE(grow_table(*pool, seq.table, 6));
  std::vector<BlockMove> moves;
  cache->take_evictions(50, moves, waits);
  EXPECT_EQ(moves.size(), 2u);
  release_table(*pool, seq.table);
  cache->rolled_back(50);
  cache->check();
  EXPECT_EQ(match(text_of(1, 17)).device_blocks, 2);
  EXPECT_EQ(match(text_of(1, 17)).lower_blocks, 0);
  EXPECT_EQ(cache->stats().blocks[1], 0);
}

TEST_F(PrefixCacheTiers, ResetDuringTransfersKeepsTheirBlocks) {
  make(16, 4);
  run(text_of(1, 15 * kBlock));
  cache->maintain(now);
  std::vector<Transfer> stores = transfers();
  ASSERT_EQ(stores[0].moves.size(), 4u);
  cache->reset();
  cache->check();
  EXPECT_TRUE(cache->busy());
  EXPECT_EQ(pool->num_free(), 12);  // four are being read
  EXPECT_EQ(pool->num_idle(), 0);
  run(text_of(2, 12 * kBlock));
  displace(12);
  EXPECT_TRUE(swap_out.empty());  // all rooms of the host are under way
  finish(stores[0]);
  EXPECT_EQ(pool->num_available(), 16);
  EXPECT_EQ(match(text_of(1, 15 * kBlock)).device_blocks, 0);
}

TEST_F(PrefixCacheTiers, ResetDuringALoad) {
  make(8, 24);
  run(text_of(1, 12));
  displace(8);
  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 13), id), Fetch::kNoRoom);  // nothing is clean
  settle();
  EXPECT_EQ(cache->stats().clean_idle_blocks, 8);
  ASSERT_EQ(fetch(text_of(1, 13), id), Fetch::kStarted);
  std::vector<Transfer> loads = transfers();
  cache->reset();
  cache->check();
  EXPECT_EQ(pool->num_free(), 5);  // nobody may have the other three before they are written
  EXPECT_EQ(cache->remaining(id, now), 0.0);
  finish(loads[0]);
  EXPECT_EQ(pool->num_free(), 8);
  EXPECT_FALSE(cache->busy());
}

TEST_F(PrefixCacheTiers, AFetchWhoseRequestIsGone) {
  leave_on_host(text_of(1, 12), 8);
  const uint64_t id = begin_fetch(text_of(1, 13));
  std::vector<Transfer> loads = transfers();
  cache->cancel_fetch(id);
  cache->check();
  EXPECT_EQ(pool->num_available(), 5);
  finish(loads[0]);
  EXPECT_EQ(pool->num_available(), 8);
  EXPECT_EQ(match(text_of(1, 13)).device_blocks, 3);  // it came all the same
  cache->cancel_fetch(id);
  cache->cancel_fetch(777);
}

TEST_F(PrefixCacheTiers, TwoFetchesOfOnePrefixShareTheLoad) {
  leave_on_host(text_of(1, 12), 12);
  uint64_t one = 0, two = 0;
  ASSERT_EQ(fetch(text_of(1, 13), one), Fetch::kStarted);
  ASSERT_EQ(fetch(text_of(1, 13), two), Fetch::kStarted);
  std::vector<Transfer> loads = transfers();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(cache->stats().fetches, 2);
  finish(loads[0]);
  EXPECT_EQ(cache->stats().fetches, 0);
  EXPECT_EQ(cache->remaining(two, now), 0.0);
  EXPECT_EQ(pool->num_available(), 12);
}

TEST_F(PrefixCacheTiers, ASequenceMayStartWhileItsBlocksAreLoading) {
  leave_on_host(text_of(1, 12), 12);
  begin_fetch(text_of(1, 20));
  std::vector<Transfer> loads = transfers();
  TestSequence seq = start(text_of(1, 20), {}, true);
  EXPECT_EQ(seq.cached, 12);
  EXPECT_EQ(seq.wait_for, (std::vector<uint64_t>{loads[0].id}));
  // The step has run, but that the load finished was not heard of yet.
  publish(seq);
  EXPECT_FALSE(seq.attachment.detached);
  EXPECT_EQ(match(text_of(1, 21)).loading_blocks, 5);
  TestSequence late = start(text_of(1, 13));
  EXPECT_EQ(late.cached, 0);
  publish(late);  // computed what is loading: a second block of the entry is of no use
  EXPECT_TRUE(late.attachment.detached);
  finish(loads[0]);
  EXPECT_EQ(match(text_of(1, 21)).device_blocks, 5);
  end(late);
  end(seq);
}

TEST_F(PrefixCacheTiers, AFailedLoadForgetsTheEntries) {
  leave_on_host(text_of(1, 12), 12);
  begin_fetch(text_of(1, 20));
  std::vector<Transfer> loads = transfers();
  TestSequence seq = start(text_of(1, 20), {}, true);
  finish(loads[0], true);
  EXPECT_EQ(cache->stats().fetches, 0);
  EXPECT_EQ(match(text_of(1, 13)).device_blocks, 0);
  publish(seq);
  EXPECT_TRUE(seq.attachment.detached);
  end(seq);
  EXPECT_EQ(pool->num_available(), 12);
}

TEST_F(PrefixCacheTiers, SecondsOfAPromptsTokenAreAMeanInWhichLongStepsSayMore) {
  make(8, 24);
  EXPECT_EQ(cache->seconds_per_prompt_token(), 0.0);
  cache->measured_prefill(0, 1.0);
  cache->measured_prefill(10, 0.0);
  EXPECT_EQ(cache->seconds_per_prompt_token(), 0.0);
  cache->measured_prefill(10, 10.0);
  EXPECT_DOUBLE_EQ(cache->seconds_per_prompt_token(), 1.0);
  cache->measured_prefill(128, 256.0);
  EXPECT_DOUBLE_EQ(cache->seconds_per_prompt_token(), 1.0 + 0.3 / 16);
  for (int i = 0; i < 50; ++i) cache->measured_prefill(4096, 8192.0);
  EXPECT_NEAR(cache->seconds_per_prompt_token(), 2.0, 1e-6);
  EXPECT_DOUBLE_EQ(cache->stats().prefill_speed, 1 / cache->seconds_per_prompt_token());
}

TEST_F(PrefixCacheTiers, NothingIsFetchedThatIsComputedFaster) {
  leave_on_host(text_of(1, 12), 8);
  uint64_t id = 0;
  cache->measured_prefill(1000000, 1.0);  // a microsecond for a token
  EXPECT_EQ(fetch(text_of(1, 13), id), Fetch::kNone);
  EXPECT_EQ(cache->stats().fetches_declined, 1u);
  for (int i = 0; i < 50; ++i) cache->measured_prefill(1000, 10.0);
  EXPECT_EQ(fetch(text_of(1, 13), id), Fetch::kStarted);
  for (const Transfer& transfer : transfers()) finish(transfer);
}

TEST_F(PrefixCacheTiers, AFetchLeavesRoomForThoseWhoRun) {
  leave_on_host(text_of(1, 12), 8);
  uint64_t id = 0;
  EXPECT_EQ(fetch(text_of(1, 13), id, 6), Fetch::kNoRoom);
  EXPECT_EQ(fetch(text_of(1, 13), id, 5), Fetch::kStarted);
  EXPECT_EQ(pool->num_available(), 5);
  for (const Transfer& transfer : transfers()) finish(transfer);
}

TEST_F(PrefixCacheTiers, AnIdleLimitStoresBeforeItTrims) {
  make(64, 64, 0, 1, 2);
  run(text_of(1, 10 * kBlock));
  cache->maintain(now);
  EXPECT_EQ(pool->num_idle(), 10);
  std::vector<Transfer> stores = transfers();
  ASSERT_EQ(stores.size(), 1u);
  EXPECT_EQ(stores[0].moves.size(), 8u);
  finish(stores[0]);
  cache->maintain(now);
  EXPECT_EQ(pool->num_idle(), 2);
  EXPECT_EQ(match(text_of(1, 10 * kBlock + 1)).lower_blocks, 8);
}

}  // namespace
}  // namespace taco
