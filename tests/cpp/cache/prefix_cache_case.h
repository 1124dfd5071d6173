// A pool and a prefix cache over it, and sequences that do with them what the scheduler does.
#pragma once

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "cache/prefix_cache.h"

namespace taco {

inline Digest named(int number) {
  Digest digest;
  for (size_t i = 0; i < 4; ++i) digest.bytes[i] = static_cast<uint8_t>(number >> (8 * i));
  return digest;
}

// `count` tokens that no other `text` shares.
inline std::vector<int32_t> text_of(int text, int count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), text * 100000);
  return tokens;
}

struct TestSequence {
  std::vector<int32_t> tokens;
  BlockTable table;
  PrefixCache::Attachment attachment;
  std::vector<uint64_t> wait_for;
  int32_t cached = 0;  // tokens
};

class PrefixCacheCase : public testing::Test {
 protected:
  static constexpr int kBlock = 4;
  void make(int64_t blocks, int64_t host = 0, int64_t disk = 0, int min_accesses = 1, int64_t max_idle = -1) {
    cache.reset();
    pool = std::make_unique<BlockPool>(blocks);
    config = {};
    config.block_size = kBlock;
    config.block_bytes = 1000;
    config.first_host_block = 100;
    config.num_host_blocks = host;
    config.num_disk_blocks = disk;
    config.min_accesses = min_accesses;
    config.max_idle_blocks = max_idle;
    cache = std::make_unique<PrefixCache>(config, *pool);
  }
  // Admits, in a step of its own.
  TestSequence start(const std::vector<int32_t>& tokens, const Digest& root = {}, bool loading = false) {
    TestSequence seq;
    seq.tokens = tokens;
    seq.cached = cache->attach(root, tokens, static_cast<int32_t>(tokens.size()) - 1, loading, seq.table,
                               seq.attachment, seq.wait_for);
    std::vector<BlockCopy> copies;
    make_writable(*pool, seq.table, seq.cached / kBlock,
                  blocks_for(static_cast<int64_t>(tokens.size()), kBlock), copies);
    EXPECT_TRUE(grow_table(*pool, seq.table, blocks_for(static_cast<int64_t>(tokens.size()), kBlock)));
    submit();
    return seq;
  }
  void submit() {
    swap_out.clear();
    waits.clear();
    cache->take_evictions(++step, swap_out, waits);
    cache->stepped(step);
  }
  // All its tokens have been computed.
  void publish(TestSequence& seq) {
    cache->publish(seq.tokens, static_cast<int32_t>(seq.tokens.size()) / kBlock, seq.table, seq.attachment);
    cache->check();
  }
  void end(TestSequence& seq) {
    release_table(*pool, seq.table);
    cache->check();
  }
  void run(const std::vector<int32_t>& tokens, const Digest& root = {}) {
    TestSequence seq = start(tokens, root);
    publish(seq);
    end(seq);
  }
  PrefixCache::Match match(const std::vector<int32_t>& tokens, const Digest& root = {}) {
    return cache->match(root, tokens, static_cast<int32_t>(tokens.size()) - 1);
  }
  // Another text takes the whole device.
  void displace(int64_t blocks) {
    run(text_of(90 + static_cast<int>(step), static_cast<int>(blocks) * kBlock));
  }
  // A cache of so many device blocks, all of them idle and clean, and the text on the host alone.
  void leave_on_host(const std::vector<int32_t>& tokens, int64_t blocks) {
    make(blocks, 3 * blocks);
    run(tokens);
    displace(blocks);
    for (const Transfer& transfer : settle()) EXPECT_EQ(transfer.kind, TransferKind::kStore);
    const auto size = static_cast<int32_t>(tokens.size());
    const PrefixCache::Match found = cache->match({}, tokens, size);
    EXPECT_EQ(found.device_blocks, 0);
    EXPECT_EQ(found.lower_blocks, size / kBlock);
  }
  using Fetch = PrefixCache::Fetch;
  Fetch fetch(const std::vector<int32_t>& tokens, uint64_t& id, int64_t spare = 0) {
    return cache->fetch({}, tokens, static_cast<int32_t>(tokens.size()) - 1, spare, now, id);
  }
  uint64_t begin_fetch(const std::vector<int32_t>& tokens) {
    uint64_t id = 0;
    EXPECT_EQ(fetch(tokens, id), Fetch::kStarted);
    return id;
  }
  std::vector<Transfer> transfers() {
    std::vector<Transfer> all;
    cache->take_transfers(all);
    return all;
  }
  // The transfers that were made, carried out at once.
  std::vector<Transfer> settle(bool fail = false) {
    std::vector<Transfer> all;
    for (;;) {
      cache->maintain(now);
      std::vector<Transfer> some;
      cache->take_transfers(some);
      if (some.empty()) return all;
      for (Transfer& transfer : some) {
        finish(transfer, fail);
        all.push_back(std::move(transfer));
      }
    }
  }
  void finish(const Transfer& transfer, bool fail = false) {
    TransferResult result{transfer.id, 0.001, {}};
    if (fail) result.failed.assign(std::max(transfer.moves.size(), transfer.disk.size()), 1);
    cache->finished(result, now += 0.001);
    cache->check();
  }

  std::unique_ptr<BlockPool> pool;
  PrefixCacheConfig config;
  std::unique_ptr<PrefixCache> cache;
  std::vector<BlockMove> swap_out;
  std::vector<uint64_t> waits;
  uint64_t step = 0;
  double now = 0.0;
};

}  // namespace taco
