// Sampling on the device against the host's sampler: the same token for the same seed and position, whatever
// the rules. A draw may differ only where the uniform number falls on a border of the distribution, within
// rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "cuda_test_util.h"
#include "exec/device_sampler.h"
#include "exec/philox.h"
#include "exec/sampler.h"
#include "exec/sampling_rules.h"

namespace taco::cuda::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

Sequence make_sequence(const SamplingParams& params, uint64_t seed, std::vector<int32_t> prompt = {0},
                       std::vector<int32_t> output = {}) {
  Sequence s;
  s.id = seed;
  s.params = std::make_shared<SamplingParams>(params);
  s.seed = seed;
  s.prompt_len = static_cast<int32_t>(prompt.size());
  s.tokens = std::move(prompt);
  s.tokens.insert(s.tokens.end(), output.begin(), output.end());
  return s;
}

std::shared_ptr<Backend> shared_backend() {
  return {&backend(), [](Backend*) {}};
}

// Row i of `logits` for sequence i, or row 0 for all of them.
std::vector<SampledToken> on_device(const std::vector<float>& logits, int vocab,
                                    const std::vector<Sequence>& sequences) {
  DeviceBuffer d_logits(logits);
  DeviceSampler sampler(shared_backend(), vocab, static_cast<int>(sequences.size()));
  const int rows = static_cast<int>(logits.size() / static_cast<size_t>(vocab));
  std::vector<DeviceSampler::Pick> picks;
  for (size_t i = 0; i < sequences.size(); ++i)
    picks.push_back({&sequences[i], static_cast<int32_t>(i) % rows});
  sampler.submit(picks, d_logits.as<float>());
  std::vector<SampledToken> out;
  sampler.collect(out);
  EXPECT_EQ(d_logits.get<float>() == logits, std::none_of(logits.begin(), logits.end(),
                                                          [](float v) {
                                                            return v != v;  // a NaN is equal to nothing
                                                          }))
      << "the logits were changed";
  return out;
}

std::vector<float> with_rules(std::vector<float> x, const Sequence& s) {
  const SamplingParams& p = *s.params;
  if (!p.allowed_token_ids.empty()) {
    std::vector<float> kept(x.size(), -kInf);
    for (int32_t id : p.allowed_token_ids) kept[id] = x[id];
    x = kept;
  }
  for_each_forbidden(s, [&](int32_t id) {
    if (id >= 0 && id < static_cast<int32_t>(x.size())) x[id] = -kInf;
  });
  for (auto [id, bias] : p.logit_bias) x[id] += bias;
  std::map<int32_t, int> seen;
  for (int32_t i = 0; i < s.len(); ++i) seen[s.tokens[i]] += i >= s.prompt_len;
  for (auto [id, count] : seen) {
    if (p.repetition_penalty != 1.0f)
      x[id] = x[id] > 0 ? x[id] / p.repetition_penalty : x[id] * p.repetition_penalty;
    if (count > 0) x[id] -= p.frequency_penalty * static_cast<float>(count) + p.presence_penalty;
  }
  return x;
}

// How far u is from the part of [0, 1) that belongs to `token`; 1 where the token is not kept at all.
double distance_to(int32_t token, double u, const std::vector<float>& logits, const SamplingParams& p) {
  const size_t n = logits.size();
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  if (p.top_k >= 1 && static_cast<size_t>(p.top_k) < n) {
    const float kth = logits[order[p.top_k - 1]];
    while (logits[order.back()] < kth) order.pop_back();
  }
  const double max = logits[order[0]];
  auto weight = [&](int32_t id) { return std::exp((logits[id] - max) / p.temperature); };
  double total = 0, above = 0;
  for (int32_t id : order) total += weight(id);
  size_t kept = 0;
  for (; kept < order.size() && (p.top_p >= 1.0f || kept == 0 || above < p.top_p * total); ++kept)
    above += weight(order[kept]);
  order.resize(kept);
  std::sort(order.begin(), order.end());
  double mass = 0;
  for (int32_t id : order)
    if (weight(id) >= p.min_p) mass += weight(id);
  double low = 0;
  for (int32_t id : order) {
    if (weight(id) < p.min_p) continue;
    const double high = low + weight(id) / mass;
    if (id == token) return std::max({0.0, low - u, u - high});
    low = high;
  }
  return 1;
}

