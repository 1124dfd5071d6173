// The sampler against plain references: each rule, the filters, the distribution of the draws.
#include "exec/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "base/error.h"
#include "exec/philox.h"

namespace taco {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Sequence make_sequence(const SamplingParams& params, std::vector<int32_t> prompt = {0},
                       std::vector<int32_t> output = {}, uint64_t seed = 7) {
  Sequence s;
  s.id = 11;
  s.params = std::make_shared<SamplingParams>(params);
  s.seed = seed;
  s.prompt_len = static_cast<int32_t>(prompt.size());
  s.tokens = std::move(prompt);
  s.tokens.insert(s.tokens.end(), output.begin(), output.end());
  return s;
}

SampledToken sample(std::vector<float> logits, const Sequence& sequence) {
  Sampler sampler(static_cast<int>(logits.size()));
  return sampler.sample(logits, sequence);
}

std::vector<float> random_logits(int n, uint32_t seed, float spread = 3.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

// Which ids are left by temperature, top-k, top-p and min-p, and their probabilities: by sorting, in double.
std::map<int32_t, double> reference_distribution(const std::vector<float>& logits, const SamplingParams& p) {
  size_t n = logits.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  if (p.top_k >= 1 && static_cast<size_t>(p.top_k) < n) {
    float kth = logits[order[static_cast<size_t>(p.top_k - 1)]];
    while (logits[order.back()] < kth) order.pop_back();
  }
  double max = logits[order[0]], total = 0;
  auto weight = [&](size_t id) { return std::exp((logits[id] - max) / p.temperature); };
  for (size_t id : order) total += weight(id);
  double above = 0;
  size_t kept = 0;
  for (; kept < order.size() && (p.top_p >= 1.0f || kept == 0 || above < p.top_p * total); ++kept)
    above += weight(order[kept]);
  order.resize(kept);
  std::map<int32_t, double> out;
  double mass = 0;
  for (size_t id : order)
    if (weight(id) >= p.min_p && weight(id) > 0) mass += out[static_cast<int32_t>(id)] = weight(id);
  for (auto& [id, w] : out) w /= mass;
  return out;
}

std::map<int32_t, int> draw_many(const std::vector<float>& logits, const SamplingParams& params, int draws) {
  Sampler sampler(static_cast<int>(logits.size()));
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i) {
    std::vector<float> row = logits;
    SampledToken t = sampler.sample(row, make_sequence(params, {0}, {}, static_cast<uint64_t>(i) * 977 + 5));
    EXPECT_EQ(t.error, "");
    ++counts[t.token];
  }
  return counts;
}

void expect_distribution(const std::map<int32_t, double>& expected, const std::map<int32_t, int>& counts,
                         int draws) {
  double chi2 = 0;
  int degrees = -1;
  double rest_expected = 0;
  int rest_counted = 0;
  for (const auto& [id, count] : counts)
    EXPECT_TRUE(expected.count(id)) << "token " << id << " was filtered out";
  for (const auto& [id, p] : expected) {
    auto found = counts.find(id);
    int count = found == counts.end() ? 0 : found->second;
    double e = p * draws;
    if (e < 5) {
      rest_expected += e;
      rest_counted += count;
      continue;
    }
    chi2 += (count - e) * (count - e) / e;
    ++degrees;
  }
  if (rest_expected > 0) {
    chi2 += (rest_counted - rest_expected) * (rest_counted - rest_expected) / std::max(rest_expected, 1.0);
    ++degrees;
  }
  // Five standard deviations above the mean of the chi-square distribution.
  EXPECT_LT(chi2, degrees + 5 * std::sqrt(2.0 * degrees) + 5);
}

TEST(Philox, KnownAnswers) {  // of the Random123 distribution
  using C = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (C{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  uint32_t f = 0xffffffff;
  EXPECT_EQ(philox4x32({f, f, f, f}, {f, f}), (C{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (C{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Sampler, GreedyTakesTheLowestIdOfATie) {
  SamplingParams p;
  p.temperature = 0;
  for (int n : {1, 3, 63, 64, 65, 1000, 4099}) {
    std::vector<float> x = random_logits(n, static_cast<uint32_t>(n));
    float top = *std::max_element(x.begin(), x.end()) + 1;
    size_t first = static_cast<size_t>(n) * 2 / 3;
    for (size_t i = first; i < x.size(); i += 7) x[i] = top;
    EXPECT_EQ(sample(x, make_sequence(p)).token, static_cast<int32_t>(first)) << n;
  }
  EXPECT_EQ(sample({-1.0f, -0.0f, 0.0f}, make_sequence(p)).token, 1);
  EXPECT_EQ(sample({-kInf, -kInf, -5.0f, -kInf}, make_sequence(p)).token, 2);
}

TEST(Sampler, LogprobIsOfTheUnmodifiedDistribution) {
  std::vector<float> x = random_logits(1003, 1);
  double sum = 0;
  for (float v : x) sum += std::exp(static_cast<double>(v));
  SamplingParams p;
  p.temperature = 0.7f;
  p.top_k = 5;
  p.logit_bias = {{3, 50.0f}};
  p.logprobs = 4;
  SampledToken t = sample(x, make_sequence(p));
  ASSERT_EQ(t.token, 3);
  EXPECT_NEAR(t.logprob, x[3] - std::log(sum), 1e-5);
  ASSERT_EQ(t.logprobs.size(), 5u);
  EXPECT_EQ(t.logprobs[0].token, 3);
  EXPECT_EQ(t.logprobs[0].rank, 1 + std::count_if(x.begin(), x.end(), [&](float v) { return v > x[3]; }));
  std::vector<float> sorted = x;
  std::sort(sorted.rbegin(), sorted.rend());
  for (size_t i = 1; i < 5; ++i) {
    EXPECT_EQ(x[static_cast<size_t>(t.logprobs[i].token)], sorted[i - 1]);
    EXPECT_NEAR(t.logprobs[i].logprob, sorted[i - 1] - std::log(sum), 1e-5);
    EXPECT_EQ(t.logprobs[i].rank, static_cast<int32_t>(i));
  }
}

TEST(Sampler, LogprobsOfTiesAndOfTheWholeVocabulary) {
  std::vector<float> x(200, 1.0f);
  x[50] = -kInf;
  PositionLogprobs l = Sampler::logprobs(x, 120, 200);
  ASSERT_EQ(l.size(), 201u);
  EXPECT_EQ(l[0].rank, 1);
  EXPECT_EQ(l[1].token, 0);
  EXPECT_EQ(l[51].token, 51);
  EXPECT_EQ(l[200].token, 50);
  EXPECT_EQ(l[200].logprob, -kInf);
  EXPECT_NEAR(l[0].logprob, -std::log(199.0), 1e-6);
  EXPECT_EQ(Sampler::logprobs(x, 50, 0).at(0).rank, 200);
}

TEST(Sampler, Seeds) {
  std::vector<float> x = random_logits(500, 3);
  SamplingParams p;
  Sequence s = make_sequence(p, {1, 2}, {3}, 42);
  int32_t token = sample(x, s).token;
  Sampler busy(500);  // what it did before makes no difference
  for (int i = 0; i < 10; ++i) {
    std::vector<float> other = random_logits(500, 100 + static_cast<uint32_t>(i));
    busy.sample(other, make_sequence(p, {1}, {}, static_cast<uint64_t>(i)));
  }
  std::vector<float> row = x;
  EXPECT_EQ(busy.sample(row, s).token, token);
  // The prompt is no part of the counter; the output position and the seed are.
  EXPECT_EQ(sample(x, make_sequence(p, {9, 9, 9, 9}, {5}, 42)).token, token);
  std::set<int32_t> others;
  for (uint64_t seed = 0; seed < 20; ++seed)
    others.insert(sample(x, make_sequence(p, {1, 2}, {3}, seed)).token);
  EXPECT_GT(others.size(), 5u);
  others.clear();
  std::vector<int32_t> output;
  for (int i = 0; i < 20; ++i, output.push_back(1))
    others.insert(sample(x, make_sequence(p, {1}, output, 42)).token);
  EXPECT_GT(others.size(), 5u);
}

struct Filter {
  float temperature, top_p;
  int top_k;
  float min_p;
};

class SamplerFilters : public testing::TestWithParam<Filter> {};

TEST_P(SamplerFilters, DrawTheReferenceDistribution) {
  for (int n : {5, 300}) {
    std::vector<float> x = random_logits(n, 17 + static_cast<uint32_t>(n), 1.5f);
    x[2] = -kInf;
    SamplingParams p;
    p.temperature = GetParam().temperature;
    p.top_p = GetParam().top_p;
    p.top_k = GetParam().top_k;
    p.min_p = GetParam().min_p;
    expect_distribution(reference_distribution(x, p), draw_many(x, p, 20000), 20000);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SamplerFilters,
                         testing::Values(Filter{1, 1, -1, 0}, Filter{0.6f, 1, -1, 0}, Filter{2, 1, -1, 0},
                                         Filter{1, 1, 3, 0}, Filter{1, 1, 1, 0}, Filter{1, 1, 250, 0},
                                         Filter{1, 0.9f, -1, 0}, Filter{1, 0.3f, -1, 0},
                                         Filter{0.8f, 0.95f, 40, 0}, Filter{1, 1, -1, 0.1f},
                                         Filter{1.3f, 0.9f, 100, 0.05f}, Filter{1, 1e-6f, -1, 0},
                                         Filter{0.05f, 0.99f, -1, 0}, Filter{1, 1, -1, 1}));

// The kept set, exactly, of nearly flat rows with many ties: drawn until every member has come.
TEST(Sampler, KeptSetsOfTiedLogits) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 rng(seed);
    int n = 20 + static_cast<int>(rng() % 150);
    std::vector<float> x(static_cast<size_t>(n));
    for (float& v : x) v = 0.25f * static_cast<float>(rng() % 4);  // many equal ones
    SamplingParams p;
    p.top_p = 0.05f + 0.9f * static_cast<float>(rng() % 1000) / 1000.0f;
    p.top_k = rng() % 2 ? static_cast<int>(rng() % static_cast<uint32_t>(n)) + 1 : -1;
    std::set<int32_t> expected, drawn;
    for (const auto& [id, w] : reference_distribution(x, p)) expected.insert(id);
    for (const auto& [id, count] : draw_many(x, p, 6000)) drawn.insert(id);
    EXPECT_EQ(drawn, expected) << "seed " << seed << " n " << n << " top_p " << p.top_p << " top_k "
                               << p.top_k;
  }
}

TEST(Sampler, TopPKeepsEqualShares) {  // ten equal tokens at 0.9: nine, the highest id removed
  std::vector<float> x(10, 1.0f);
  SamplingParams p;
  p.top_p = 0.9f;
  auto counts = draw_many(x, p, 3000);
  EXPECT_EQ(counts.size(), 9u);
  EXPECT_EQ(counts.count(9), 0u);
}

TEST(Sampler, LargeRowsMatchTheReferenceSets) {
  for (float spread : {0.3f, 3.0f}) {
    std::vector<float> x = random_logits(49152, 5, spread);
    for (float top_p : {0.5f, 0.95f, 0.999f}) {
      for (int top_k : {-1, 50, 2000, 40000}) {
        SamplingParams p;
        p.top_p = top_p;
        p.top_k = top_k;
        auto expected = reference_distribution(x, p);
        for (const auto& [id, count] : draw_many(x, p, 60))
          EXPECT_TRUE(expected.count(id)) << spread << " " << top_p << " " << top_k << " id " << id;
      }
    }
  }
}

TEST(Sampler, ExtremeTemperatures) {
  std::vector<float> x = {1, 5, 3, -200, 4.5f};
  SamplingParams p;
  p.temperature = 1e-4f;
  EXPECT_EQ(draw_many(x, p, 50).begin()->first, 1);
  p.temperature = 1e-6f;  // greedy
  EXPECT_EQ(draw_many(x, p, 50).begin()->first, 1);
  p.temperature = 1e30f;
  EXPECT_EQ(draw_many(x, p, 500).size(), 5u);
  x[0] = -kInf;
  EXPECT_EQ(draw_many(x, p, 500).size(), 4u);
  p.top_p = 0.99f;
  EXPECT_EQ(draw_many(x, p, 500).count(0), 0u);
}

SamplingParams greedy() {
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = 100;
  return p;
}

TEST(Sampler, PenaltiesFollowTheReference) {
  std::mt19937 rng(9);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> x = random_logits(30, static_cast<uint32_t>(round), 1.0f);
    SamplingParams p = greedy();
    p.repetition_penalty = 0.2f + 0.3f * static_cast<float>(rng() % 7);
    p.presence_penalty = -2.0f + static_cast<float>(rng() % 5);
    p.frequency_penalty = -2.0f + static_cast<float>(rng() % 5);
    std::vector<int32_t> prompt(5), output(rng() % 12);
    for (int32_t& id : prompt) id = static_cast<int32_t>(rng() % 30);
    for (int32_t& id : output) id = static_cast<int32_t>(rng() % 30);
    std::vector<float> y = x;
    for (int id = 0; id < 30; ++id) {
      float& v = y[static_cast<size_t>(id)];
      auto count = std::count(output.begin(), output.end(), id);
      if (count || std::count(prompt.begin(), prompt.end(), id))
        v = v > 0 ? v / p.repetition_penalty : v * p.repetition_penalty;
      if (count) v -= p.frequency_penalty * static_cast<float>(count) + p.presence_penalty;
    }
    auto best = static_cast<int32_t>(std::max_element(y.begin(), y.end()) - y.begin());
    std::vector<float> row = x;
    Sampler sampler(30);
    EXPECT_EQ(sampler.sample(row, make_sequence(p, prompt, output)).token, best);
    for (size_t i = 0; i < 30; ++i) EXPECT_NEAR(row[i], y[i], 1e-5) << i;
  }
}

// The ids that a rule forbids.
std::set<int32_t> forbidden(const SamplingParams& p, std::vector<int32_t> prompt,
                            std::vector<int32_t> output) {
  std::vector<float> row(20, 1.0f);
  Sampler sampler(20);
  EXPECT_EQ(sampler.sample(row, make_sequence(p, std::move(prompt), std::move(output))).error, "");
  std::set<int32_t> out;
  for (int32_t i = 0; i < 20; ++i)
    if (row[static_cast<size_t>(i)] == -kInf) out.insert(i);
  return out;
}

using Ids = std::set<int32_t>;

TEST(Sampler, BadWords) {
  SamplingParams p = greedy();
  p.bad_words = {{3}, {4, 5}, {4, 4, 6}, {7, 8, 9}};
  EXPECT_EQ(forbidden(p, {1}, {}), (Ids{3}));
  EXPECT_EQ(forbidden(p, {1}, {4}), (Ids{3, 5}));
  EXPECT_EQ(forbidden(p, {4}, {4}), (Ids{3, 5}));  // what the prompt began is not the output's
  EXPECT_EQ(forbidden(p, {1}, {4, 4}), (Ids{3, 5, 6}));
  EXPECT_EQ(forbidden(p, {1}, {2, 7, 8}), (Ids{3, 9}));
}

TEST(Sampler, NoRepeatNgram) {
  SamplingParams p = greedy();
  p.no_repeat_ngram_size = 1;
  EXPECT_EQ(forbidden(p, {1, 2}, {5}), (Ids{1, 2, 5}));
  p.no_repeat_ngram_size = 2;
  EXPECT_EQ(forbidden(p, {1, 2, 3}, {1}), (Ids{2}));
  EXPECT_EQ(forbidden(p, {1, 2, 1, 4, 9}, {1}), (Ids{2, 4}));
  EXPECT_EQ(forbidden(p, {1, 1}, {1}), (Ids{1}));
  p.no_repeat_ngram_size = 3;
  EXPECT_EQ(forbidden(p, {1, 2, 3, 5}, {1, 2}), (Ids{3}));
  EXPECT_EQ(forbidden(p, {1}, {2}), (Ids{}));
  EXPECT_EQ(forbidden(p, {1}, {}), (Ids{}));
}

TEST(Sampler, MinTokensForbidsTheEnds) {
  SamplingParams p = greedy();
  p.min_tokens = 2;
  p.eos_token_ids = {2, 4};
  p.stop_token_ids = {7};
  EXPECT_EQ(forbidden(p, {1}, {5}), (Ids{2, 4, 7}));
  EXPECT_EQ(forbidden(p, {1}, {5, 5}), (Ids{}));
  p.ignore_eos = true;
  EXPECT_EQ(forbidden(p, {1}, {5}), (Ids{7}));
}

TEST(Sampler, AllowedIdsAndBias) {
  SamplingParams p = greedy();
  p.allowed_token_ids = {3, 9, 3};
  p.logit_bias = {{9, 2.0f}, {5, 100.0f}};
  std::vector<float> x(20, 1.0f);
  EXPECT_EQ(sample(x, make_sequence(p)).token, 9);
  Ids rest;
  for (int32_t i = 0; i < 20; ++i)
    if (i != 3 && i != 9) rest.insert(i);
  EXPECT_EQ(forbidden(p, {1}, {}), rest);
}

TEST(Sampler, ProcessorSeesTheTokensAndChangesTheRow) {
  SamplingParams p = greedy();
  p.bad_words = {{0}};
  p.logits_processor = [](std::span<const int32_t> prompt, std::span<const int32_t> output,
                          std::span<float> row) {
    EXPECT_EQ(std::vector<int32_t>(prompt.begin(), prompt.end()), (std::vector<int32_t>{1, 2}));
    EXPECT_EQ(std::vector<int32_t>(output.begin(), output.end()), (std::vector<int32_t>{3}));
    EXPECT_EQ(row[0], -kInf);
    row[6] = kInf;
  };
  EXPECT_EQ(sample(random_logits(20, 1), make_sequence(p, {1, 2}, {3})).token, 6);
  p.temperature = 1;
  EXPECT_EQ(sample(random_logits(20, 1), make_sequence(p, {1, 2}, {3})).token, 6);
}

TEST(Sampler, FailuresStayWithTheSequence) {
  SamplingParams p;
  std::vector<float> x = random_logits(100, 2);
  Sampler sampler(100);
  for (float bad : {kNan, kInf}) {
    for (size_t at : {size_t{0}, size_t{70}, size_t{99}}) {
      std::vector<float> row = x;
      row[at] = bad;
      SampledToken t = sampler.sample(row, make_sequence(p));
      EXPECT_NE(t.error, "");
      EXPECT_EQ(t.token, -1);
      EXPECT_EQ(t.seq, 11u);
    }
  }
  std::vector<float> none(100, -kInf);
  EXPECT_NE(sampler.sample(none, make_sequence(p)).error, "");

  SamplingParams masked;
  masked.allowed_token_ids = {5};
  masked.bad_words = {{5}};
  std::vector<float> row = x;
  EXPECT_NE(sampler.sample(row, make_sequence(masked)).error.find("forbidden"), std::string::npos);

  SamplingParams thrower;
  thrower.logits_processor = [](auto, auto, auto) {
    throw std::runtime_error("processor: division by zero");
  };
  row = x;
  EXPECT_EQ(sampler.sample(row, make_sequence(thrower)).error, "processor: division by zero");
  thrower.logits_processor = [](auto, auto, std::span<float> r) { r[3] = kNan; };
  row = x;
  EXPECT_NE(sampler.sample(row, make_sequence(thrower)).error, "");

  row = x;  // and the sampler still works
  EXPECT_EQ(sampler.sample(row, make_sequence(p)).error, "");
}

// --- typical acceptance

SampledToken sample_typical(std::vector<float> logits, const Sequence& sequence, std::vector<int32_t> drafts,
                            float threshold = 0.09f, float alpha = 0.3f) {
  Sampler sampler(static_cast<int>(logits.size()));
  const TypicalAcceptance typical{drafts, threshold, alpha};
  return sampler.sample(logits, sequence, &typical);
}

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> x;
  for (double p : probabilities) x.push_back(static_cast<float>(std::log(p)));
  return x;
}

TEST(TypicalAcceptance, TakesTheLikeliestDraftAboveTheLimitWhateverTheDraw) {
  const std::vector<float> x = logits_of({0.5, 0.3, 0.15, 0.05});
  SamplingParams p;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Sequence s = make_sequence(p, {0}, {}, seed);
    EXPECT_EQ(sample_typical(x, s, {2, 1}).token, 1);
    EXPECT_EQ(sample_typical(x, s, {2}).token, 2);  // 0.15 > 0.09
    const SampledToken t = sample_typical(x, s, {2});
    EXPECT_NEAR(t.logprob, std::log(0.15), 1e-5);
    EXPECT_EQ(sample_typical(x, s, {3}).token, sample(x, s).token);  // 0.05 is not: the usual draw
    EXPECT_EQ(sample_typical(x, s, {}).token, sample(x, s).token);
  }
}

TEST(TypicalAcceptance, TheLimitFallsWithTheEntropy) {
  // n equally likely tokens: the entropy is log n, the limit 0.3 / n, and each has 1 / n.
  SamplingParams p;
  const std::vector<float> flat(100, 0.0f);
  for (uint64_t seed = 0; seed < 20; ++seed)
    EXPECT_EQ(sample_typical(flat, make_sequence(p, {0}, {}, seed), {42}).token, 42);
  for (uint64_t seed = 0; seed < 20; ++seed) {  // alpha 1.01: the limit is just above
    const Sequence s = make_sequence(p, {0}, {}, seed);
    EXPECT_EQ(sample_typical(flat, s, {42}, 1.0f, 1.01f).token, sample(flat, s).token);
  }
  // A distribution between: the limit is where the formula says.
  const std::vector<double> q{0.6, 0.2, 0.1, 0.06, 0.04};
  double entropy = 0;
  for (double w : q) entropy -= w * std::log(w);
  const auto alpha_for = [&](double limit) { return static_cast<float>(limit * std::exp(entropy)); };
  const Sequence s = make_sequence(p, {0}, {}, 3);
  ASSERT_NE(sample(logits_of(q), s).token, 3);
  EXPECT_EQ(sample_typical(logits_of(q), s, {3}, 1.0f, alpha_for(0.0599)).token, 3);
  EXPECT_NE(sample_typical(logits_of(q), s, {3}, 1.0f, alpha_for(0.0601)).token, 3);
}

TEST(TypicalAcceptance, FollowsTheRulesOfTheRequest) {
  const std::vector<float> x = logits_of({0.4, 0.3, 0.2, 0.1});
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SamplingParams p;
    p.temperature = 0.0f;  // greedy: exact
    EXPECT_EQ(sample_typical(x, make_sequence(p, {0}, {}, seed), {1}).token, 0);
    p.temperature = 1.0f;
    p.top_k = 2;
    EXPECT_LE(sample_typical(x, make_sequence(p, {0}, {}, seed), {2}).token, 1);  // filtered out
    EXPECT_EQ(sample_typical(x, make_sequence(p, {0}, {}, seed), {2, 1}).token, 1);
    p.top_k = -1;
    p.top_p = 0.65f;
    EXPECT_LE(sample_typical(x, make_sequence(p, {0}, {}, seed), {3}).token, 1);
    p.top_p = 1.0f;
    p.allowed_token_ids = {0, 3};
    EXPECT_EQ(sample_typical(x, make_sequence(p, {0}, {}, seed), {1, 3}).token, 3);
  }
  SamplingParams p;  // and the temperature: 0.1 becomes far less than 0.09 of the mass
  p.temperature = 0.2f;
  EXPECT_EQ(sample_typical(x, make_sequence(p), {3}).token, sample(x, make_sequence(p)).token);
}

}  // namespace
}  // namespace taco
