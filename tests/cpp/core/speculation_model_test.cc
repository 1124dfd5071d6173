// Speculation on a tiny random model in float32: the text is the same with and without it, and a sampled text
// has the distribution of its model.
#include <cmath>
#include <cstdlib>

#include "../exec/tiny_model.h"
#include "speculation_case.h"

namespace taco {
namespace {

using testing::KnownTexts;

TEST(ModelSpeculation, NothingThatDraftsChangesTheText) {
  const auto jobs = testing::speculation_jobs(64, 97);
  auto model = testing::random_model(testing::tiny_spec(), make_cpu_backend(2));
  const auto expected = testing::run_jobs(model, jobs, nullptr, 1000, 2048);
  const KnownTexts truth(jobs, expected);
  struct Setting {
    const char* name;
    int64_t blocks;
    int budget, block_size;
  };
  for (const Setting& s : {Setting{"alone in the cache", 2000, 2048, 8}, Setting{"small steps", 2000, 70, 16},
                           Setting{"preempted", 60, 256, 8}, Setting{"large blocks", 500, 512, 32}}) {
    auto trees = std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 3, truth);
    const auto got = testing::run_jobs(model, jobs, trees, s.blocks, s.budget, s.block_size);
    testing::expect_same(got, expected, s.name);
    EXPECT_GT(trees->accepted, 100u) << s.name;
    EXPECT_EQ(trees->wrong_calls, 0) << s.name;
    if (s.blocks == 60) {
      EXPECT_GT(got.stats.preemptions, 0u);
    }
    auto garbage = std::make_shared<GarbageDrafter>(97, 4);
    testing::expect_same(testing::run_jobs(model, jobs, garbage, s.blocks, s.budget, s.block_size), expected,
                         "garbage");
  }
  auto oracle = std::make_shared<OracleDrafter<KnownTexts>>(7, truth);
  const auto fewest = testing::run_jobs(model, jobs, oracle, 2000, 2048);
  testing::expect_same(fewest, expected, "oracle");
  EXPECT_LT(fewest.stats.steps * 3, expected.stats.steps * 2);
  EXPECT_GT(oracle->accepted * 10, oracle->drafted * 9);  // ends cut runs
  auto controlled = std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 5, truth);
  testing::expect_same(testing::run_jobs(model, jobs, controlled, 2000, 2048, 8, true), expected,
                       "controller");
}

// Positions that are told apart by where they stand, not by where their K and V are.
TEST(ModelSpeculation, WindowsAndAlibiFollowTheTree) {
  const auto jobs = testing::speculation_jobs(24, 97);
  for (bool alibi : {false, true}) {
    ModelSpec spec = testing::tiny_spec();
    for (LayerSpec& layer : spec.layers) {
      layer.attn.window = 9;
      if (alibi) {
        layer.attn.rope = -1;
        layer.attn.alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
      }
    }
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      auto model = testing::random_model(spec, make_cpu_backend(2), dtype);
      const auto expected = testing::run_jobs(model, jobs, nullptr, 1000, 2048);
      auto trees = std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 3, KnownTexts(jobs, expected));
      const auto got = testing::run_jobs(model, jobs, trees, 1000, 2048);
      EXPECT_GT(trees->accepted, 100u);
      int different = 0;
      for (const auto& [i, tokens] : expected.tokens) different += got.tokens.at(i) != tokens;
      // K and V are rounded to bfloat16, which float32 scores see alike in any order but for ties.
      EXPECT_LE(different, dtype == DType::kF32 ? 0 : 2) << (alibi ? "alibi" : "rope");
    }
  }
}