// Samples on both sides and compares all there is. Returns how many draws differ, each of them on a border.
int compare(const std::vector<float>& logits, int vocab, const std::vector<Sequence>& sequences) {
  std::vector<SampledToken> device = on_device(logits, vocab, sequences);
  EXPECT_EQ(device.size(), sequences.size());
  Sampler sampler(vocab);
  int borders = 0;
  const size_t rows = logits.size() / static_cast<size_t>(vocab);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& s = sequences[i];
    const SamplingParams& p = *s.params;
    SCOPED_TRACE(str_cat("row ", i, " vocab ", vocab, " temperature ", p.temperature, " top_k ", p.top_k,
                         " top_p ", p.top_p, " min_p ", p.min_p, " logprobs ", p.logprobs));
    const auto start = logits.begin() + static_cast<int64_t>(i % rows * static_cast<size_t>(vocab));
    const std::vector<float> row(start, start + vocab);
    std::vector<float> changed = row;
    SampledToken host = sampler.sample(changed, s);
    EXPECT_EQ(device[i].error.empty(), host.error.empty()) << device[i].error << " / " << host.error;
    EXPECT_EQ(device[i].seq, s.id);
    if (!host.error.empty() || !device[i].error.empty()) continue;
    if (device[i].token != host.token) {
      const double u = philox_uniform(s.seed, static_cast<uint64_t>(s.output_len()));
      const double distance =
          p.temperature < 1e-5f ? 1.0 : distance_to(device[i].token, u, with_rules(row, s), p);
      EXPECT_LE(distance, 1e-5) << "device " << device[i].token << " host " << host.token << " u " << u;
      ++borders;
      continue;
    }
    EXPECT_NEAR(device[i].logprob, host.logprob, 1e-4);
    EXPECT_EQ(device[i].logprobs.size(), host.logprobs.size());
    for (size_t j = 0; j < std::min(device[i].logprobs.size(), host.logprobs.size()); ++j) {
      const TokenLogprob &a = device[i].logprobs[j], &b = host.logprobs[j];
      if (a.token != b.token || a.rank != b.rank ||
          !(std::abs(a.logprob - b.logprob) <= 1e-4f || a.logprob == b.logprob)) {
        ADD_FAILURE() << "logprob " << j << ": token " << a.token << " / " << b.token << ", rank " << a.rank
                      << " / " << b.rank << ", " << a.logprob << " / " << b.logprob;
        break;
      }
    }
  }
  return borders;
}

std::vector<SamplingParams> variants() {
  std::vector<SamplingParams> out;
  for (float temperature : {0.0f, 0.3f, 1.0f, 1.7f})
    for (int top_k : {-1, 1, 5, 50, 1000, 3000})
      for (float top_p : {1.0f, 0.9f, 0.3f})
        for (float min_p : {0.0f, 0.05f}) {
          if (temperature == 0.0f && (top_k > 0 || top_p < 1.0f || min_p > 0)) continue;
          SamplingParams p;
          p.temperature = temperature;
          p.top_k = top_k;
          p.top_p = top_p;
          p.min_p = min_p;
          out.push_back(p);
        }
  return out;
}

TEST(CudaSampling, FiltersAgreeWithTheHost) {
  TACO_SKIP_WITHOUT_DEVICE();
  int borders = 0, draws = 0;
  for (int vocab : {1, 50, 1003, 4096, 32000, 100003})
    for (float spread : {0.5f, 3.0f}) {
      std::vector<Sequence> sequences;
      for (const SamplingParams& p : variants())
        for (int repeat = 0; repeat < (vocab <= 4096 ? 8 : 1); ++repeat)
          sequences.push_back(
              make_sequence(p, 1000 + sequences.size(), {0}, std::vector<int32_t>(repeat, 0)));
      const int rows = 7;
      borders +=
          compare(random_floats(static_cast<size_t>(rows) * vocab, 31 + vocab, spread), vocab, sequences);
      draws += static_cast<int>(sequences.size());
    }
  EXPECT_GT(draws, 4000);
  EXPECT_LE(borders, 5) << "of " << draws;
}

