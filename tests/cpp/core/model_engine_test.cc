// The whole core on a tiny random model in float32: a request's text does not depend on its company.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "../exec/tiny_model.h"
#include "engine/engine.h"
#include "exec/model_executor.h"

namespace taco {
namespace {

struct Job {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

std::vector<Job> some_jobs(int count) {
  std::vector<Job> jobs;
  for (int i = 0; i < count; ++i) {
    Job job;
    for (int k = 0; k < 3 + (i * 13) % 40; ++k) job.prompt.push_back((i * 31 + k * 17) % 97);
    job.params.max_tokens = 24 + i % 9;
    job.params.ignore_eos = true;
    job.params.detokenize = false;
    job.params.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    job.params.seed = 1000 + i;
    job.params.top_p = i % 2 ? 0.9f : 1.0f;
    job.params.repetition_penalty = i % 4 == 1 ? 1.2f : 1.0f;
    jobs.push_back(job);
  }
  return jobs;
}

struct Result {
  std::map<size_t, std::vector<int32_t>> tokens;
  EngineStats stats;
};

Result run(const std::vector<Job>& jobs, const std::vector<size_t>& which, int64_t num_blocks, int budget) {
  std::shared_ptr<Backend> backend = make_cpu_backend(2);
  auto model = testing::random_model(testing::tiny_spec(), backend);
  int max_num_seqs = std::min(64, budget);  // a step has a token for each of its sequences
  auto executor = std::make_unique<ModelExecutor>(model, ModelExecutorConfig{.max_model_len = 128,
                                                                             .block_size = 8,
                                                                             .num_blocks = num_blocks,
                                                                             .kv_dtype = std::nullopt,
                                                                             .max_num_batched_tokens = budget,
                                                                             .max_num_seqs = max_num_seqs});
  Engine engine(std::move(executor), nullptr,
                {.max_num_batched_tokens = budget, .max_num_seqs = max_num_seqs});
  std::map<RequestId, size_t> ids;
  for (size_t i : which) ids[engine.submit(jobs[i].prompt, jobs[i].params)] = i;
  Result result;
  size_t finished = 0;
  while (finished < which.size()) {
    for (const Output& o : engine.poll(std::chrono::seconds(20))) {
      std::vector<int32_t>& t = result.tokens[ids.at(o.request)];
      t.insert(t.end(), o.token_ids.begin(), o.token_ids.end());
      EXPECT_EQ(o.error, "");
      finished += o.request_finished;
    }
  }
  result.stats = engine.stats();
  return result;
}

TEST(ModelEngine, AloneInABatchChunkedAndPreemptedAreTheSame) {
  std::vector<Job> jobs = some_jobs(33);
  std::vector<size_t> all(jobs.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = i;
  Result together = run(jobs, all, 1000, 2048);
  EXPECT_EQ(together.stats.preemptions, 0u);
  EXPECT_EQ(together.stats.free_blocks, together.stats.num_blocks);
  for (size_t i : {size_t{0}, size_t{1}, size_t{7}, size_t{32}}) {
    EXPECT_EQ(run(jobs, {i}, 1000, 2048).tokens.at(i), together.tokens.at(i)) << "alone, request " << i;
  }
  EXPECT_EQ(run(jobs, all, 1000, 7).tokens, together.tokens) << "small chunks";
  Result tight = run(jobs, all, 24, 64);
  EXPECT_GT(tight.stats.preemptions, 0u) << "the pool was meant to be too small";
  EXPECT_EQ(tight.tokens, together.tokens) << "preempted";
  EXPECT_EQ(tight.stats.free_blocks, tight.stats.num_blocks);
}

TEST(ModelEngine, BestOfForksShareThePrompt) {
  std::vector<Job> jobs = some_jobs(1);
  Job job = jobs[0];
  job.params.temperature = 0.8f;
  job.params.n = job.params.best_of = 3;
  std::map<int, std::vector<int32_t>> wide;
  for (int64_t blocks : {200, 19}) {
    std::shared_ptr<Backend> backend = make_cpu_backend(2);
    auto model = testing::random_model(testing::tiny_spec(), backend);
    Engine engine(std::make_unique<ModelExecutor>(model, ModelExecutorConfig{.max_model_len = 64,
                                                                             .block_size = 8,
                                                                             .num_blocks = blocks,
                                                                             .kv_dtype = std::nullopt,
                                                                             .max_num_batched_tokens = 64,
                                                                             .max_num_seqs = 8}),
                  nullptr, {.max_num_batched_tokens = 64, .max_num_seqs = 8});
    engine.submit(job.prompt, job.params);
    std::map<int, std::vector<int32_t>> got;
    bool finished = false;
    while (!finished) {
      for (const Output& o : engine.poll(std::chrono::seconds(20))) {
        got[o.index].insert(got[o.index].end(), o.token_ids.begin(), o.token_ids.end());
        finished |= o.request_finished;
      }
    }
    ASSERT_EQ(got.size(), 3u);
    for (const auto& [index, tokens] : got) EXPECT_EQ(static_cast<int>(tokens.size()), job.params.max_tokens);
    EXPECT_NE(got[0], got[1]);
    if (wide.empty()) wide = got;
    EXPECT_EQ(got, wide);
  }
}

}  // namespace
}  // namespace taco
