// A naive model of all that the prefix cache's blocks go through: what stands in each block of each tier, and
// what steps and transfers do to it when they are carried out.
//
// Every block of every tier holds, for each token, a hash of all tokens up to there, which moves with copies
// and transfers. A step that reads anything else at the time at which it runs has hit a wrong or an
// unfinished block.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cache/prefix_cache.h"

namespace taco {

class NaiveWorld {
 public:
  static constexpr int kBlock = 4;
  static constexpr int64_t kFirstHost = 7;
  struct Shape {
    int64_t blocks, host, disk;
    int min_accesses;
    int64_t max_idle;
  };

 protected:
  using Content = std::array<uint64_t, kBlock>;
  struct Seq {
    std::vector<int32_t> tokens;
    std::vector<uint64_t> chain;  // of each token
    int root = 0;
    BlockTable table;
    PrefixCache::Attachment attachment;
    int computed = 0;   // when all that was submitted has run
    int committed = 0;  // of steps that were collected
    int in_flight = 0;
    bool running = false, dead = false;
    uint64_t fetch = 0;
  };
  struct Item {
    Seq* seq;
    BlockTable table;
    int start, count;
  };
  struct Step {
    uint64_t number = 0;
    std::vector<BlockMove> swap_out;
    std::vector<BlockCopy> copies;
    std::vector<Item> items;
    std::vector<uint64_t> wait_for;
    bool ran = false;
  };
  struct Moving {
    Transfer transfer;
    uint64_t after_step;
    bool begun = false;
    std::vector<size_t> left;
    std::vector<uint8_t> failed;
  };

  NaiveWorld(const Shape& shape, uint64_t seed) : shape_(shape), random_(seed), pool_(shape.blocks) {
    device_.resize(static_cast<size_t>(shape.blocks), Content{});
    host_.resize(static_cast<size_t>(kFirstHost + shape.host), Content{});
    make_cache();
  }

  uint64_t below(uint64_t count) { return random_() % count; }
  bool chance(int percent) { return below(100) < static_cast<uint64_t>(percent); }
  static Digest root_of(int number) {
    Digest digest;
    digest.bytes[5] = static_cast<uint8_t>(number);
    return digest;
  }

  // What is on disk, and what the cache told of it.
  struct Disk : DiskTier {
    bool can_read() const override { return true; }
    bool can_write() const override { return true; }
    void used(std::span<const int64_t> some) override {
      for (int64_t slot : some) {
        std::erase(order, slot);
        order.push_back(slot);
      }
    }
    uint64_t reset() override {
      blocks.clear();
      return ++resets;
    }
    bool settle() override { return true; }
    bool write(int64_t slot, const DiskRecord& record, const Content& content) {
      if (record.resets < resets) return false;
      EXPECT_EQ(record.resets, resets);
      blocks[slot] = {record, content};
      used({&slot, 1});
      return true;
    }
    std::map<int64_t, std::pair<DiskRecord, Content>> blocks;
    std::vector<int64_t> order;  // of use
    uint64_t resets = 0;
  };

  void make_cache() {
    PrefixCacheConfig config;
    disk_->resets = 0;
    config.disk = disk_;
    config.block_size = kBlock;
    config.block_bytes = 1 << 20;
    config.first_host_block = kFirstHost;
    config.num_host_blocks = shape_.host;
    config.num_disk_blocks = shape_.disk;
    config.min_accesses = shape_.min_accesses;
    config.max_idle_blocks = shape_.max_idle;
    config.seed = random_() | 1;
    if (chance(30)) config.hash_mask = 3;
    cache_ = std::make_unique<PrefixCache>(config, pool_);
  }

