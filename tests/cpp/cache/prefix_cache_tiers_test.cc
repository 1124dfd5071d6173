// The tiers below the device: who moves when, and what becomes of it.
#include <algorithm>
#include <cmath>

#include "prefix_cache_case.h"

namespace taco {
namespace {

using Fetch = PrefixCache::Fetch;

class PrefixCacheTiers : public PrefixCacheCase {
 protected:
  Fetch fetch(const std::vector<int32_t>& tokens, uint64_t& id, int64_t spare = 0) {
    return cache->fetch({}, tokens, static_cast<int32_t>(tokens.size()) - 1, spare, now, id);
  }
  std::vector<Transfer> transfers() {
    std::vector<Transfer> all;
    cache->take_transfers(all);
    return all;
  }
  // Another text takes the whole device.
  void displace(int64_t blocks) {
    run(text_of(90 + static_cast<int>(step), static_cast<int>(blocks) * kBlock));
  }
};

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

  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 13), id), Fetch::kStarted);
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
  make(8, 24);
  run(text_of(1, 12));
  displace(8);
  settle();
  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 13), id), Fetch::kStarted);
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
  make(12, 36);
  run(text_of(1, 12));
  displace(12);
  settle();
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
  make(12, 36);
  run(text_of(1, 12));
  displace(12);
  settle();
  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 20), id), Fetch::kStarted);
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
  make(12, 36);
  run(text_of(1, 12));
  displace(12);
  settle();
  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 20), id), Fetch::kStarted);
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
  make(8, 24);
  run(text_of(1, 12));
  displace(8);
  for (const Transfer& transfer : settle()) EXPECT_EQ(transfer.kind, TransferKind::kStore);
  uint64_t id = 0;
  cache->measured_prefill(1000000, 1.0);  // a microsecond for a token
  EXPECT_EQ(fetch(text_of(1, 13), id), Fetch::kNone);
  EXPECT_EQ(cache->stats().fetches_declined, 1u);
  for (int i = 0; i < 50; ++i) cache->measured_prefill(1000, 10.0);
  EXPECT_EQ(fetch(text_of(1, 13), id), Fetch::kStarted);
  for (const Transfer& transfer : transfers()) finish(transfer);
}

TEST_F(PrefixCacheTiers, AFetchLeavesRoomForThoseWhoRun) {
  make(8, 24);
  run(text_of(1, 12));
  displace(8);
  settle();
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

// -- Disk

class PrefixCacheDisk : public PrefixCacheTiers {
 protected:
  using Records = std::vector<std::pair<int64_t, DiskRecord>>;
  static Records records_of(const std::vector<Transfer>& transfers) {
    Records records;
    for (const Transfer& transfer : transfers) {
      if (transfer.kind != TransferKind::kWrite) continue;
      for (size_t i = 0; i < transfer.disk.size(); ++i) {
        records.emplace_back(transfer.disk[i].slot, transfer.records[i]);
      }
    }
    return records;
  }
  // What a text of so many blocks leaves on the disk.
  Records written(int text, int blocks, const Digest& root = {}) {
    make(64, 64, 64);
    run(text_of(text, blocks * kBlock), root);
    return records_of(settle());
  }
  int64_t restore(const Records& records) {
    make(16, 16, 64);
    const int64_t taken = cache->restore(records);
    cache->check();
    return taken;
  }
};

TEST_F(PrefixCacheDisk, PublishedBlocksAreWrittenSoonParentsFirst) {
  Records records = written(1, 5, named(3));
  ASSERT_EQ(records.size(), 5u);
  Digest parent = named(3);
  const std::vector<int32_t> tokens = text_of(1, 20);
  for (size_t i = 0; i < 5; ++i) {
    const DiskRecord& record = records[i].second;
    EXPECT_EQ(record.root, named(3));
    EXPECT_EQ(record.parent, parent);
    EXPECT_EQ(record.tokens,
              std::vector<int32_t>(tokens.begin() + long(i) * 4, tokens.begin() + long(i) * 4 + 4));
    EXPECT_EQ(record.key, block_key(parent, record.tokens));
    parent = record.key;
  }
  EXPECT_EQ(cache->stats().blocks, (std::array<int64_t, 3>{5, 5, 5}));
  EXPECT_EQ(cache->stats().written, 5u);
}

TEST_F(PrefixCacheDisk, WhatWasRestoredIsReadAndLoaded) {
  Records records = written(1, 5);
  std::reverse(records.begin(), records.end());  // in any order
  ASSERT_EQ(restore(records), 5);
  EXPECT_EQ(match(text_of(1, 21)).lower_blocks, 5);
  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 21), id), Fetch::kStarted);
  std::vector<Transfer> reads = transfers();
  ASSERT_EQ(reads.size(), 1u);
  EXPECT_EQ(reads[0].kind, TransferKind::kRead);
  ASSERT_EQ(reads[0].disk.size(), 5u);
  EXPECT_EQ(reads[0].records[4].key, records[0].second.key);
  EXPECT_EQ(reads[0].disk[4].slot, records[0].first);
  EXPECT_TRUE(std::isinf(cache->remaining(id, now)));
  EXPECT_EQ(pool->num_available(), 11);  // their places on the device are taken
  finish(reads[0]);
  std::vector<Transfer> loads = transfers();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].kind, TransferKind::kLoad);
  EXPECT_FALSE(std::isinf(cache->remaining(id, now)));
  finish(loads[0]);
  TestSequence seq = start(text_of(1, 21));
  EXPECT_EQ(seq.cached, 20);
  EXPECT_EQ(cache->stats().blocks_hit, (std::array<uint64_t, 3>{0, 0, 5}));
  end(seq);
  EXPECT_TRUE(settle().empty());  // on disk they are already
}

