// Transfers beside the steps, on the CPU backend: contents against a naive model, order, the disk, failures.
#include "exec/kv_transfer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <map>
#include <random>
#include <set>

#include "base/error.h"

namespace taco {
namespace {

using namespace std::chrono_literals;

// A device of its own with bytes that say where they came from.
struct Rig {
  Rig(int layers, int64_t device_blocks, int64_t host_blocks, size_t layer_bytes,
      KvTransfer::Options options = {})
      : layers(layers), device_blocks(device_blocks), layer_bytes(layer_bytes) {
    device.resize(static_cast<size_t>(layers) * static_cast<size_t>(device_blocks) * layer_bytes);
    host = std::make_shared<HostBlocks>(backend, host_blocks, layer_bytes * static_cast<size_t>(layers));
    transfers = std::make_unique<KvTransfer>(
        backend,
        KvTransfer::DeviceBlocks{
            .data = device.data(), .layers = layers, .num_blocks = device_blocks, .layer_bytes = layer_bytes},
        host, std::move(options));
    transfers->on_finished([this] { ++wakes; });
  }
  char* device_at(BlockId block, int layer) {
    return device.data() +
           (static_cast<size_t>(layer) * static_cast<size_t>(device_blocks) + static_cast<size_t>(block)) *
               layer_bytes;
  }
  char* host_at(BlockId block, int layer) {
    return host->block(block) + static_cast<size_t>(layer) * layer_bytes;
  }
  static char value(uint32_t content, int layer, size_t i) {
    return static_cast<char>(content * 131u + static_cast<uint32_t>(layer) * 29u +
                             static_cast<uint32_t>(i) * 7u + (content >> 8) * 17u);
  }
  void fill(bool on_device, BlockId block, uint32_t content) {
    for (int l = 0; l < layers; ++l)
      for (size_t i = 0; i < layer_bytes; ++i)
        (on_device ? device_at(block, l) : host_at(block, l))[i] = value(content, l, i);
  }
  bool holds(bool on_device, BlockId block, uint32_t content) {
    for (int l = 0; l < layers; ++l)
      for (size_t i = 0; i < layer_bytes; ++i)
        if ((on_device ? device_at(block, l) : host_at(block, l))[i] != value(content, l, i)) return false;
    return true;
  }
  uint64_t begin(TransferKind kind, std::vector<BlockMove> moves, uint64_t after = 0) {
    Transfer t;
    t.id = ++last_id, t.kind = kind, t.moves = std::move(moves), t.after = after;
    transfers->begin(t);
    return t.id;
  }
  uint64_t begin_disk(TransferKind kind, std::vector<DiskMove> moves, uint64_t after = 0) {
    Transfer t;
    t.id = ++last_id, t.kind = kind, t.disk = std::move(moves), t.after = after;
    t.records.resize(t.disk.size());
    transfers->begin(t);
    return t.id;
  }
  // Until these have finished, with their results.
  std::map<uint64_t, TransferResult> collect(std::set<uint64_t> ids) {
    const auto deadline = std::chrono::steady_clock::now() + 2min;
    while (!ids.empty() && std::chrono::steady_clock::now() < deadline) {
      std::vector<TransferResult> got;
      transfers->finished(got);
      for (TransferResult& r : got) results[r.id] = r;
      std::erase_if(ids, [&](uint64_t id) { return results.count(id) > 0; });
      if (!ids.empty()) std::this_thread::sleep_for(200us);
    }
    EXPECT_TRUE(ids.empty()) << ids.size() << " transfers did not finish";
    return results;
  }

