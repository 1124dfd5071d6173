// The disk below the host: what is written and when, what a restart finds, what is read back.
#include <algorithm>
#include <cmath>
#include <memory>

#include "cache/block_key.h"
#include "prefix_cache_case.h"

namespace taco {
namespace {

class PrefixCacheDisk : public PrefixCacheCase {
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
  const uint64_t id = begin_fetch(text_of(1, 21));
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
  const uint64_t id = begin_fetch(text_of(1, 21));
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
  const uint64_t id = begin_fetch(text_of(1, 21));
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

struct Told : DiskTier {
  bool can_read() const override { return true; }
  bool can_write() const override { return true; }
  uint64_t reset() override { return ++resets; }
  bool settle() override { return true; }
  void used(std::span<const int64_t> some) override { slots.insert(slots.end(), some.begin(), some.end()); }
  std::vector<int64_t> slots;
  uint64_t resets = 0;
};

TEST_F(PrefixCacheDisk, TheDiskIsToldWhatIsUsed) {
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

TEST_F(PrefixCacheDisk, AResetReachesTheDisk) {
  auto told = std::make_shared<Told>();
  make(64, 64, 64);
  config.disk = told;
  cache = nullptr;
  EXPECT_EQ(told->resets, 0u);
  cache = std::make_unique<PrefixCache>(config, *pool);
  run(text_of(1, 3 * kBlock));
  cache->maintain(now);
  for (const Transfer& transfer : transfers()) finish(transfer);  // the stores
  cache->maintain(now);
  const std::vector<Transfer> writes = transfers();
  ASSERT_EQ(writes.size(), 1u);
  EXPECT_EQ(writes[0].records[0].resets, 0u);
  run(text_of(1, 3 * kBlock));
  cache->reset();
  EXPECT_EQ(told->resets, 1u);
  cache->maintain(now);
  EXPECT_TRUE(told->slots.empty());  // of before
  // What the disk did not write any more is not missed.
  finish(writes[0], true);
  EXPECT_EQ(cache->stats().failed, 0u);
  EXPECT_EQ(match(text_of(1, 13)).device_blocks, 0);
  run(text_of(1, 3 * kBlock));
  const std::vector<Transfer> later = settle();
  ASSERT_EQ(records_of(later).size(), 3u);
  for (const auto& [slot, record] : records_of(later)) EXPECT_EQ(record.resets, 1u);
  cache = nullptr;  // the end of a cache is no reset
  EXPECT_EQ(told->resets, 1u);
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
