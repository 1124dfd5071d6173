// The whole core with the CUDA backend under it: the model against the CPU's, the engine with graphs and
// steps in flight, and a request alone against the same one in company.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "../core/speculation_case.h"
#include "../cuda/cuda_test_util.h"
#include "../exec/tiny_model.h"
#include "engine/engine.h"
#include "exec/model_executor.h"

namespace taco {
namespace {

std::shared_ptr<Backend> cuda(bool batch_invariant = false) {
  return {&cuda::test::backend(batch_invariant), [](Backend*) {}};
}

// Wide enough for the tensor-core paths.
ModelSpec wide_spec() {
  ModelSpec spec = testing::tiny_spec(3, 1000);
  spec.hidden = 256;
  spec.ropes[0].rotary_dim = 64;
  spec.ropes[0].inv_freq.clear();
  for (int i = 0; i < 32; ++i)
    spec.ropes[0].inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(i) / 32));
  for (LayerSpec& layer : spec.layers) {
    layer.attn.num_heads = 8;
    layer.attn.num_kv_heads = 2;
    layer.attn.head_dim = 64;
    layer.ffn.intermediate = 512;
  }
  return spec;
}

ModelExecutorConfig config(int budget, int max_num_seqs, bool eager) {
  return {.max_model_len = 256,
          .block_size = 16,
          .num_blocks = 600,
          .kv_dtype = std::nullopt,
          .max_num_batched_tokens = budget,
          .max_num_seqs = max_num_seqs,
          .enforce_eager = eager};
}

TEST(CudaModel, LogitsAreTheCpus) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (bool wide : {false, true}) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      ModelSpec spec = wide ? wide_spec() : testing::tiny_spec();
      // As trained models have it: a product keeps the size of its input. Larger weights make the softmax
      // chaotic.
      const float scale = 1.0f / std::sqrt(static_cast<float>(spec.hidden));
      auto on_cpu = testing::random_model(spec, make_cpu_backend(2), DType::kF32, 1, scale);
      auto on_gpu = testing::random_model(spec, cuda(), dtype, 1, scale);
      ModelExecutor reference(on_cpu, config(256, 8, true)), executor(on_gpu, config(256, 8, true));
      std::vector<int32_t> tokens;
      for (int i = 0; i < 150; ++i) tokens.push_back((i * 37 + 5) % spec.vocab_size);
      std::vector<float> expected = reference.forward(tokens, {});
      const double limit = dtype == DType::kF32 ? 1e-5 : dtype == DType::kF16 ? 3e-3 : 2e-2;
      for (const std::vector<int>& chunks : {std::vector<int>{}, {1, 1, 64, 80, 4}, {149, 1}}) {
        double error = cuda::test::relative_error(executor.forward(tokens, chunks), expected);
        EXPECT_LT(error, limit) << (wide ? "wide " : "tiny ") << dtype_name(dtype) << " " << chunks.size();
      }
    }
  }
}

