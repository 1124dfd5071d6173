// Transfers of KV blocks on a GPU: contents, order against the ops before and after, steps of a model among
// them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "../cuda/cuda_test_util.h"
#include "../exec/tiny_model.h"
#include "../exec/transfer_case.h"
#include "backend/cuda/copy_stream.h"
#include "exec/kv_transfer.h"
#include "exec/model_executor.h"

namespace taco {
namespace {

std::shared_ptr<Backend> cuda() {
  return {&cuda::test::backend(), [](Backend*) {}};
}

// Blocks of random bytes on both sides, and pinned memory for what ops read and write.
struct Rig {
  static constexpr int kLayers = 6, kDevice = 48, kHost = 40;
  static constexpr size_t kBytes = 64 << 10, kBlock = kLayers * kBytes;
  explicit Rig(bool by_layer = true, size_t group_bytes = 4 * kBytes) {
    device = device_memory(backend, kDevice * kBlock);
    host = std::make_shared<HostBlocks>(backend, kHost, kBlock);
    EXPECT_TRUE(host->wait(kHost - 1));
    pinned = host_memory(backend, kDelay);
    transfers = std::make_unique<KvTransfer>(
        backend,
        KvTransfer::DeviceBlocks{.data = static_cast<char*>(device.get()),
                                 .layers = kLayers,
                                 .num_blocks = kDevice,
                                 .layer_bytes = kBytes},
        host,
        KvTransfer::Options{.by_layer = by_layer, .group_bytes = group_bytes, .store_bytes = 2 * kBlock});
    scratch = device_memory(backend, kDelay);
    for (int b = 0; b < kHost; ++b) {
      host_content.push_back(block());
      std::memcpy(host->block(b), host_content.back().data(), kBlock);
    }
    for (int b = 0; b < kDevice; ++b) write(b, block());
    backend->synchronize();
  }
  std::vector<char> block() {
    std::vector<char> out(kBlock);
    for (size_t i = 0; i < kBlock; i += 4) {
      const uint32_t v = random();
      std::memcpy(&out[i], &v, 4);
    }
    return out;
  }
  char* at(int b, int layer) {
    return static_cast<char*>(device.get()) +
           (static_cast<size_t>(layer) * kDevice + static_cast<size_t>(b)) * kBytes;
  }
  // As an op writes: from pinned memory, in the order of the ops.
  void write(int b, std::vector<char> content) {
    char* from = static_cast<char*>(pinned.get()) + kUsed + static_cast<size_t>(b) * kBlock;
    backend->synchronize();
    std::memcpy(from, content.data(), kBlock);
    write_again(b);
    device_content.resize(kDevice);
    device_content[static_cast<size_t>(b)] = std::move(content);
  }
  void write_again(int b) {
    char* from = static_cast<char*>(pinned.get()) + kUsed + static_cast<size_t>(b) * kBlock;
    for (int l = 0; l < kLayers; ++l)
      backend->upload_async(at(b, l), from + static_cast<size_t>(l) * kBytes, kBytes);
  }
  // The ops are busy for some milliseconds.
  void delay() { backend->upload_async(scratch.get(), pinned.get(), kUsed); }
  std::vector<char> read(int b) {
    std::vector<char> out(kBlock);
    for (int l = 0; l < kLayers; ++l)
      backend->download(out.data() + static_cast<size_t>(l) * kBytes, at(b, l), kBytes);
    return out;
  }
  uint64_t begin(TransferKind kind, std::vector<BlockMove> moves, uint64_t after = 0) {
    transfers->begin({.id = ++last_id, .kind = kind, .moves = std::move(moves), .after = after});
    return last_id;
  }
  void drain() {
    std::vector<TransferResult> results;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (results.size() + collected < last_id && std::chrono::steady_clock::now() < deadline) {
      transfers->finished(results);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    collected += results.size();
    EXPECT_EQ(collected, last_id);
    for (const TransferResult& r : results) {
      EXPECT_TRUE(r.failed.empty());
      EXPECT_GT(r.seconds, 0);
      EXPECT_LT(r.seconds, 1);
    }
  }
  void expect_contents() {
    backend->synchronize();
    for (int b = 0; b < kDevice; ++b) EXPECT_EQ(read(b) == device_content[static_cast<size_t>(b)], true) << b;
    for (int b = 0; b < kHost; ++b)
      EXPECT_EQ(std::memcmp(host->block(b), host_content[static_cast<size_t>(b)].data(), kBlock), 0) << b;
  }

  static constexpr size_t kUsed = size_t{256} << 20, kDelay = kUsed + kDevice * kBlock;
  std::mt19937 random{5};
  std::shared_ptr<Backend> backend = cuda();
  std::shared_ptr<void> device, pinned, scratch;
  std::shared_ptr<HostBlocks> host;
  std::unique_ptr<KvTransfer> transfers;
  std::vector<std::vector<char>> device_content, host_content;
  uint64_t last_id = 0;
  size_t collected = 0;
};

TEST(CudaTransfer, ContentsInBothDirections) {
  TACO_SKIP_WITHOUT_DEVICE();
  const size_t max_pitch = cuda::test::backend().context().max_pitch;
  for (bool pitched : {true, false}) {
    cuda::test::backend().context().max_pitch = pitched ? max_pitch : 1;
    for (bool by_layer : {true, false}) {
      Rig rig(by_layer);
      std::vector<int> blocks(Rig::kDevice), hosts(Rig::kHost);
      std::iota(blocks.begin(), blocks.end(), 0), std::iota(hosts.begin(), hosts.end(), 0);
      for (int round = 0; round < 6; ++round) {
        std::shuffle(blocks.begin(), blocks.end(), rig.random);
        std::shuffle(hosts.begin(), hosts.end(), rig.random);
        // Both at once, of different sizes, one of a single block.
        const size_t stores = round == 0 ? 1 : 15, loads = round == 1 ? 1 : 20;
        std::vector<BlockMove> out, in;
        for (size_t i = 0; i < stores; ++i) out.push_back({blocks[i], hosts[i]});
        for (size_t i = stores; i < stores + loads; ++i) in.push_back({blocks[i], hosts[i]});
        rig.begin(TransferKind::kStore, out);
        rig.begin(TransferKind::kLoad, in);
        for (const BlockMove& m : out) rig.host_content[m.host] = rig.device_content[m.device];
        for (const BlockMove& m : in) rig.device_content[m.device] = rig.host_content[m.host];
        rig.drain();
      }
      rig.expect_contents();
    }
  }
  cuda::test::backend().context().max_pitch = max_pitch;
}

TEST(CudaTransfer, OrderAgainstTheOps) {
  TACO_SKIP_WITHOUT_DEVICE();
  Rig rig;
  for (int round = 0; round < 5; ++round) {
    // A store reads what ops before it wrote, however late they are.
    rig.delay();
    std::vector<char> fresh = rig.block();
    char* from = static_cast<char*>(rig.pinned.get()) + Rig::kUsed;
    rig.backend->synchronize();
    std::memcpy(from, fresh.data(), Rig::kBlock);
    rig.delay();
    rig.write_again(0);
    const uint64_t store = rig.begin(TransferKind::kStore, {{0, 3}});
    // What overwrites the block waits for the store.
    std::vector<char> later = rig.block();
    char* next = from + Rig::kBlock;
    std::memcpy(next, later.data(), Rig::kBlock);
    EXPECT_TRUE(rig.transfers->wait_for(std::vector<uint64_t>{store}).empty());
    for (int l = 0; l < Rig::kLayers; ++l)
      rig.backend->upload_async(rig.at(0, l), next + static_cast<size_t>(l) * Rig::kBytes, Rig::kBytes);
    // A load into a block comes after the ops that still read it; who reads the load waits for its layers.
    char* old_content = from + 2 * Rig::kBlock;
    char* new_content = from + 3 * Rig::kBlock;
    const std::vector<char> before = rig.read(7);
    rig.delay();
    for (int l = 0; l < Rig::kLayers; ++l)
      rig.backend->download_async(old_content + static_cast<size_t>(l) * Rig::kBytes, rig.at(7, l),
                                  Rig::kBytes);
    const uint64_t load = rig.begin(TransferKind::kLoad, {{7, 3}, {8, 4}, {9, 5}}, store);
    const KvTransfer::Loads loads = rig.transfers->wait_for(std::vector<uint64_t>{load});
    for (int l = 0; l < Rig::kLayers; ++l) {
      rig.transfers->wait_layer(loads, l);
      rig.backend->download_async(new_content + static_cast<size_t>(l) * Rig::kBytes, rig.at(7, l),
                                  Rig::kBytes);
    }
    rig.backend->synchronize();
    rig.drain();
    EXPECT_EQ(std::memcmp(rig.host->block(3), fresh.data(), Rig::kBlock), 0);
    EXPECT_EQ(rig.read(0) == later, true);
    EXPECT_EQ(std::memcmp(old_content, before.data(), Rig::kBlock), 0);
    EXPECT_EQ(std::memcmp(new_content, fresh.data(), Rig::kBlock), 0);
  }
}

TEST(CudaTransfer, EndsWithTransfersOpen) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int round = 0; round < 4; ++round) {
    Rig rig;
    if (round % 2) rig.delay();
    for (int b = 0; b < Rig::kHost; ++b) {
      rig.begin(TransferKind::kStore, {{b, b}});
      rig.begin(TransferKind::kLoad, {{b, b}}, rig.last_id);
    }
  }
  cuda::test::backend().synchronize();
}

TEST(CudaTransfer, HostBlocksArePinnedInPieces) {
  TACO_SKIP_WITHOUT_DEVICE();
  constexpr size_t kOdd = 96 * 1024 + 512;  // no multiple of a page
  HostBlocks blocks(cuda(), 4000, kOdd);    // 390 MB
  for (int64_t b : {int64_t{0}, int64_t{1999}, int64_t{3999}}) EXPECT_TRUE(blocks.wait(b));
  for (int64_t b = 0; b < 4000; ++b) ASSERT_TRUE(blocks.wait(b));
  EXPECT_EQ(blocks.num_ready(), 4000);
  for (int64_t b : {int64_t{0}, int64_t{1234}, int64_t{3999}}) {
    cudaPointerAttributes attributes;
    ASSERT_EQ(cudaPointerGetAttributes(&attributes, blocks.block(b) + kOdd - 1), cudaSuccess);
    EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  }
}

TEST(CudaTransfer, StepsReadWhatTheyShould) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (bool eager : {false, true}) {
    for (int block_size : {8, 16, 32}) {
      for (bool windows : {false, true}) {
        ModelSpec spec = testing::tiny_spec(12);
        if (windows)
          for (size_t l = 0; l < spec.layers.size(); l += 2) spec.layers[l].attn.window = 24;
        const float scale = 1.0f / std::sqrt(static_cast<float>(spec.hidden));
        auto model = testing::random_model(spec, cuda(), DType::kF32, 1, scale);
        ModelExecutor executor(model, {.max_model_len = 256,
                                       .block_size = block_size,
                                       .num_blocks = 28,
                                       .kv_dtype = std::nullopt,
                                       .max_num_batched_tokens = 1024,
                                       .max_num_seqs = 16,
                                       .enforce_eager = eager,
                                       .num_host_blocks = 18});
        testing::TransferCase test(executor, static_cast<unsigned>(block_size), 1e-3);
        test.run();
      }
    }
  }
}

}  // namespace
}  // namespace taco