// Large enough for the list in shared memory to overflow where little is filtered.
TEST(CudaSampling, LongRows) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int vocab = 128256;
  std::vector<Sequence> sequences;
  for (float top_p : {1.0f, 0.99f, 0.6f})
    for (int top_k : {-1, 20, 60000})
      for (float temperature : {0.0f, 0.8f, 2.0f}) {
        SamplingParams p;
        p.temperature = temperature;
        p.top_p = top_p;
        p.top_k = top_k;
        p.logprobs = 20;
        sequences.push_back(make_sequence(p, 77 + sequences.size()));
      }
  int borders = 0;
  for (float spread : {0.3f, 2.5f, 8.0f})
    borders += compare(random_floats(static_cast<size_t>(3) * vocab, 41, spread), vocab, sequences);
  EXPECT_LE(borders, 2);
}

// Logits of few different values: ties at every border of top-k and top-p.
TEST(CudaSampling, Ties) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int vocab : {64, 5000, 40000})
    for (int values : {1, 2, 6}) {
      std::vector<float> logits = random_floats(static_cast<size_t>(4) * vocab, 51);
      for (float& x : logits) x = static_cast<float>(std::lround(std::abs(x) * 1e6f) % values) - 1.0f;
      std::vector<Sequence> sequences;
      for (const SamplingParams& p : variants()) {
        sequences.push_back(make_sequence(p, 300 + sequences.size()));
        SamplingParams q = p;
        q.logprobs = 7;
        q.top_p = std::min(q.top_p, 0.5f);
        sequences.push_back(make_sequence(q, 300 + sequences.size()));
      }
      EXPECT_LE(compare(logits, vocab, sequences), 2);
    }
}

TEST(CudaSampling, TopPKeepsTheLowerIdsOfEquals) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int vocab = 6000;
  SamplingParams p;
  p.temperature = 1.0f;
  p.top_p = 0.5f;
  std::vector<Sequence> sequences;
  for (uint64_t i = 0; i < 2000; ++i) sequences.push_back(make_sequence(p, i));
  int highest = 0;
  for (const SampledToken& t : on_device(std::vector<float>(vocab, 0.25f), vocab, sequences))
    highest = std::max(highest, t.token);
  EXPECT_LT(highest, 3000);
  EXPECT_GT(highest, 2950);
}

TEST(CudaSampling, RulesAgreeWithTheHost) {
  TACO_SKIP_WITHOUT_DEVICE();
  int borders = 0;
  for (int vocab : {300, 32000, 50001}) {
    std::mt19937 rng(61);
    auto token = [&] { return static_cast<int32_t>(rng() % static_cast<uint32_t>(vocab)); };
    std::vector<Sequence> sequences;
    for (int i = 0; i < 96; ++i) {
      SamplingParams p;
      p.temperature = i % 3 == 0 ? 0.0f : 0.9f;
      if (i % 4 == 1) p.top_k = 40;
      if (i % 4 == 2) p.top_p = 0.8f;
      if (i % 5 == 0) p.logprobs = i % 7;
      if (i & 1) p.repetition_penalty = i % 8 == 1 ? 0.8f : 1.3f;
      if (i & 2) p.presence_penalty = 0.7f;
      if (i & 4) p.frequency_penalty = -0.4f;
      if (i & 8) {
        for (int j = 0; j < 20; ++j)
          p.logit_bias.emplace_back((j * 37 + i) % vocab, static_cast<float>(j) - 8.0f);
      }
      if (i & 16) {
        for (int j = 0; j < 90; ++j) p.allowed_token_ids.push_back(token());
      }
      if (i & 32) {
        p.min_tokens = 20;
        p.stop_token_ids = {1, 2, 3, vocab - 1};
        p.bad_words = {{5}, {7, 8}};
        p.no_repeat_ngram_size = 2;
      }
      std::vector<int32_t> prompt, output;
      for (int j = 0; j < 200; ++j) prompt.push_back(token());
      for (int j = 0; j < 12; ++j) output.push_back(j % 3 == 0 ? 9 : token());
      sequences.push_back(make_sequence(p, 900 + static_cast<uint64_t>(i), prompt, output));
    }
    borders += compare(random_floats(static_cast<size_t>(5) * vocab, 62, 2.0f), vocab, sequences);
  }
  EXPECT_LE(borders, 3);
}