struct Job {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

std::vector<Job> some_jobs(int count, int vocab) {
  std::vector<Job> jobs;
  for (int i = 0; i < count; ++i) {
    Job job;
    for (int k = 0; k < 3 + (i * 13) % 90; ++k) job.prompt.push_back((i * 31 + k * 17) % vocab);
    job.params.max_tokens = 24 + i % 9;
    job.params.ignore_eos = true;
    job.params.detokenize = false;
    job.params.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    job.params.seed = 1000 + i;
    job.params.top_p = i % 2 ? 0.9f : 1.0f;
    job.params.repetition_penalty = i % 8 == 1 ? 1.2f : 1.0f;
    job.params.logprobs = i % 5 == 2 ? 3 : -1;
    jobs.push_back(job);
  }
  return jobs;
}

using Tokens = std::map<size_t, std::vector<int32_t>>;

Tokens run(std::shared_ptr<const Model> model, const std::vector<Job>& jobs, const std::vector<size_t>& which,
           int budget, bool eager) {
  const int seqs = std::min(64, budget);
  Engine engine(std::make_unique<ModelExecutor>(model, config(budget, seqs, eager)), nullptr,
                {.max_num_batched_tokens = budget, .max_num_seqs = seqs});
  std::map<RequestId, size_t> ids;
  for (size_t i : which) ids[engine.submit(jobs[i].prompt, jobs[i].params)] = i;
  Tokens tokens;
  size_t finished = 0;
  while (finished < which.size()) {
    std::vector<Output> outputs = engine.poll(std::chrono::seconds(20));
    EXPECT_FALSE(outputs.empty()) << "nothing for 20 s";
    if (outputs.empty()) break;
    for (const Output& o : outputs) {
      std::vector<int32_t>& t = tokens[ids.at(o.request)];
      t.insert(t.end(), o.token_ids.begin(), o.token_ids.end());
      EXPECT_EQ(o.error, "");
      finished += o.request_finished;
    }
  }
  EngineStats stats = engine.stats();
  EXPECT_EQ(stats.free_blocks, stats.num_blocks);
  return tokens;
}

std::vector<size_t> all_of(const std::vector<Job>& jobs) {
  std::vector<size_t> all(jobs.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = i;
  return all;
}

TEST(CudaEngine, TokensAreTheCpusInFloat32) {
  TACO_SKIP_WITHOUT_DEVICE();
  std::vector<Job> jobs = some_jobs(33, 97);
  auto on_cpu = testing::random_model(testing::tiny_spec(), make_cpu_backend(2), DType::kF32);
  auto on_gpu = testing::random_model(testing::tiny_spec(), cuda(), DType::kF32);
  Tokens expected = run(on_cpu, jobs, all_of(jobs), 2048, true);
  for (bool eager : {true, false}) {
    Tokens got = run(on_gpu, jobs, all_of(jobs), 2048, eager);
    int different = 0;
    for (const auto& [i, tokens] : expected) different += got.at(i) != tokens;
    EXPECT_EQ(different, 0) << (eager ? "op by op" : "graphs");
    EXPECT_EQ(run(on_gpu, jobs, {3}, 2048, eager).at(3), expected.at(3));
    EXPECT_EQ(run(on_gpu, jobs, all_of(jobs), 64, eager), got) << "small chunks";
  }
}

// bfloat16 in the batch-invariant mode: alone, in company, in chunks.
TEST(CudaEngine, CompanyDoesNotMatterInTheBatchInvariantMode) {
  TACO_SKIP_WITHOUT_DEVICE();
  ModelSpec spec = wide_spec();
  std::vector<Job> jobs = some_jobs(64, spec.vocab_size);
  auto model = testing::random_model(spec, cuda(true), DType::kBF16);
  Tokens together = run(model, jobs, all_of(jobs), 2048, false);
  for (size_t i = 0; i < jobs.size(); i += 7)
    EXPECT_EQ(run(model, jobs, {i}, 2048, false).at(i), together.at(i));
  EXPECT_EQ(run(model, jobs, all_of(jobs), 2048, true), together) << "without graphs";
}

TEST(CudaEngine, GraphsAndOpsGiveTheSameInBfloat16) {
  TACO_SKIP_WITHOUT_DEVICE();
  ModelSpec spec = wide_spec();
  std::vector<Job> jobs = some_jobs(40, spec.vocab_size);
  auto model = testing::random_model(spec, cuda(), DType::kBF16);
  // The same sequence of step sizes either way: equal to the bit, as nothing but the launch differs; the rows
  // that pad a graph's step may move a product to other tiles, so only sizes without padding are compared.
  Tokens graphs = run(model, jobs, {0}, 2048, false);
  EXPECT_EQ(run(model, jobs, {0}, 2048, true), graphs);
}

TEST(CudaSpeculation, NothingThatDraftsChangesTheText) {
  TACO_SKIP_WITHOUT_DEVICE();
  using testing::KnownTexts;
  const auto jobs = testing::speculation_jobs(64, 97);
  for (bool windows : {false, true}) {
    ModelSpec spec = testing::tiny_spec();
    if (windows)
      for (LayerSpec& layer : spec.layers) layer.attn.window = 9;
    auto model = testing::random_model(spec, cuda(), DType::kF32);
    const auto expected = testing::run_jobs(model, jobs, nullptr, 1000, 2048);
    const KnownTexts truth(jobs, expected);
    auto trees = std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 3, truth);
    testing::expect_same(testing::run_jobs(model, jobs, trees, 2000, 2048), expected, "trees");
    EXPECT_GT(trees->accepted, 100u);
    EXPECT_EQ(trees->wrong_calls, 0);
    auto preempted = std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 4, truth);
    testing::expect_same(testing::run_jobs(model, jobs, preempted, 60, 256), expected, "preempted");
    auto garbage = std::make_shared<GarbageDrafter>(97, 4);
    testing::expect_same(testing::run_jobs(model, jobs, garbage, 2000, 2048, 16), expected, "garbage");
    auto controlled = std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 5, truth);
    testing::expect_same(testing::run_jobs(model, jobs, controlled, 2000, 2048, 8, true), expected,
                         "controller");
  }
}

// In the batch-invariant mode chains of drafts give the bits of single steps; a tree sums attention in
// another order.
TEST(CudaSpeculation, ChainsAreBitForBitInTheInvariantMode) {
  TACO_SKIP_WITHOUT_DEVICE();
  using testing::KnownTexts;
  const auto jobs = testing::speculation_jobs(48, 1000);
  ModelSpec spec = wide_spec();
  auto model = testing::random_model(spec, cuda(true), DType::kBF16, 1, 0.06f);
  const auto expected = testing::run_jobs(model, jobs, nullptr, 1000, 2048, 16);
  auto oracle = std::make_shared<OracleDrafter<KnownTexts>>(5, KnownTexts(jobs, expected));
  testing::expect_same(testing::run_jobs(model, jobs, oracle, 1000, 2048, 16), expected, "oracle");
  EXPECT_GT(oracle->accepted * 10, oracle->drafted * 9);  // ends cut runs
}

}  // namespace
}  // namespace taco
