// Steps of a model while its KV blocks are moved between device and host: transfers, swaps, copies on write.
#include <gtest/gtest.h>

#include <future>

#include "base/error.h"
#include "exec/model_executor.h"
#include "tiny_model.h"
#include "transfer_case.h"

namespace taco {
namespace {

using testing::random_model;
using testing::tiny_spec;
using testing::TransferCase;

ModelSpec spec_of(int variant) {
  ModelSpec spec = tiny_spec(variant == 0 ? 1 : 5);
  if (variant == 2) {
    for (size_t l = 0; l < spec.layers.size(); l += 2) spec.layers[l].attn.window = 24;
  }
  if (variant == 3) {  // K and V from a latent, with heads of their own
    for (LayerSpec& l : spec.layers) {
      l.attn.num_kv_heads = l.attn.num_heads;
      l.attn.kv_rank = 16;
      l.attn.latent_norm.kind = NormKind::kRms;
    }
  }
  return spec;
}

class ModelTransfer : public ::testing::TestWithParam<std::tuple<int, int, DType>> {};

TEST_P(ModelTransfer, StepsReadWhatTheyShould) {
  const auto [variant, block_size, kv_dtype] = GetParam();
  auto model = random_model(spec_of(variant), make_cpu_backend(2));
  ModelExecutor executor(model, {.max_model_len = 256,
                                 .block_size = block_size,
                                 .num_blocks = 28,
                                 .kv_dtype = kv_dtype,
                                 .max_num_batched_tokens = 1024,
                                 .max_num_seqs = 16,
                                 .num_host_blocks = 18});
  TransferCase test(executor, static_cast<unsigned>(variant * 100 + block_size), 0);
  test.run();
}
INSTANTIATE_TEST_SUITE_P(All, ModelTransfer,
                         ::testing::Combine(::testing::Values(0, 1, 2, 3), ::testing::Values(8, 16, 32),
                                            ::testing::Values(DType::kF32, DType::kBF16)));

// One prompt of whole blocks and a token; the executor's blocks are numbered by hand.
struct Restored : ::testing::Test {
  static constexpr int kBlocks = 3, kBlock = 16;
  Restored() {
    for (int t = 0; t < kBlocks * kBlock + 1; ++t) seq.tokens.push_back((t * 37 + 11) % 97);
    seq.id = 1;
    seq.prompt_len = seq.len();
    auto greedy = std::make_shared<SamplingParams>();
    greedy->temperature = 0.0f;
    seq.params = greedy;
  }
  void make(DiskAccess disk) {
    executor = std::make_unique<ModelExecutor>(random_model(tiny_spec(4), make_cpu_backend(2)),
                                               ModelExecutorConfig{.max_model_len = 256,
                                                                   .block_size = kBlock,
                                                                   .num_blocks = 12,
                                                                   .kv_dtype = std::nullopt,
                                                                   .max_num_batched_tokens = 128,
                                                                   .max_num_seqs = 8,
                                                                   .num_host_blocks = 8,
                                                                   .disk = std::move(disk)});
  }
  StepPlan plan(std::vector<BlockId> blocks, int32_t start) {
    seq.blocks = std::move(blocks);
    StepPlan p;
    p.seqs.push_back({.sequence = &seq, .start = start, .count = seq.len() - start, .samplers = {&seq}});
    p.num_tokens = seq.len() - start;
    return p;
  }
  Sequence seq;
  std::unique_ptr<ModelExecutor> executor;
};

TEST_F(Restored, AStepWaitsForItsLoadAndACopyOfALoadedBlock) {
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  bool reading = true;
  make({.write = nullptr, .read = [&](std::span<BlockRead> blocks) {
          open.wait();
          for (BlockRead& block : blocks) block.done = reading;
        }});
  const SampledToken expected = executor->run(plan({0, 1, 2, 3}, 0)).sampled.at(0);
  executor->begin({.id = 1, .kind = TransferKind::kStore, .moves = {{0, 5}, {1, 1}, {2, 6}}});
  // Others write over all of it: after the store.
  Sequence other = seq;
  for (int32_t& t : other.tokens) t = (t * 5 + 3) % 97;
  std::swap(seq, other);
  StepPlan overwrite = plan({2, 1, 0, 3}, 0);
  overwrite.wait_for = {1};
  executor->run(overwrite);
  std::swap(seq, other);
  // The load stands behind a read (of a block that nobody needs) that takes until the gate opens.
  executor->begin({.id = 2, .kind = TransferKind::kRead, .disk = {{7, 0}}, .records = {{}}});
  executor->begin({.id = 3, .kind = TransferKind::kLoad, .moves = {{7, 5}, {8, 1}, {9, 6}}, .after = 2});
  std::promise<SampledToken> result;
  std::thread step([&] {
    StepPlan p = plan({7, 8, 9, 3}, seq.len() - 1);
    p.wait_for = {3};
    result.set_value(executor->run(p).sampled.at(0));
  });
  std::future<SampledToken> got = result.get_future();
  EXPECT_EQ(got.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  gate.set_value();
  const SampledToken token = got.get();
  step.join();
  EXPECT_EQ(token.token, expected.token);
  EXPECT_EQ(token.logprob, expected.logprob);
  // The tail of a shared block: copied, and the copy read, while the block is on its way.
  executor->begin({.id = 4, .kind = TransferKind::kLoad, .moves = {{4, 5}, {5, 1}, {6, 6}}});
  StepPlan copied = plan({4, 5, 10, 3}, seq.len() - 1);
  copied.copies = {{6, 10}};
  copied.wait_for = {4};
  const SampledToken third = executor->run(copied).sampled.at(0);
  EXPECT_EQ(third.token, expected.token);
  EXPECT_EQ(third.logprob, expected.logprob);
}

TEST_F(Restored, WhatAStepSwappedOutCanBeLoaded) {
  make({});
  const SampledToken expected = executor->run(plan({0, 1, 2, 3}, 0)).sampled.at(0);
  StepPlan out;
  out.swap_out = {{0, 3}, {1, 4}, {2, 0}};
  executor->submit(out);
  executor->begin({.id = 1, .kind = TransferKind::kLoad, .moves = {{9, 3}, {10, 4}, {11, 0}}});
  executor->collect();
  StepPlan p = plan({9, 10, 11, 3}, seq.len() - 1);
  p.wait_for = {1};
  const SampledToken got = executor->run(p).sampled.at(0);
  EXPECT_EQ(got.token, expected.token);
  EXPECT_EQ(got.logprob, expected.logprob);
}

TEST_F(Restored, WithoutHostBlocksThereIsNothingToMove) {
  executor = std::make_unique<ModelExecutor>(
      random_model(tiny_spec(), make_cpu_backend(1)),
      ModelExecutorConfig{
          .max_model_len = 64, .num_blocks = 4, .kv_dtype = std::nullopt, .max_num_batched_tokens = 64});
  EXPECT_THROW(executor->begin({.id = 1, .kind = TransferKind::kLoad, .moves = {{0, 0}}}), Error);
  std::vector<TransferResult> results;
  executor->finished(results);
  EXPECT_TRUE(results.empty());
}

}  // namespace
}  // namespace taco
