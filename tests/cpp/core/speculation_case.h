// Requests of every kind of sampling, run with and without drafts on a model.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "../engine/test_drafters.h"
#include "engine/engine.h"
#include "exec/model_executor.h"

namespace taco::testing {

struct SpeculationJob {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

// Each prompt occurs once.
inline std::vector<SpeculationJob> speculation_jobs(int count, int vocab) {
  std::vector<SpeculationJob> jobs;
  for (int i = 0; i < count; ++i) {
    SpeculationJob job;
    job.prompt = {i / vocab, i % vocab};
    for (int k = 0; k < (i * 13) % 90; ++k) job.prompt.push_back((i * 31 + k * 17) % vocab);
    SamplingParams& p = job.params;
    p.max_tokens = 40 + i % 17;
    p.detokenize = false;
    p.temperature = i % 3 == 0 ? 0.0f : 0.8f;
    p.seed = 1000 + i;
    p.top_p = i % 4 == 1 ? 0.9f : 1.0f;
    p.top_k = i % 5 == 1 ? 8 : -1;
    p.min_p = i % 7 == 1 ? 0.02f : 0.0f;
    p.repetition_penalty = i % 6 == 1 ? 1.2f : 1.0f;
    p.frequency_penalty = i % 6 == 2 ? 0.3f : 0.0f;
    p.presence_penalty = i % 6 == 3 ? 0.5f : 0.0f;
    p.no_repeat_ngram_size = i % 6 == 4 ? 3 : 0;
    p.logprobs = i % 4 == 2 ? 3 : -1;
    p.eos_token_ids = {vocab / 2};
    p.min_tokens = i % 3 == 2 ? 20 : 0;
    p.stop_token_ids = i % 5 == 4 ? std::vector<int32_t>{1, 7, 11} : std::vector<int32_t>{};
    if (i % 8 == 5) p.logit_bias = {{3, 2.0f}, {5, -4.0f}};
    if (i % 8 == 6) p.bad_words = {{4}, {9, 2}};
    jobs.push_back(job);
  }
  return jobs;
}

struct SpeculationResult {
  std::map<size_t, std::vector<int32_t>> tokens;
  std::map<size_t, std::vector<PositionLogprobs>> logprobs;
  std::map<size_t, FinishReason> reasons;
  EngineStats stats;
};

// drafter: null for none.
inline SpeculationResult run_jobs(std::shared_ptr<const Model> model, const std::vector<SpeculationJob>& jobs,
                                  std::shared_ptr<Drafter> drafter, int64_t num_blocks, int budget,
                                  int block_size = 8, bool cost_model = false) {
  const int seqs = std::min(32, budget);
  ModelExecutorConfig c{.max_model_len = 256,
                        .block_size = block_size,
                        .num_blocks = num_blocks,
                        .kv_dtype = std::nullopt,
                        .max_num_batched_tokens = budget,
                        .max_num_seqs = seqs};
  c.max_draft_rows = 512;
  EngineConfig config{.max_num_batched_tokens = budget, .max_num_seqs = seqs};
  if (drafter) {
    config.speculation.method = SpeculationMethod::kNgram;
    config.speculation.cost_model = cost_model;
    config.drafter = drafter;
  }
  Engine engine(std::make_unique<ModelExecutor>(model, c), nullptr, config);
  std::map<RequestId, size_t> ids;
  for (size_t i = 0; i < jobs.size(); ++i) ids[engine.submit(jobs[i].prompt, jobs[i].params)] = i;
  SpeculationResult result;
  size_t finished = 0;
  while (finished < jobs.size()) {
    std::vector<Output> outputs = engine.poll(std::chrono::seconds(60));
    EXPECT_FALSE(outputs.empty()) << "nothing for a minute; " << engine.stats().death_reason;
    if (outputs.empty()) break;
    for (Output& o : outputs) {
      const size_t i = ids.at(o.request);
      std::vector<int32_t>& t = result.tokens[i];
      t.insert(t.end(), o.token_ids.begin(), o.token_ids.end());
      for (PositionLogprobs& l : o.logprobs) result.logprobs[i].push_back(std::move(l));
      EXPECT_EQ(o.error, "");
      finished += o.request_finished;
      if (o.request_finished) result.reasons[i] = o.finish_reason;
    }
  }
  engine.shutdown();
  result.stats = engine.stats();
  EXPECT_EQ(result.stats.free_blocks, result.stats.num_blocks);
  return result;
}

// The next token of a text that a run gave: what RandomTreeDrafter asks for.
struct KnownTexts {
  std::shared_ptr<std::map<std::vector<int32_t>, std::vector<int32_t>>> texts;

  KnownTexts(const std::vector<SpeculationJob>& jobs, const SpeculationResult& result)
      : texts(std::make_shared<std::map<std::vector<int32_t>, std::vector<int32_t>>>()) {
    for (size_t i = 0; i < jobs.size(); ++i) (*texts)[jobs[i].prompt] = result.tokens.at(i);
  }
  int32_t operator()(std::span<const int32_t> prompt, int position) const {
    const std::vector<int32_t>& text = texts->at({prompt.begin(), prompt.end()});
    const size_t at = static_cast<size_t>(position) - prompt.size();
    return at < text.size() ? text[at] : 0;
  }
};

inline void expect_same(const SpeculationResult& got, const SpeculationResult& expected, const char* what) {
  int different = 0;
  for (const auto& [i, tokens] : expected.tokens) {
    different += got.tokens.at(i) != tokens;
    EXPECT_EQ(got.reasons.at(i), expected.reasons.at(i)) << what << ", request " << i;
  }
  EXPECT_EQ(different, 0) << what << ": texts that differ, of " << expected.tokens.size();
  for (const auto& [i, entries] : expected.logprobs) {
    const auto& other = got.logprobs.at(i);
    ASSERT_EQ(other.size(), entries.size()) << what;
    for (size_t k = 0; k < entries.size(); ++k) {
      ASSERT_EQ(other[k].size(), entries[k].size());
      EXPECT_EQ(other[k][0].token, entries[k][0].token) << what;
      EXPECT_NEAR(other[k][0].logprob, entries[k][0].logprob, 1e-3f) << what;
    }
  }
}

}  // namespace taco::testing