  std::shared_ptr<Backend> backend = make_cpu_backend(1);
  int layers;
  int64_t device_blocks;
  size_t layer_bytes;
  std::vector<char> device;
  std::shared_ptr<HostBlocks> host;
  std::atomic<int> wakes{0};
  uint64_t last_id = 0;
  std::map<uint64_t, TransferResult> results;
  std::unique_ptr<KvTransfer> transfers;  // the first to go
};

// Blocks that open transfers touch: a new transfer may come `after` one of them, and must stay away from
// others.
struct Claims {
  std::map<uint64_t, std::pair<std::set<BlockId>, std::set<BlockId>>>
      open;  // device, host blocks by transfer
  // The transfers that touch one of these blocks.
  std::set<uint64_t> of(const BlockMove& move) const {
    std::set<uint64_t> found;
    for (const auto& [id, blocks] : open)
      if (blocks.first.count(move.device) || blocks.second.count(move.host)) found.insert(id);
    return found;
  }
};

class KvTransferRandom : public ::testing::TestWithParam<std::tuple<int, int, bool>> {};

TEST_P(KvTransferRandom, ContentsAreThoseOfANaiveModel) {
  const auto [layers, layer_bytes, by_layer] = GetParam();
  constexpr int kDevice = 24, kHost = 20;
  KvTransfer::Options options;
  options.by_layer = by_layer;
  options.group_bytes = static_cast<size_t>(layer_bytes) * 5;  // several groups for most transfers
  options.store_bytes = static_cast<size_t>(layer_bytes * layers) * 2;
  Rig rig(layers, kDevice, kHost, static_cast<size_t>(layer_bytes), options);
  std::mt19937 random(static_cast<unsigned>(layers * 1000 + layer_bytes));
  std::vector<uint32_t> device(kDevice), host(kHost);
  uint32_t content = 0;
  for (BlockId b = 0; b < kDevice; ++b) rig.fill(true, b, device[static_cast<size_t>(b)] = ++content);
  for (BlockId b = 0; b < kHost; ++b) rig.fill(false, b, host[static_cast<size_t>(b)] = ++content);
  Claims claims;
  int chained = 0, steps = 0;
  // How fast the threads are decides how much is open at a time.
  for (int round = 0; round < 400 || (round < 50000 && (chained < 20 || steps < 20)); ++round) {
    const TransferKind kind = random() % 2 ? TransferKind::kLoad : TransferKind::kStore;
    std::vector<BlockMove> moves;
    std::set<BlockId> devices, hosts;
    std::set<uint64_t> before;
    const size_t wanted = 1 + random() % 6;
    for (int attempt = 0; attempt < 12 && moves.size() < wanted; ++attempt) {
      const BlockMove move{static_cast<BlockId>(random() % kDevice), static_cast<BlockId>(random() % kHost)};
      if (devices.count(move.device) || hosts.count(move.host)) continue;
      std::set<uint64_t> all = claims.of(move);
      all.insert(before.begin(), before.end());
      if (all.size() > 1) continue;
      before = all;
      moves.push_back(move);
      devices.insert(move.device), hosts.insert(move.host);
    }
    if (!moves.empty()) {
      const uint64_t id = rig.begin(kind, moves, before.empty() ? 0 : *before.begin());
      chained += !before.empty();
      claims.open[id] = {devices, hosts};
      for (const BlockMove& m : moves) {
        auto d = static_cast<size_t>(m.device), h = static_cast<size_t>(m.host);
        if (kind == TransferKind::kLoad) device[d] = host[h];
        if (kind == TransferKind::kStore) host[h] = device[d];
      }
    }
    std::vector<TransferResult> got;
    rig.transfers->finished(got);
    for (const TransferResult& r : got) {
      EXPECT_TRUE(r.failed.empty());
      EXPECT_GE(r.seconds, 0);
      claims.open.erase(r.id);
    }
    if (random() % 4 != 0 || claims.open.empty()) continue;
    if (random() % 8 == 0) {  // a step that waits for all of them
      std::vector<uint64_t> ids;
      for (const auto& [id, blocks] : claims.open) ids.push_back(id);
      rig.transfers->wait_all(rig.transfers->wait_for(ids));
      for (BlockId b = 0; b < kDevice; ++b)
        ASSERT_TRUE(rig.holds(true, b, device[static_cast<size_t>(b)])) << b;
      claims.open.clear();
      continue;
    }
    // A step that waits for one of them, layer by layer if it is a load, and then writes what was moved.
    const uint64_t id =
        std::next(claims.open.begin(), static_cast<long>(random() % claims.open.size()))->first;
    const KvTransfer::Loads loads = rig.transfers->wait_for(std::vector<uint64_t>{id});
    const std::set<BlockId> blocks = claims.open[id].first;
    for (int l = 0; l < layers; ++l) {
      rig.transfers->wait_layer(loads, l);
      for (BlockId b : blocks) {
        if (loads.empty() || claims.of({b, -1}) != std::set<uint64_t>{id}) continue;
        for (size_t i = 0; i < rig.layer_bytes; i += 3)
          ASSERT_EQ(rig.device_at(b, l)[i], Rig::value(device[static_cast<size_t>(b)], l, i));
      }
    }
    for (BlockId b : blocks)
      if (claims.of({b, -1}) == std::set<uint64_t>{id}) {
        rig.fill(true, b, device[static_cast<size_t>(b)] = ++content);
        ++steps;
      }
    claims.open.erase(id);
  }
  std::set<uint64_t> left;
  for (const auto& [id, blocks] : claims.open) left.insert(id);
  rig.collect(left);
  EXPECT_GE(chained, 20);
  EXPECT_GE(steps, 20);
  EXPECT_GT(rig.wakes, 0);
  for (BlockId b = 0; b < kDevice; ++b) EXPECT_TRUE(rig.holds(true, b, device[static_cast<size_t>(b)])) << b;
  for (BlockId b = 0; b < kHost; ++b) EXPECT_TRUE(rig.holds(false, b, host[static_cast<size_t>(b)])) << b;
}
// Bytes of a layer: 2 heads of 8 in float32, float16 and FP8 with blocks of 8, 16 and 32 tokens, and odd
// ones.
INSTANTIATE_TEST_SUITE_P(All, KvTransferRandom,
                         ::testing::Combine(::testing::Values(1, 2, 3, 7),
                                            ::testing::Values(256, 1024, 4096, 333), ::testing::Bool()));

// Pages are pinned by several threads, in any order; some cannot be.
TEST(HostBlocks, AreReadyPieceByPiece) {
  constexpr size_t kBlock = (3 << 20) + 1024;  // pieces begin where a block and a page do
  std::mutex mutex;
  std::set<void*> pinned;
  int calls = 0;
  HostPinning pinning{.pin =
                          [&](void* data, size_t bytes) {
                            std::this_thread::sleep_for(1ms);
                            std::lock_guard lock(mutex);
                            EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 4096 + bytes % 4096, 0u);
                            if (++calls == 2) throw std::runtime_error("no more memory");
                            EXPECT_TRUE(pinned.insert(data).second);
                          },
                      .unpin =
                          [&](void* data) {
                            std::lock_guard lock(mutex);
                            EXPECT_EQ(pinned.erase(data), 1u);
                          }};
  {
    HostBlocks blocks(pinning, 60, kBlock);
    int ready = 0;
    for (int64_t b = 59; b >= 0; --b) {
      if (!blocks.wait(b)) continue;
      ++ready;
      blocks.block(b)[0] = blocks.block(b)[kBlock - 1] = 1;
    }
    EXPECT_GT(ready, 30);
    EXPECT_LT(ready, 60);  // the piece that failed
    EXPECT_GE(blocks.num_ready(), 0);
    EXPECT_LE(blocks.num_ready(), ready);
    EXPECT_FALSE(pinned.empty());
  }
  EXPECT_TRUE(pinned.empty());
  { HostBlocks blocks(pinning, 200, kBlock); }  // ends in the midst of it
  EXPECT_TRUE(pinned.empty());
}

TEST(KvTransfer, BlocksWithoutMemoryFailAlone) {
  constexpr size_t kBlock = 64 << 10;
  std::atomic<int> calls{0};
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  auto host = std::make_shared<HostBlocks>(HostPinning{.pin =
                                                           [&](void*, size_t) {
                                                             open.wait();
                                                             if (++calls > 1)
                                                               throw std::runtime_error("none");
                                                           },
                                                       .unpin = [](void*) {}},
                                           1500, kBlock);  // two pieces
  std::vector<char> device(4 * kBlock, 7);
  KvTransfer transfers(make_cpu_backend(1),
                       {.data = device.data(), .layers = 1, .num_blocks = 4, .layer_bytes = kBlock}, host,
                       {});
  transfers.begin({.id = 1, .kind = TransferKind::kStore, .moves = {{0, 0}, {1, 1499}, {2, 1}}});
  gate.set_value();
  std::vector<TransferResult> results;
  for (int i = 0; i < 120000 && results.empty(); ++i) {
    transfers.finished(results);
    std::this_thread::sleep_for(1ms);
  }
  ASSERT_EQ(results.size(), 1u);
  // One of the two pieces failed, whichever was second.
  const std::vector<uint8_t> first{0, 1, 0}, second{1, 0, 1};
  EXPECT_TRUE(results[0].failed == first || results[0].failed == second);
  EXPECT_EQ(host->wait(0) ? host->block(1)[5] : host->block(1499)[5], 7);
}

TEST(KvTransfer, StoresAndLoadsRunBesideASlowDisk) {
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  KvTransfer::Options options;
  options.disk.read = [open](std::span<BlockRead> blocks) {
    open.wait();
    for (BlockRead& block : blocks) block.done = true;
  };
  Rig rig(3, 4, 4, 64, options);
  rig.fill(true, 1, 11);
  const uint64_t read = rig.begin_disk(TransferKind::kRead, {{0, 5}});
  const uint64_t behind = rig.begin(TransferKind::kLoad, {{0, 0}}, read);
  const uint64_t store = rig.begin(TransferKind::kStore, {{1, 2}});
  const uint64_t load = rig.begin(TransferKind::kLoad, {{3, 2}}, store);
  rig.collect({store, load});
  EXPECT_TRUE(rig.holds(true, 3, 11));
  EXPECT_EQ(rig.results.count(read) + rig.results.count(behind), 0u);
  gate.set_value();
  rig.collect({read, behind});
}

// What the disk was asked for, in this order.
struct Noted {
  bool note(int64_t slot) {
    std::lock_guard lock(mutex);
    slots.push_back(slot);
    return slots.size() == 1;
  }
  std::function<bool(int64_t, const DiskRecord&, std::span<const char>)> write_held() {
    return [this](int64_t slot, const DiskRecord&, std::span<const char>) {
      if (note(slot)) entered.set_value(), open.wait();
      return true;
    };
  }
  std::function<void(std::span<BlockRead>)> read() {
    return [this](std::span<BlockRead> blocks) {
      for (BlockRead& block : blocks) note(block.slot), block.done = true;
    };
  }
  std::mutex mutex;
  std::vector<int64_t> slots;
  std::promise<void> gate, entered;
  std::shared_future<void> open = gate.get_future().share();
};

TEST(KvTransfer, ReadsComeBetweenTheBlocksOfAWrite) {
  Noted noted;
  KvTransfer::Options options;
  options.disk.write = noted.write_held();
  options.disk.read = noted.read();
  options.readers = 1;
  Rig rig(1, 1, 4, 64, options);
  const uint64_t write = rig.begin_disk(TransferKind::kWrite, {{0, 1}, {1, 2}, {2, 3}});
  noted.entered.get_future().wait();
  const uint64_t read = rig.begin_disk(TransferKind::kRead, {{3, 100}});
  noted.gate.set_value();
  rig.collect({write, read});
  EXPECT_EQ(noted.slots, (std::vector<int64_t>{1, 100, 2, 3}));
}

TEST(KvTransfer, ReadsDoNotWaitForAWriteAndWritesAreMadeOneByOne) {
  Noted noted;
  KvTransfer::Options options;
  options.disk.write = noted.write_held();
  options.disk.read = noted.read();
  Rig rig(1, 1, 5, 64, options);
  const uint64_t write = rig.begin_disk(TransferKind::kWrite, {{0, 1}, {1, 2}});
  noted.entered.get_future().wait();
  const uint64_t next = rig.begin_disk(TransferKind::kWrite, {{4, 3}});
  const uint64_t read = rig.begin_disk(TransferKind::kRead, {{3, 100}});
  rig.collect({read});  // while the first write is held
  EXPECT_EQ(rig.results.count(write) + rig.results.count(next), 0u);
  noted.gate.set_value();
  rig.collect({write, next});
  EXPECT_EQ(noted.slots, (std::vector<int64_t>{1, 100, 2, 3}));
}

TEST(KvTransfer, SeveralReadsAreUnderWayAtOnce) {
  constexpr int kReaders = 3;
  std::mutex mutex;
  std::condition_variable all_here;
  int here = 0;
  std::vector<size_t> sizes;
  KvTransfer::Options options;
  options.readers = kReaders;
  options.read_bytes = 2 * 64;
  options.disk.read = [&](std::span<BlockRead> blocks) {
    std::unique_lock lock(mutex);
    ++here;
    sizes.push_back(blocks.size());
    all_here.notify_all();
    const bool together = all_here.wait_for(lock, 10s, [&] { return here >= kReaders; });
    for (BlockRead& block : blocks) {
      std::fill(block.payload.begin(), block.payload.end(), static_cast<uint8_t>(block.slot));
      block.done = together && block.slot != 3;
    }
  };
  Rig rig(1, 8, 8, 64, options);
  // Five blocks in shares of two, then another transfer's: the third thread has begun the first's last one.
  const uint64_t first = rig.begin_disk(TransferKind::kRead, {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}});
  const uint64_t second = rig.begin_disk(TransferKind::kRead, {{5, 6}, {6, 7}});
  const uint64_t load = rig.begin(TransferKind::kLoad, {{0, 0}, {2, 2}, {4, 4}}, first);
  rig.collect({first, second, load});
  EXPECT_EQ(rig.results[first].failed, (std::vector<uint8_t>{0, 0, 1, 0, 0}));
  EXPECT_TRUE(rig.results[second].failed.empty());
  EXPECT_EQ(rig.results[load].failed, (std::vector<uint8_t>{0, 1, 0}));
  EXPECT_GT(rig.results[first].seconds, 0);
  std::sort(sizes.begin(), sizes.end());
  EXPECT_EQ(sizes, (std::vector<size_t>{1, 2, 2, 2}));
  EXPECT_EQ(rig.device_at(0, 0)[5], 1);
  EXPECT_EQ(rig.device_at(4, 0)[63], 5);
}