TEST_F(PrefixCacheDisk, AFailedReadForgetsTheEntryAndAllBelow) {
  ASSERT_EQ(restore(written(1, 5)), 5);
  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 21), id), Fetch::kStarted);
  std::vector<Transfer> reads = transfers();
  TransferResult result{reads[0].id, 0.01, {0, 0, 1, 0, 0}};
  cache->finished(result, now);
  cache->check();
  std::vector<Transfer> loads = transfers();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].moves.size(), 2u);
  finish(loads[0]);
  EXPECT_EQ(cache->remaining(id, now), 0.0);
  PrefixCache::Match found = match(text_of(1, 21));
  EXPECT_EQ(found.device_blocks, 2);
  EXPECT_EQ(found.lower_blocks, 0);
  EXPECT_EQ(pool->num_available(), 16);
  EXPECT_EQ(cache->stats().blocks[2], 2);
}

TEST_F(PrefixCacheDisk, AnAbortedRequestsReadGoesNoFurther) {
  ASSERT_EQ(restore(written(1, 5)), 5);
  uint64_t id = 0;
  ASSERT_EQ(fetch(text_of(1, 21), id), Fetch::kStarted);
  std::vector<Transfer> reads = transfers();
  cache->cancel_fetch(id);
  EXPECT_EQ(pool->num_available(), 16);
  finish(reads[0]);
  EXPECT_TRUE(transfers().empty());
  EXPECT_EQ(cache->stats().blocks[1], 5);
}

TEST_F(PrefixCacheDisk, WhatTheDiskSaysIsNotBelieved) {
  const Records good = written(1, 5);
  Records other = written(2, 3, named(1));

  Records missing = good;
  missing.erase(missing.begin() + 2);
  EXPECT_EQ(restore(missing), 2);  // what hangs on what is missing is not taken

  Records twice = good;
  twice.insert(twice.end(), good.begin(), good.end());
  for (size_t i = 5; i < 10; ++i) twice[i].first += 30;  // the same entry in another slot
  EXPECT_EQ(restore(twice), 5);
  EXPECT_EQ(cache->stats().blocks[2], 5);

  Records slots = good;
  slots[1].first = slots[0].first;  // two entries in one slot
  EXPECT_EQ(restore(slots), 1);
  slots = good;
  slots[4].first = 64;
  slots[3].first = -1;
  EXPECT_EQ(restore(slots), 3);

  Records tokens = good;
  tokens[3].second.tokens[0] ^= 1;  // not those of the key
  EXPECT_EQ(restore(tokens), 3);
  tokens[3].second.tokens.pop_back();
  EXPECT_EQ(restore(tokens), 3);

  Records circle = good;
  circle[0].second.parent = circle[4].second.key;
  EXPECT_EQ(restore(circle), 0);
  circle = good;
  circle[4].second.parent = circle[4].second.key;  // its own
  EXPECT_EQ(restore(circle), 4);

  Records roots = good;
  roots[2].second.root = named(7);  // claims to be another tenant's
  EXPECT_EQ(restore(roots), 2);

  Records both = good;
  both.insert(both.end(), other.begin(), other.end());
  for (size_t i = 5; i < 8; ++i) both[i].first += 10;
  EXPECT_EQ(restore(both), 8);
  EXPECT_EQ(match(text_of(2, 13), named(1)).lower_blocks, 3);
  EXPECT_EQ(match(text_of(2, 13)).lower_blocks, 0);
  // All other slots are there to be written.
  TestSequence seq = start(text_of(5, 64));
  publish(seq);
  end(seq);
  EXPECT_EQ(records_of(settle()).size(), 16u);
}