  static uint64_t chained(uint64_t before, int32_t token) {
    uint64_t x = (before ^ static_cast<uint64_t>(token + 1) * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull;
    return (x ^ x >> 32) | 1;
  }
  static void add_chain(Seq& seq) {
    uint64_t hash = static_cast<uint64_t>(seq.root) * 2 + 12345;
    seq.chain.clear();
    for (int32_t token : seq.tokens) seq.chain.push_back(hash = chained(hash, token));
  }

  // -- What is carried out

  void begin_transfers() {
    std::vector<Transfer> transfers;
    cache_->take_transfers(transfers);
    for (Transfer& transfer : transfers) {
      Moving moving;
      const size_t size = std::max(transfer.moves.size(), transfer.disk.size());
      ASSERT_GT(size, 0u);
      for (size_t i = 0; i < size; ++i) moving.left.push_back(i);
      moving.failed.assign(size, 0);
      moving.after_step = next_step_;  // steps below: submitted, or run long ago
      moving.transfer = std::move(transfer);
      moving_.push_back(std::move(moving));
    }
  }

  bool finished_moving(uint64_t id) const {
    for (const Moving& moving : moving_) {
      if (moving.transfer.id == id) return moving.left.empty();
    }
    return true;
  }

  // One thing that may happen now, whichever: the next step, or some blocks of a transfer.
  void execute() {
    std::vector<Moving*> ready;
    for (Moving& moving : moving_) {
      if (moving.left.empty()) continue;
      const bool on_device = !moving.transfer.moves.empty();
      bool waits = false;
      for (const Step& step : flights_) waits |= on_device && !step.ran && step.number < moving.after_step;
      if (!waits) ready.push_back(&moving);
    }
    Step* next = nullptr;
    for (Step& step : flights_) {
      if (step.ran) continue;
      next = &step;
      break;
    }
    if (next) {
      for (uint64_t id : next->wait_for) {
        if (!finished_moving(id)) next = nullptr;
        if (!next) break;
      }
    }
    const size_t choices = ready.size() + (next ? 1 : 0);
    if (choices == 0) return;
    const size_t choice = below(choices);
    if (choice == ready.size()) return run_step(*next);
    for (uint64_t i = 1 + below(3); i > 0; --i) move_one(*ready[choice]);
  }

  void run_step(Step& step) {
    step.ran = true;
    for (const BlockMove& move : step.swap_out) host_at(move.host) = device_at(move.device);
    for (const BlockCopy& copy : step.copies) device_at(copy.to) = device_at(copy.from);
    // All is read before anything is written: the sequences of a step do not see each other.
    for (const Item& item : step.items) {
      if (item.seq->dead) continue;
      for (int t = 0; t < item.start; ++t) {
        const BlockId block = item.table[static_cast<size_t>(t / kBlock)];
        ASSERT_EQ(device_at(block)[static_cast<size_t>(t % kBlock)], item.seq->chain[static_cast<size_t>(t)])
            << "step " << step.number << " reads token " << t << " in block " << block;
      }
    }
    for (const Item& item : step.items) {
      for (int t = item.start; t < item.start + item.count; ++t) {
        Content& content = device_at(item.table[static_cast<size_t>(t / kBlock)]);
        content[static_cast<size_t>(t % kBlock)] = item.seq->chain[static_cast<size_t>(t)];
      }
    }
  }

  void move_one(Moving& moving) {
    if (moving.left.empty()) return;
    const Transfer& transfer = moving.transfer;
    if (!moving.begun) {
      moving.begun = true;
      for (const BlockMove& move : transfer.moves) {
        (transfer.kind == TransferKind::kLoad ? device_at(move.device) : host_at(move.host)) = Content{};
      }
      for (const DiskMove& move : transfer.disk) {
        if (transfer.kind == TransferKind::kRead) host_at(move.host) = Content{};
        if (transfer.kind == TransferKind::kWrite) disk_->blocks.erase(move.slot);
      }
    }
    const size_t at = below(moving.left.size());
    const size_t i = moving.left[at];
    moving.left.erase(moving.left.begin() + static_cast<long>(at));
    const bool fails = transfer.kind != TransferKind::kLoad && below(60) == 0;
    moving.failed[i] = fails;
    if (fails) return;
    switch (transfer.kind) {
      case TransferKind::kStore:
        host_at(transfer.moves[i].host) = device_at(transfer.moves[i].device);
        break;
      case TransferKind::kLoad:
        device_at(transfer.moves[i].device) = host_at(transfer.moves[i].host);
        break;
      case TransferKind::kWrite:
        moving.failed[i] =
            !disk_->write(transfer.disk[i].slot, transfer.records.at(i), host_at(transfer.disk[i].host));
        break;
      case TransferKind::kRead: {
        auto found = disk_->blocks.find(transfer.disk[i].slot);
        if (found == disk_->blocks.end() && transfer.records.at(i).resets < disk_->resets) {
          moving.failed[i] = 1;
          break;
        }
        ASSERT_TRUE(found != disk_->blocks.end());
        ASSERT_EQ(found->second.first.key, transfer.records.at(i).key);
        host_at(transfer.disk[i].host) = found->second.second;
        break;
      }
    }
  }

  // -- What must hold

  // Nothing is found that nobody published.
  void check_match(int root, const std::vector<int32_t>& tokens) {
    const auto length = static_cast<int32_t>(tokens.size());
    const PrefixCache::Match match = cache_->match(root_of(root), tokens, length);
    const int found = match.device_blocks + match.loading_blocks + match.lower_blocks;
    Seq seq;
    seq.root = root;
    seq.tokens = tokens;
    add_chain(seq);
    for (int i = 0; i < found; ++i) {
      ASSERT_TRUE(published_.contains(seq.chain[static_cast<size_t>((i + 1) * kBlock) - 1]));
    }
  }

  // free + idle + in use = total; the tables' holds are among those in use.
  void check_pool() {
    int64_t used = 0;
    std::vector<int32_t> holders(static_cast<size_t>(pool_.size()));
    for (const Seq& seq : seqs_) {
      for (BlockId block : seq.table) ++holders[static_cast<size_t>(block)];
    }
    const bool exact = !cache_->busy() && cache_->stats().fetches == 0;
    for (BlockId block = 0; block < pool_.size(); ++block) {
      const int32_t users = pool_.num_users(block);
      used += users > 0;
      ASSERT_GE(users, holders[static_cast<size_t>(block)]);
      if (exact) {
        ASSERT_EQ(users, holders[static_cast<size_t>(block)]);
      }
    }
    ASSERT_EQ(pool_.num_free() + pool_.num_idle() + used, pool_.size());
  }

  Content& device_at(BlockId block) { return device_.at(static_cast<size_t>(block)); }
  Content& host_at(BlockId block) {
    EXPECT_GE(block, kFirstHost);
    return host_.at(static_cast<size_t>(block));
  }

  Shape shape_;
  std::mt19937_64 random_;
  BlockPool pool_;
  std::unique_ptr<PrefixCache> cache_;
  std::vector<Content> device_, host_;
  std::shared_ptr<Disk> disk_ = std::make_shared<Disk>();
  std::list<Seq> seqs_;
  std::deque<Step> flights_;
  std::list<Moving> moving_;
  std::unordered_set<uint64_t> published_;
  uint64_t next_step_ = 1;
  double now_ = 0.0;
};

}  // namespace taco