TEST(KvTransfer, WhatFailsOnDiskIsNotLoadedOrWrittenOn) {
  KvTransfer::Options options;
  options.read_bytes = 1;  // block by block
  options.disk.read = [](std::span<BlockRead> blocks) {
    BlockRead& block = blocks[0];
    if (block.slot == 7) throw std::runtime_error("broken");
    std::fill(block.payload.begin(), block.payload.end(), static_cast<uint8_t>(block.slot));
    block.done = block.slot != 8;
  };
  std::set<int64_t> written;
  options.disk.write = [&](int64_t slot, const DiskRecord&, std::span<const char>) {
    written.insert(slot);
    return true;
  };
  Rig rig(2, 8, 8, 32, options);
  for (BlockId b = 0; b < 8; ++b) rig.fill(true, b, 100);
  const uint64_t read = rig.begin_disk(TransferKind::kRead, {{0, 6}, {1, 7}, {2, 8}, {3, 9}});
  const uint64_t load = rig.begin(TransferKind::kLoad, {{0, 0}, {1, 1}, {2, 2}, {3, 3}}, read);
  const uint64_t write = rig.begin_disk(TransferKind::kWrite, {{1, 20}, {3, 21}}, read);
  const uint64_t next = rig.begin(TransferKind::kStore, {{5, 5}}, load);
  rig.collect({read, load, write, next});
  EXPECT_EQ(rig.results[read].failed, (std::vector<uint8_t>{0, 1, 1, 0}));
  EXPECT_EQ(rig.results[load].failed, (std::vector<uint8_t>{0, 1, 1, 0}));
  EXPECT_EQ(rig.results[write].failed, (std::vector<uint8_t>{1, 0}));
  EXPECT_TRUE(rig.results[next].failed.empty());
  EXPECT_EQ(written, (std::set<int64_t>{21}));
  EXPECT_EQ(rig.device_at(0, 1)[5], 6);
  EXPECT_TRUE(rig.holds(true, 1, 100) && rig.holds(true, 2, 100));
  EXPECT_EQ(rig.device_at(3, 0)[31], 9);
  // Long finished: nothing to wait for.
  EXPECT_TRUE(rig.transfers->wait_for(std::vector<uint64_t>{read, load, next}).empty());
}

