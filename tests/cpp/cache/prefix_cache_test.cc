// The device tier.
#include "cache/prefix_cache.h"

#include "prefix_cache_case.h"

namespace taco {
namespace {

class PrefixCacheTest : public PrefixCacheCase {};

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_F(PrefixCacheTest, ReusesFullBlocksOfTheLongestPrefix) {
  make(16);
  TestSequence first = start(text_of(1, 10));
  EXPECT_EQ(first.cached, 0);
  publish(first);  // two full blocks, and two tokens that are not kept
  EXPECT_EQ(cache->stats().entries, 2);

  std::vector<int32_t> longer = text_of(1, 8) + text_of(2, 5);
  PrefixCache::Match found = match(longer);
  EXPECT_EQ(found.device_blocks, 2);
  EXPECT_EQ(found.idle_blocks, 0);  // `first` uses them
  TestSequence second = start(longer);
  EXPECT_EQ(second.cached, 8);
  EXPECT_EQ(second.table[0], first.table[0]);
  EXPECT_EQ(second.table[1], first.table[1]);
  EXPECT_NE(second.table[2], first.table[2]);
  publish(second);
  EXPECT_EQ(cache->stats().entries, 3);
  end(first);
  end(second);
  EXPECT_EQ(pool->num_idle(), 3);
  EXPECT_EQ(pool->num_available(), 16);
  EXPECT_EQ(match(longer).idle_blocks, 3);
  EXPECT_EQ(match(longer, named(1)).device_blocks, 0);  // another tenant
}

TEST_F(PrefixCacheTest, OneTokenIsLeftToCompute) {
  make(16);
  run(text_of(1, 8));
  PrefixCache::Match found = match(text_of(1, 8));
  EXPECT_EQ(found.device_blocks, 1);
  EXPECT_EQ(found.tail_tokens, 3);
  EXPECT_EQ(found.idle_blocks, 2);
  EXPECT_EQ(found.tokens(kBlock, true), 7);
  TestSequence again = start(text_of(1, 8));
  EXPECT_EQ(again.cached, 7);
  EXPECT_NE(again.table[1], 1);  // its own copy
  publish(again);                // has the cache's block again, in exchange
  EXPECT_EQ(again.table, (BlockTable{0, 1}));
  EXPECT_EQ(cache->stats().exchanged, 1u);
  end(again);
  EXPECT_EQ(pool->num_free(), 14);
}

TEST_F(PrefixCacheTest, TheTailOfABlockIsShared) {
  make(16);
  run(text_of(1, 12));
  run(text_of(1, 5) + text_of(3, 3));  // a shorter tail is newer
  std::vector<int32_t> diverges = text_of(1, 6) + text_of(2, 8);
  PrefixCache::Match found = match(diverges);
  EXPECT_EQ(found.device_blocks, 1);
  EXPECT_EQ(found.tail_tokens, 2);
  TestSequence seq = start(diverges);
  EXPECT_EQ(seq.cached, 6);
  publish(seq);
  EXPECT_EQ(match(diverges + text_of(4, 1)).device_blocks, 3);
  EXPECT_EQ(match(text_of(1, 12) + text_of(4, 1)).device_blocks, 3);  // untouched
  end(seq);
}

TEST_F(PrefixCacheTest, TwoSequencesThatComputeTheSameShareAfterwards) {
  make(16);
  TestSequence a = start(text_of(1, 12));
  TestSequence b = start(text_of(1, 12));
  EXPECT_EQ(b.cached, 0);
  publish(a);
  EXPECT_NE(a.table[0], b.table[0]);
  publish(b);
  EXPECT_EQ(a.table, b.table);
  EXPECT_EQ(pool->num_free(), 13);
  EXPECT_EQ(pool->num_users(a.table[0]), 2);
  end(a);
  EXPECT_EQ(pool->num_idle(), 0);
  end(b);
  EXPECT_EQ(pool->num_idle(), 3);
}

TEST_F(PrefixCacheTest, ForksPublishTheBlocksThatTheyShare) {
  make(16);
  TestSequence first = start(text_of(1, 6));
  TestSequence second = first;
  second.table = fork_table(*pool, first.table, 2);
  publish(first);
  publish(second);
  EXPECT_EQ(cache->stats().entries, 1);
  EXPECT_EQ(cache->stats().exchanged, 0u);
  EXPECT_EQ(pool->num_users(first.table[0]), 2);
  end(first);
  end(second);
  EXPECT_EQ(pool->num_idle(), 1);
}

TEST_F(PrefixCacheTest, GivesUpTheLeafThatWasUnusedLongest) {
  make(8);
  run(text_of(1, 12));
  run(text_of(2, 12));
  EXPECT_EQ(pool->num_free(), 2);
  run(text_of(1, 13));  // used again
  TestSequence taker = start(text_of(3, 16));
  // Two were free, two more are of the second text, its end first.
  EXPECT_EQ(match(text_of(1, 13)).device_blocks, 3);
  EXPECT_EQ(match(text_of(2, 13)).device_blocks, 1);
  EXPECT_EQ(pool->num_free(), 0);
  EXPECT_EQ(cache->stats().evicted[0], 2u);
  EXPECT_TRUE(swap_out.empty());
  end(taker);
}

TEST_F(PrefixCacheTest, AttachedBlocksAreNeverGivenUp) {
  make(6);
  run(text_of(1, 16));
  TestSequence holder = start(text_of(1, 9));  // two blocks, and one of its own
  EXPECT_EQ(pool->num_available(), 3);
  EXPECT_EQ(match(text_of(1, 16)).device_blocks, 3);
  TestSequence other = start(text_of(2, 12));
  EXPECT_EQ(pool->num_available(), 0);
  EXPECT_EQ(match(text_of(1, 16)).device_blocks, 2);
  EXPECT_THROW(pool->allocate(), Error);
  cache->check();
  end(other);
  end(holder);
}

TEST_F(PrefixCacheTest, ResetForgetsWhatIsIdleAndDetachesWhoIsThere) {
  make(16);
  run(text_of(2, 8));
  TestSequence seq = start(text_of(1, 10));
  publish(seq);
  seq.tokens = text_of(1, 12);
  cache->reset();
  cache->check();
  EXPECT_EQ(cache->stats().entries, 0);
  EXPECT_EQ(pool->num_free(), 13);
  EXPECT_EQ(pool->num_users(seq.table[0]), 1);
  publish(seq);
  EXPECT_EQ(cache->stats().entries, 0);
  end(seq);
  EXPECT_EQ(pool->num_free(), 16);
  run(text_of(1, 8));
  EXPECT_EQ(match(text_of(1, 9)).device_blocks, 2);
}

TEST_F(PrefixCacheTest, IdleBlocksAreLimited) {
  make(16, 0, 0, 1, 2);
  TestSequence a = start(text_of(1, 16));
  publish(a);
  end(a);
  EXPECT_EQ(pool->num_idle(), 4);
  cache->maintain(0.0);
  cache->check();
  EXPECT_EQ(pool->num_idle(), 2);
  EXPECT_EQ(match(text_of(1, 17)).device_blocks, 2);
}

TEST_F(PrefixCacheTest, ManyChildrenOfOneRoot) {
  constexpr int kCount = 100000;
  make(kCount);
  TestSequence seq;
  for (int i = 0; i < kCount; ++i) {
    seq = TestSequence();
    seq.tokens = {i, i / 7, 1, 2};
    cache->attach({}, seq.tokens, 0, false, seq.table, seq.attachment, seq.wait_for);
    ASSERT_TRUE(grow_table(*pool, seq.table, 1));
    cache->publish(seq.tokens, 1, seq.table, seq.attachment);
    release_table(*pool, seq.table);
  }
  EXPECT_EQ(pool->num_idle(), kCount);
  for (int i = 0; i < kCount; i += 999) EXPECT_EQ(match({i, i / 7, 1, 2, 0}).device_blocks, 1);
  EXPECT_EQ(match({1, 1, 1, 1, 0}).device_blocks, 0);
  cache->check();
  cache->reset();
  EXPECT_EQ(pool->num_free(), kCount);
}

TEST_F(PrefixCacheTest, CollidingHashesMatchByTokensOnly) {
  make(64);
  config.hash_mask = 1;
  cache.reset();
  cache = std::make_unique<PrefixCache>(config, *pool);
  for (int i = 0; i < 12; ++i) run(text_of(i, 20), named(i % 3));
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(match(text_of(i, 21), named(i % 3)).device_blocks, 5);
    EXPECT_EQ(match(text_of(i, 21), named((i + 1) % 3)).device_blocks, 0);
  }
  TestSequence all = start(text_of(99, 200));  // and the table without what had to leave
  for (int i = 11; i >= 0; --i) EXPECT_LE(match(text_of(i, 21), named(i % 3)).device_blocks, 5);
  cache->check();
  end(all);
}

TEST_F(PrefixCacheTest, CountsLookupsOncePerRequest) {
  make(16);
  run(text_of(1, 12));
  TestSequence seq = start(text_of(1, 13));
  end(seq);  // preempted
  seq.cached = cache->attach({}, seq.tokens, 12, false, seq.table, seq.attachment, seq.wait_for);
  EXPECT_EQ(seq.cached, 12);
  PrefixCacheStats stats = cache->stats();
  EXPECT_EQ(stats.lookups, 2u);
  EXPECT_EQ(stats.tokens_queried, 25u);
  EXPECT_EQ(stats.tokens_hit[0], 12u);
  EXPECT_EQ(stats.blocks_queried, 6u);
  EXPECT_EQ(stats.blocks_hit[0], 3u);
  std::vector<HotPrefix> hot = cache->hottest(5);
  ASSERT_EQ(hot.size(), 1u);  // one prefix, told by its end
  EXPECT_EQ(hot[0].tokens, 12);
  EXPECT_EQ(hot[0].accesses, 2);
  Digest key = {};
  for (int i = 0; i < 3; ++i)
    key = block_key(key, std::span<const int32_t>(seq.tokens).subspan(size_t(i) * 4, 4));
  EXPECT_EQ(hot[0].digest, hex(key));
  end(seq);
}

// What stores took says what loads will take, until one was measured. One bad moment is not enough for that,
// and a bad estimate does not last.
TEST_F(PrefixCacheTest, FetchesOnlyWhatComputingWouldNotGiveSooner) {
  make(8, 32);
  auto store = [&](int number) {
    const auto text = text_of(number, 8 * kBlock);
    run(text);
    cache->maintain(now);
    settle();  // at a millisecond a transfer
    return text;
  };
  const double first = cache->stats().store_speed;
  store(10);
  store(11);
  EXPECT_GT(cache->stats().store_speed, first);
  const double once = cache->stats().store_speed;
  for (int i = 12; i < 60; ++i) store(i);
  EXPECT_LT(cache->stats().store_speed, once / 100);
  const auto text = store(1);
  store(2);  // takes the first one's blocks
  store(3);
  ASSERT_EQ(match(text).lower_blocks, 7);
  auto fetch = [&](uint64_t& id) { return cache->fetch({}, text, 8 * kBlock - 1, 0, now, id); };
  uint64_t id = 0;
  cache->measured_prefill(1000000, 25.0);  // 0.1 ms a block
  EXPECT_EQ(fetch(id), PrefixCache::Fetch::kNone);
  EXPECT_EQ(cache->stats().fetches_declined, 1u);
  int tries = 1;
  while (tries < 100 && fetch(id) == PrefixCache::Fetch::kNone) ++tries;
  EXPECT_GT(tries, 3);
  EXPECT_LT(tries, 100);
  settle();
  EXPECT_EQ(match(text).device_blocks, 7);
}

TEST_F(PrefixCacheTest, BadSettings) {
  BlockPool blocks(4);
  auto rejects = [&](auto&& change) {
    PrefixCacheConfig bad;
    change(bad);
    EXPECT_THROW(PrefixCache(bad, blocks), Error);
  };
  rejects([](PrefixCacheConfig& c) { c.block_size = 0; });
  rejects([](PrefixCacheConfig& c) { c.num_host_blocks = -1; });
  rejects([](PrefixCacheConfig& c) { c.num_disk_blocks = 5; });
  rejects([](PrefixCacheConfig& c) { c.min_accesses = 0; });
  rejects([](PrefixCacheConfig& c) { c.max_idle_blocks = -2; });
  rejects([](PrefixCacheConfig& c) { c.num_host_blocks = int64_t{1} << 40; });
}

}  // namespace
}  // namespace taco