TEST(CudaSampling, Logprobs) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int vocab : {30, 2000, 128256}) {
    std::vector<float> logits = random_floats(static_cast<size_t>(2) * vocab, 71, 4.0f);
    for (int i = 0; i < vocab; i += 3) logits[static_cast<size_t>(vocab + i)] = -kInf;
    std::vector<Sequence> sequences;
    for (int k : {-1, 0, 1, 5, 20, 100, 1024, 1500, vocab}) {
      for (float temperature : {0.0f, 1.0f}) {
        for (int row = 0; row < 2; ++row) {  // both rows of logits for each
          SamplingParams p;
          p.temperature = temperature;
          p.logprobs = std::min(k, vocab);
          sequences.push_back(make_sequence(p, 5 + sequences.size()));
        }
      }
    }
    EXPECT_LE(compare(logits, vocab, sequences), 1);
  }
}

TEST(CudaSampling, BadRowsAreReported) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int vocab = 9000;
  std::vector<float> logits = random_floats(static_cast<size_t>(5) * vocab, 81);
  logits[8000] = std::numeric_limits<float>::quiet_NaN();
  std::fill(logits.begin() + vocab, logits.begin() + 2 * vocab, -kInf);
  logits[2 * vocab + 8999] = kInf;
  logits[3 * vocab + 5] = -kInf;
  for (float temperature : {0.0f, 1.0f})
    for (float top_p : {1.0f, 0.9f}) {
      std::vector<Sequence> sequences;
      for (int i = 0; i < 5; ++i) {
        SamplingParams p;
        p.temperature = temperature;
        p.top_p = top_p;
        if (i == 3) p.allowed_token_ids = {5};
        sequences.push_back(make_sequence(p, static_cast<uint64_t>(i)));
      }
      EXPECT_EQ(compare(logits, vocab, sequences), 0);
      std::vector<SampledToken> out = on_device(logits, vocab, sequences);
      EXPECT_NE(out[0].error.find("NaN"), std::string::npos);
      EXPECT_NE(out[1].error.find("forbidden"), std::string::npos);
      EXPECT_NE(out[2].error.find("Infinity"), std::string::npos);
      EXPECT_NE(out[3].error.find("forbidden"), std::string::npos);
      EXPECT_EQ(out[4].error, "");
    }
}

TEST(CudaSampling, RowsDoNotDependOnTheBatch) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int vocab = 50257, rows = 40;
  std::vector<float> logits = random_floats(static_cast<size_t>(rows) * vocab, 91, 2.0f);
  std::vector<Sequence> sequences;
  std::vector<SamplingParams> all = variants();
  for (int i = 0; i < rows; ++i) {
    SamplingParams p = all[static_cast<size_t>(i * 5) % all.size()];
    if (i % 6 == 0) p.logprobs = 3;
    if (i % 7 == 0) p.presence_penalty = 0.5f;
    sequences.push_back(make_sequence(p, static_cast<uint64_t>(i), {1, 2, 3}, {4, 5}));
  }
  std::vector<SampledToken> batch = on_device(logits, vocab, sequences);
  for (int i = 0; i < rows; ++i) {
    const auto start = logits.begin() + int64_t{i} * vocab;
    SampledToken alone = on_device({start, start + vocab}, vocab, {sequences[i]})[0];
    EXPECT_EQ(alone.token, batch[i].token) << i;
    EXPECT_EQ(alone.logprob, batch[i].logprob) << i;
  }
}

// 100,000 draws of 12 tokens whose probabilities are known: chi-square with 11 degrees of freedom.
TEST(CudaSampling, DrawsFollowTheDistribution) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int vocab = 12, draws = 100000, batch = 4000;
  std::vector<float> logits(vocab);
  double total = 0;
  for (int i = 0; i < vocab; ++i) {
    logits[i] = std::log(static_cast<float>(i + 1));
    total += i + 1;
  }
  SamplingParams p;
  p.temperature = 1.0f;
  std::vector<int> counts(vocab);
  for (int start = 0; start < draws; start += batch) {
    std::vector<Sequence> sequences;
    for (int i = 0; i < batch; ++i)
      sequences.push_back(make_sequence(p, static_cast<uint64_t>(start + i) * 31 + 7));
    for (const SampledToken& t : on_device(logits, vocab, sequences)) ++counts[t.token];
  }
  double chi = 0;
  for (int i = 0; i < vocab; ++i) {
    const double expected = draws * (i + 1) / total;
    chi += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT_LT(chi, 31.3);  // passed by chance once in a thousand
}

}  // namespace
}  // namespace taco::cuda::test