TEST(KvTransfer, AStepThatNeedsWhatFailedIsTold) {
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  KvTransfer::Options options;
  options.disk.read = [open](std::span<BlockRead>) { open.wait(); };
  Rig rig(2, 4, 4, 32, options);
  const uint64_t read = rig.begin_disk(TransferKind::kRead, {{0, 6}});
  const uint64_t load = rig.begin(TransferKind::kLoad, {{0, 0}}, read);
  const KvTransfer::Loads loads = rig.transfers->wait_for(std::vector<uint64_t>{load});
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_TRUE(KvTransfer::writes(loads, 0));
  EXPECT_FALSE(KvTransfer::writes(loads, 1));
  gate.set_value();
  EXPECT_THROW(rig.transfers->wait_layer(loads, 0), Error);
}

TEST(KvTransfer, RefusesWhatCannotBe) {
  Rig rig(2, 4, 4, 32);
  EXPECT_THROW(rig.begin(TransferKind::kLoad, {{4, 0}}), Error);
  EXPECT_THROW(rig.begin(TransferKind::kLoad, {{0, 4}}), Error);
  EXPECT_THROW(rig.begin(TransferKind::kStore, {{-1, 0}}), Error);
  EXPECT_THROW(rig.begin_disk(TransferKind::kRead, {{0, 0}}), Error);
  EXPECT_THROW(rig.begin_disk(TransferKind::kWrite, {{0, 0}}), Error);
  EXPECT_THROW(rig.transfers->wait_for(std::vector<uint64_t>{99}), Error);
  const uint64_t id = rig.begin(TransferKind::kStore, {{0, 0}});
  rig.last_id = id - 1;
  EXPECT_THROW(rig.begin(TransferKind::kStore, {{0, 0}}), Error);  // a number twice
  rig.collect({id});
}

TEST(KvTransfer, EndsWithTransfersOpen) {
  for (int round = 0; round < 20; ++round) {
    KvTransfer::Options options;
    options.disk.write = [](int64_t, const DiskRecord&, std::span<const char>) {
      std::this_thread::sleep_for(1ms);
      return true;
    };
    options.disk.read = [](std::span<BlockRead> blocks) {
      for (BlockRead& block : blocks) block.done = true;
    };
    options.group_bytes = 1;
    Rig rig(4, 64, 64, 4096, options);
    uint64_t last = 0;
    for (BlockId b = 0; b < 64; ++b) {
      rig.begin(TransferKind::kStore, {{b, b}});
      last = rig.begin_disk(TransferKind::kWrite, {{b, b}}, rig.last_id);
      rig.begin(TransferKind::kLoad, {{b, b}}, last);
    }
    if (round % 2) std::this_thread::sleep_for(std::chrono::microseconds(round * 150));
  }
}

}  // namespace
}  // namespace taco