// A model whose layers add nothing is a Markov chain: what follows depends on the last token alone. Tokens
// drawn at the nodes of every tree of up to three levels must have the chain's distribution.
TEST(ModelSpeculation, SampledTokensHaveTheModelsDistribution) {
  constexpr int kTokens = 6;
  ModelSpec spec = testing::tiny_spec(1, kTokens);
  auto model = testing::random_model(spec, make_cpu_backend(2), DType::kF32, 2, 0.06f, "layers.");

  // The exact chain.
  ModelExecutorConfig c{.max_model_len = 64, .block_size = 8, .num_blocks = 64, .kv_dtype = std::nullopt};
  std::vector<std::vector<double>> next(kTokens);
  {
    ModelExecutor executor(model, c);
    for (int32_t t = 0; t < kTokens; ++t) {
      const std::vector<float> logits = executor.forward({t}, {});
      double sum = 0;
      for (float x : logits) sum += std::exp(double{x});
      for (float x : logits) next[static_cast<size_t>(t)].push_back(std::exp(double{x}) / sum);
    }
  }

  // Trees of up to three levels; each node has some of the tokens as children, drawn evenly.
  class AllTrees final : public TestDrafter {
    void grow(const Text&, const DraftRequest& request) override {
      DraftTree& tree = *request.tree;
      uint64_t shape = ++count_ * 0x9e3779b97f4a7c15u;
      shape ^= shape >> 29;
      for (int level = 1, begin = 0; level <= std::min(3, request.max_depth); ++level) {
        const int end = tree.size;
        for (int node = begin; node < end; ++node) {
          const uint64_t children = shape % 64;  // any subset of the tokens
          shape = shape / 64 ^ shape * 0xbf58476d1ce4e5b9u;
          for (int32_t token = 0; token < kTokens; ++token)
            if (children >> token & 1 && tree.size < 16)
              tree.add(node, token, tree.p[node] * 0.5f, DraftSource::kOther);
        }
        begin = end;
      }
    }
    uint64_t count_ = 0;
  };
  auto drafter = std::make_shared<AllTrees>();
  c.max_num_batched_tokens = 2048;
  c.max_num_seqs = 16;
  c.max_model_len = 1024;
  c.num_blocks = 16 * 128 + 64;
  c.max_draft_rows = 512;
  EngineConfig config{.max_num_batched_tokens = 2048, .max_num_seqs = 16};
  config.speculation.method = SpeculationMethod::kNgram;
  config.speculation.cost_model = false;
  config.drafter = drafter;
  Engine engine(std::make_unique<ModelExecutor>(model, c), nullptr, config);
  // 10^6 draws in the long lane.
  const int kRequests = std::getenv("TACO_LONG_TESTS") ? 1250 : 200, kLength = 800;
  std::map<RequestId, std::vector<int32_t>> texts;
  for (int i = 0; i < kRequests; ++i) {
    SamplingParams params;
    params.seed = static_cast<uint64_t>(i);
    params.max_tokens = kLength;
    params.ignore_eos = true;
    params.detokenize = false;
    texts[engine.submit({i % kTokens}, params)] = {i % kTokens};
  }
  for (size_t finished = 0; finished < texts.size();) {
    std::vector<Output> outputs = engine.poll(std::chrono::seconds(60));
    ASSERT_FALSE(outputs.empty()) << engine.stats().death_reason;
    for (const Output& o : outputs) {
      std::vector<int32_t>& text = texts.at(o.request);
      text.insert(text.end(), o.token_ids.begin(), o.token_ids.end());
      finished += o.request_finished;
    }
  }
  EXPECT_GT(drafter->accepted, static_cast<uint64_t>(kRequests) * 300);
  std::vector<std::vector<double>> seen(kTokens, std::vector<double>(kTokens));
  double draws = 0;
  for (const auto& [id, text] : texts) {
    for (size_t i = 1; i < text.size(); ++i, ++draws)
      ++seen[static_cast<size_t>(text[i - 1])][static_cast<size_t>(text[i])];
  }
  EXPECT_EQ(draws, kRequests * kLength);
  double chi2 = 0;
  for (size_t a = 0; a < kTokens; ++a) {
    double row = 0;
    for (double x : seen[a]) row += x;
    for (size_t b = 0; b < kTokens; ++b) {
      const double expected = row * next[a][b];
      chi2 += (seen[a][b] - expected) * (seen[a][b] - expected) / expected;
    }
  }
  // 6 rows of 5 degrees of freedom: 59.7 is exceeded once in a thousand.
  EXPECT_LT(chi2, 59.7);
}

}  // namespace
}  // namespace taco