TEST_F(PrefixCacheDisk, TheLeavesOfTheDiskLeaveFirst) {
  make(64, 64, 4);
  run(text_of(1, 3 * kBlock));
  settle();
  run(text_of(2, 3 * kBlock));
  settle();
  EXPECT_EQ(cache->stats().blocks[2], 4);
  EXPECT_EQ(cache->stats().evicted[2], 2u);
  EXPECT_EQ(cache->stats().blocks[1], 6);  // nothing else was touched
}

TEST_F(PrefixCacheDisk, WhatWasUnusedForLongestLeavesTheRestoredDiskFirst) {
  const Records first = written(1, 3), second = written(2, 3), third = written(3, 2);
  // In the order of last use: the second text, the third, the first; the root of each last.
  Records records;
  int64_t slot = 10;
  for (const Records* text : {&second, &third, &first})
    for (auto record = text->rbegin(); record != text->rend(); ++record)
      records.emplace_back(slot++, record->second);
  make(64, 64, 8 + 10);
  EXPECT_EQ(cache->restore(records), 8);
  cache->check();
  // Ten slots are free; what more is wanted is taken from the longest unused, its end first.
  const auto on_disk = [this](int text) { return match(text_of(text, 13)).lower_blocks; };
  run(text_of(4, 10 * kBlock));
  settle();
  EXPECT_EQ(cache->stats().evicted[2], 0u);
  run(text_of(5, 2 * kBlock));
  settle();
  EXPECT_EQ(on_disk(2), 1);
  run(text_of(6, 2 * kBlock));
  settle();
  EXPECT_EQ(on_disk(2), 0);
  EXPECT_EQ(on_disk(3), 1);
  EXPECT_EQ(on_disk(1), 3);
}

TEST_F(PrefixCacheDisk, TheDiskIsToldWhatIsUsed) {
  struct Told : DiskTier {
    bool can_read() const override { return true; }
    bool can_write() const override { return true; }
    void used(std::span<const int64_t> some) override { slots.insert(slots.end(), some.begin(), some.end()); }
    std::vector<int64_t> slots;
  };
  auto told = std::make_shared<Told>();
  make(64, 64, 64);
  config.disk = told;
  cache = nullptr;
  cache = std::make_unique<PrefixCache>(config, *pool);
  run(text_of(1, 3 * kBlock));
  const Records records = records_of(settle());
  ASSERT_EQ(records.size(), 3u);
  EXPECT_TRUE(told->slots.empty());
  run(text_of(1, 2 * kBlock + 1));
  EXPECT_TRUE(told->slots.empty());  // not while a step is planned
  cache->maintain(now);
  EXPECT_EQ(told->slots, (std::vector<int64_t>{records[1].first, records[0].first}));
  cache->maintain(now);
  EXPECT_EQ(told->slots.size(), 2u);
}

TEST_F(PrefixCacheDisk, AFailedWriteTakesBackWhatHangsOnIt) {
  make(64, 64, 64);
  run(text_of(1, 5 * kBlock));
  cache->maintain(now);
  for (const Transfer& transfer : transfers()) finish(transfer);  // stores
  cache->maintain(now);
  std::vector<Transfer> writes = transfers();
  ASSERT_EQ(writes.size(), 1u);
  ASSERT_EQ(writes[0].kind, TransferKind::kWrite);
  ASSERT_EQ(writes[0].disk.size(), 5u);
  cache->finished({writes[0].id, 0.01, {0, 1, 0, 0, 0}}, now);
  cache->check();
  EXPECT_EQ(cache->stats().blocks, (std::array<int64_t, 3>{5, 5, 1}));
}

TEST_F(PrefixCacheDisk, WithoutTheDiskTheOthersGoOn) {
  ASSERT_EQ(restore(written(1, 5)), 5);
  run(text_of(2, 3 * kBlock));
  settle();
  cache->drop_disk();
  cache->check();
  EXPECT_EQ(match(text_of(1, 21)).lower_blocks, 0);
  EXPECT_EQ(match(text_of(2, 13)).device_blocks, 3);
  EXPECT_EQ(cache->stats().capacity[2], 0);
  run(text_of(3, 3 * kBlock));
  EXPECT_TRUE(records_of(settle()).empty());
}

}  // namespace
}  // namespace taco
