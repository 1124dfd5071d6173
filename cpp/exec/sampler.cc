#include "exec/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "exec/philox.h"
#include "exec/sampler_kernels.h"
#include "exec/sampling_rules.h"

namespace taco {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;
constexpr float kNoWeight = 88.0f;  // exp of less is 0 in sum_exp

float bins_per_logit(float width) { return static_cast<float>(sampling::kBins) / std::max(width, 1e-30f); }

void check_row(const sampling::RowMax& row, const char* where) {
  TACO_REQUIRE(!row.has_nan, "The logits ", where, " contain NaN.");
  TACO_REQUIRE(row.max > -kInf, "The logits ", where, " are all -Infinity: every token is forbidden.");
}

// The tokens that top-k, top-p and min-p look at, in the order of ids.
struct Candidates {
  std::vector<int32_t> ids;
  std::vector<float> logits, weights;
  size_t count = 0;

  void reserve(size_t n) {
    ids.resize(n);
    logits.resize(n);
    weights.resize(n);
  }
};

}  // namespace

struct Sampler::Scratch {
  explicit Scratch(int n)
      : vocab_size(n),
        raw(static_cast<size_t>(n)),
        weights(static_cast<size_t>(n)),
        counts(static_cast<size_t>(n), 0),
        block_max(static_cast<size_t>(sampling::num_blocks(n))),
        block_sums(block_max.size()),
        bins(static_cast<size_t>(n)) {
    candidates.reserve(static_cast<size_t>(n));
  }

  int vocab_size;
  std::vector<float> raw;       // the logits before any rule, when a rule changes them
  std::vector<float> weights;   // exp of the scaled logits
  std::vector<int32_t> counts;  // of tokens seen; all zero between calls
  std::vector<int32_t> seen;    // the tokens with a count
  std::vector<float> block_max, block_sums, order;
  std::vector<uint16_t> bins;
  std::vector<int32_t> inside;  // candidates in the bin of interest
  Candidates candidates;

  bool apply_rules(std::span<float> logits, const Sequence& sequence);
  void forbid_all_but(std::span<float> logits, const std::vector<int32_t>& allowed);
  void penalise(std::span<float> logits, const Sequence& sequence);
  void collect(std::span<const float> logits, float least);
  float keep_top_k(std::span<const float> logits, int k, float max, float temperature);
  void keep_top_p(double limit, float least, float max, float temperature);
  void keep_min_p(float min_p);
  int32_t draw_from_candidates(double u) const;
  int32_t draw_from_row(double u, double total) const;
  int32_t likely_draft(const TypicalAcceptance& typical, bool among_candidates) const;
  int32_t choose(std::span<float> logits, float max, const Sequence& sequence,
                 const TypicalAcceptance* typical);
};

namespace {

bool changes_logits(const SamplingParams& p, const Sequence& sequence) {
  return !p.allowed_token_ids.empty() || !p.bad_words.empty() || p.no_repeat_ngram_size > 0 ||
         sequence.output_len() < p.min_tokens || !p.logit_bias.empty() || p.logits_processor != nullptr ||
         p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

void forbid(std::span<float> logits, int32_t id) {
  if (id >= 0 && static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] = -kInf;
}

}  // namespace

void Sampler::Scratch::forbid_all_but(std::span<float> logits, const std::vector<int32_t>& allowed) {
  for (int32_t id : allowed)
    if (id >= 0 && id < vocab_size) counts[static_cast<size_t>(id)] = 1;
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = counts[i] ? logits[i] : -kInf;
  for (int32_t id : allowed)
    if (id >= 0 && id < vocab_size) counts[static_cast<size_t>(id)] = 0;
}

// Repetition looks at prompt and output; presence and frequency at the output alone.
void Sampler::Scratch::penalise(std::span<float> logits, const Sequence& sequence) {
  const SamplingParams& p = *sequence.params;
  auto see = [&](std::span<const int32_t> tokens) {
    for (int32_t id : tokens)
      if (id >= 0 && id < vocab_size && counts[static_cast<size_t>(id)]++ == 0) seen.push_back(id);
  };
  if (p.repetition_penalty != 1.0f) {
    see(sequence.tokens);
    for (int32_t id : seen) {
      float& x = logits[static_cast<size_t>(id)];
      x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
      counts[static_cast<size_t>(id)] = 0;
    }
    seen.clear();
  }
  if (p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f) {
    see(sequence.output());
    for (int32_t id : seen) {
      int32_t& count = counts[static_cast<size_t>(id)];
      logits[static_cast<size_t>(id)] -= p.frequency_penalty * static_cast<float>(count) + p.presence_penalty;
      count = 0;
    }
    seen.clear();
  }
}

// Returns whether the logits may have changed; `raw` then holds them as they were.
bool Sampler::Scratch::apply_rules(std::span<float> logits, const Sequence& sequence) {
  const SamplingParams& p = *sequence.params;
  if (!changes_logits(p, sequence)) return false;
  std::copy(logits.begin(), logits.end(), raw.begin());
  if (!p.allowed_token_ids.empty()) forbid_all_but(logits, p.allowed_token_ids);
  for_each_forbidden(sequence, [&](int32_t id) { forbid(logits, id); });
  for (const auto& [id, bias] : p.logit_bias)
    if (id >= 0 && id < vocab_size) logits[static_cast<size_t>(id)] += bias;
  if (p.logits_processor) p.logits_processor(sequence.prompt(), sequence.output(), logits);
  penalise(logits, sequence);
  return true;
}

// The candidates become the tokens with a logit of at least `least`, in the order of ids.
void Sampler::Scratch::collect(std::span<const float> logits, float least) {
  int32_t* ids = candidates.ids.data();
  float* values = candidates.logits.data();
  size_t count = 0;
  for (size_t b = 0; b < block_max.size(); ++b) {
    if (!(block_max[b] >= least)) continue;
    size_t end = std::min(logits.size(), (b + 1) * sampling::kBlock);
    for (size_t i = b * sampling::kBlock; i < end; ++i) {  // without branches: about a cycle an element
      ids[count] = static_cast<int32_t>(i);
      values[count] = logits[i];
      count += logits[i] >= least;
    }
  }
  candidates.count = count;
}

// The k largest, and what equals the smallest of them, which is returned. max: the largest.
float Sampler::Scratch::keep_top_k(std::span<const float> logits, int k, float max, float temperature) {
  auto kth_largest = [&](std::vector<float>& values, size_t kth) {
    auto at = values.begin() + static_cast<ptrdiff_t>(kth - 1);
    std::nth_element(values.begin(), at, values.end(), std::greater<float>());
    return *at;
  };
  size_t wanted = static_cast<size_t>(k);
  if (wanted <= block_max.size()) {
    // At least k elements reach the k-th largest block maximum, so nothing below it is wanted.
    order = block_max;
    collect(logits, kth_largest(order, wanted));
    order.assign(candidates.logits.begin(),
                 candidates.logits.begin() + static_cast<ptrdiff_t>(candidates.count));
  } else {  // the bin in which the count passes k
    sampling::bins_of(logits.data(), vocab_size, max, bins_per_logit(kNoWeight * temperature), bins.data());
    uint32_t counts_of[2][sampling::kBins] = {};
    for (size_t i = 0; i < logits.size(); ++i) ++counts_of[i & 1][bins[i]];
    size_t bin = 0, in_bin = counts_of[0][0] + counts_of[1][0];
    while (in_bin < wanted) {
      wanted -= in_bin;
      ++bin;
      in_bin = counts_of[0][bin] + counts_of[1][bin];
    }
    order.resize(logits.size());
    size_t count = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      order[count] = logits[i];
      count += bins[i] == bin;
    }
    order.resize(count);
  }
  float least = kth_largest(order, wanted);
  collect(logits, least);
  return least;
}

// Keeps a candidate when the mass of the likelier ones is below `limit`. The candidates are first spread over
// bins of equal width in the logit, which a comparison of two tokens never contradicts; only the bin in which
// the mass passes the limit is sorted. least, max: bounds of the candidates' logits.
void Sampler::Scratch::keep_top_p(double limit, float least, float max, float temperature) {
  const size_t count = candidates.count;
  const float* values = candidates.logits.data();
  float* weights = candidates.weights.data();
  float width = std::min(max - least, kNoWeight * temperature);
  sampling::bins_of(values, static_cast<int>(count), max, bins_per_logit(width), bins.data());
  double mass[2][sampling::kBins] = {};
  for (size_t i = 0; i < count; ++i) mass[i & 1][bins[i]] += weights[i];
  double above = 0;
  size_t crossing = 0;
  for (; crossing < sampling::kBins; ++crossing) {
    double next = above + (mass[0][crossing] + mass[1][crossing]);
    if (next >= limit) break;
    above = next;
  }

  inside.clear();
  for (size_t i = 0; i < count; ++i)
    if (bins[i] == crossing) inside.push_back(static_cast<int32_t>(i));
  std::sort(inside.begin(), inside.end(), [&](int32_t a, int32_t b) {
    float x = values[a], y = values[b];
    return x != y ? x > y : a < b;
  });
  size_t inside_kept = 0;
  for (; inside_kept < inside.size() && above < limit; ++inside_kept) above += weights[inside[inside_kept]];
  for (size_t i = inside_kept; i < inside.size(); ++i) bins[static_cast<size_t>(inside[i])] = sampling::kBins;

  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    candidates.ids[kept] = candidates.ids[i];
    weights[kept] = weights[i];
    kept += bins[i] <= crossing;
  }
  candidates.count = kept;
}

// The most likely token's weight is 1.
void Sampler::Scratch::keep_min_p(float min_p) {
  size_t kept = 0;
  for (size_t i = 0; i < candidates.count; ++i) {
    float weight = candidates.weights[i];
    candidates.ids[kept] = candidates.ids[i];
    candidates.weights[kept] = weight;
    kept += weight >= min_p;
  }
  candidates.count = kept;
}

// The first token at which the running sum, in the order of ids, exceeds u of the whole.
int32_t Sampler::Scratch::draw_from_candidates(double u) const {
  double total = 0, sum = 0;
  for (size_t i = 0; i < candidates.count; ++i) total += candidates.weights[i];
  int32_t last = -1;
  for (size_t i = 0; i < candidates.count; ++i) {
    if (candidates.weights[i] <= 0) continue;
    last = candidates.ids[i];
    sum += candidates.weights[i];
    if (sum > u * total) break;
  }
  return last;
}

int32_t Sampler::Scratch::draw_from_row(double u, double total) const {
  double target = u * total, sum = 0;
  size_t block = 0, last_block = 0;
  for (; block < block_sums.size(); ++block) {
    if (block_sums[block] > 0) last_block = block;
    if (sum + block_sums[block] > target) break;
    sum += block_sums[block];
  }
  if (block == block_sums.size()) {  // rounding: u close to 1
    block = last_block;
    target = std::numeric_limits<double>::infinity();
  }
  size_t end = std::min(weights.size(), (block + 1) * sampling::kBlock);
  int32_t last = -1;
  for (size_t i = block * sampling::kBlock; i < end; ++i) {
    if (weights[i] <= 0) continue;
    last = static_cast<int32_t>(i);
    sum += weights[i];
    if (sum > target) break;
  }
  return last;
}

// The draft to take without a draw, or -1. The weights are the candidates', or those of the whole row.
int32_t Sampler::Scratch::likely_draft(const TypicalAcceptance& typical, bool among_candidates) const {
  const float* values = among_candidates ? candidates.weights.data() : weights.data();
  const size_t count = among_candidates ? candidates.count : weights.size();
  double total = 0, sum = 0;  // the entropy is log(total) - sum(w log w) / total
  for (size_t i = 0; i < count; ++i) {
    const double w = values[i];
    if (w <= 0) continue;
    total += w;
    sum += w * std::log(w);
  }
  const double entropy = std::log(total) - sum / total;
  double best = std::min<double>(typical.threshold, typical.alpha * std::exp(-entropy)) * total;
  int32_t taken = -1;
  for (int32_t id : typical.drafts) {
    size_t at = static_cast<size_t>(id);
    if (among_candidates) {  // in the order of ids
      const auto end = candidates.ids.begin() + static_cast<ptrdiff_t>(count);
      const auto found = std::lower_bound(candidates.ids.begin(), end, id);
      if (found == end || *found != id) continue;
      at = static_cast<size_t>(found - candidates.ids.begin());
    }
    if (!(values[at] > best)) continue;
    best = values[at];
    taken = id;
  }
  return taken;
}

// block_max belongs to `logits`, and max is their finite maximum.
int32_t Sampler::Scratch::choose(std::span<float> logits, float max, const Sequence& sequence,
                                 const TypicalAcceptance* typical) {
  const SamplingParams& p = *sequence.params;
  if (p.temperature < kGreedyBelow)
    return sampling::first_index_of(logits.data(), vocab_size, block_max.data(), max);

  const float scale = 1.0f / p.temperature;
  const double u = philox_uniform(sequence.seed, static_cast<uint64_t>(sequence.output_len()));
  const bool top_k = p.top_k >= 1 && p.top_k < vocab_size;
  const bool top_p = p.top_p<1.0f, min_p = p.min_p> 0.0f;
  if (!top_k && !top_p && !min_p) {
    double total =
        sampling::sum_exp(logits.data(), vocab_size, max, scale, weights.data(), block_sums.data());
    const int32_t taken = typical ? likely_draft(*typical, false) : -1;
    return taken >= 0 ? taken : draw_from_row(u, total);
  }

  double total = 0;
  float least = -kInf;
  if (top_k) {
    least = keep_top_k(logits, p.top_k, max, p.temperature);
  } else {
    // What is below both bounds cannot be kept: tokens with less than (1 - top_p) / vocab_size of the mass
    // weigh less than 1 - top_p all together. The margin covers rounding; the exact rules follow.
    float bound = -kInf;
    if (top_p) {
      total = sampling::sum_exp(logits.data(), vocab_size, max, scale, nullptr, nullptr);
      double share = (1.0 - static_cast<double>(p.top_p)) * total / vocab_size;
      bound = static_cast<float>(std::log(share)) - 0.01f;
    }
    if (min_p) bound = std::max(bound, std::log(p.min_p) - 0.01f);
    // min-p alone may lift the bound, as what it removes lies below everything that it keeps.
    least = max + bound * p.temperature;
    least = std::min(least - std::abs(least) * 1e-6f, max);
    collect(logits, least);
  }
  double mass = sampling::sum_exp(candidates.logits.data(), static_cast<int>(candidates.count), max, scale,
                                  candidates.weights.data(), nullptr);
  if (top_p) keep_top_p(static_cast<double>(p.top_p) * (top_k ? mass : total), least, max, p.temperature);
  if (min_p) keep_min_p(p.min_p);
  const int32_t taken = typical ? likely_draft(*typical, true) : -1;
  return taken >= 0 ? taken : draw_from_candidates(u);
}

Sampler::Sampler(int vocab_size) {
  TACO_REQUIRE(vocab_size > 0, "vocab_size must be positive.");
  scratch_ = std::make_unique<Scratch>(vocab_size);
}

Sampler::~Sampler() = default;

SampledToken Sampler::sample(std::span<float> logits, const Sequence& sequence,
                             const TypicalAcceptance* typical) {
  SampledToken out;
  out.seq = sequence.id;
  Scratch& s = *scratch_;
  try {
    TACO_CHECK(logits.size() == static_cast<size_t>(s.vocab_size));
    sampling::RowMax row = sampling::row_max(logits.data(), s.vocab_size, s.block_max.data());
    check_row(row, "of the model");
    TACO_REQUIRE(row.max < kInf, "The logits of the model contain Infinity.");
    const double log_sum =
        row.max + std::log(sampling::sum_exp(logits.data(), s.vocab_size, row.max, 1.0f, nullptr, nullptr));

    std::span<const float> raw = logits;
    if (s.apply_rules(logits, sequence)) {
      raw = s.raw;
      row = sampling::row_max(logits.data(), s.vocab_size, s.block_max.data());
      check_row(row, "after the rules of the request");
      if (row.max == kInf) {  // a processor that forces tokens
        for (float& x : logits) x = std::min(x, std::numeric_limits<float>::max());
        row = sampling::row_max(logits.data(), s.vocab_size, s.block_max.data());
      }
    }
    out.token = s.choose(logits, row.max, sequence, typical);
    TACO_CHECK(out.token >= 0);
    out.logprob = static_cast<float>(raw[static_cast<size_t>(out.token)] - log_sum);
    if (sequence.params->logprobs >= 0) out.logprobs = logprobs(raw, out.token, sequence.params->logprobs);
  } catch (const std::exception& e) {
    out.token = -1;
    out.error = e.what();
    if (out.error.empty()) out.error = "Sampling failed.";
  } catch (...) {
    out.token = -1;
    out.error = "Sampling failed.";
  }
  if (!out.error.empty()) {  // what an interrupted rule left behind
    std::fill(s.counts.begin(), s.counts.end(), 0);
    s.seen.clear();
  }
  return out;
}

PositionLogprobs Sampler::logprobs(std::span<const float> logits, int32_t token, int k) {
  const int n = static_cast<int>(logits.size());
  TACO_REQUIRE(token >= 0 && token < n, "token id ", token, " is not in the vocabulary (0 to ", n - 1, ").");
  thread_local std::vector<float> block_max;
  thread_local std::vector<std::pair<float, int32_t>> best;
  block_max.resize(static_cast<size_t>(sampling::num_blocks(n)));
  sampling::RowMax row = sampling::row_max(logits.data(), n, block_max.data());
  check_row(row, "of the model");
  TACO_REQUIRE(row.max < kInf, "The logits of the model contain Infinity.");
  const double log_sum =
      row.max + std::log(sampling::sum_exp(logits.data(), n, row.max, 1.0f, nullptr, nullptr));

  PositionLogprobs out;
  k = std::clamp(k, 0, n);
  out.reserve(static_cast<size_t>(k) + 1);
  float chosen = logits[static_cast<size_t>(token)];
  out.push_back(
      {token, static_cast<float>(chosen - log_sum), sampling::count_greater(logits.data(), n, chosen) + 1});
  if (k == 0) return out;

  float least = -kInf;  // the k-th largest block maximum: nothing below it can be among the k
  if (static_cast<size_t>(k) <= block_max.size()) {
    std::vector<float> order = block_max;
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<float>());
    least = order[static_cast<size_t>(k - 1)];
  }
  best.clear();
  for (size_t b = 0; b < block_max.size(); ++b) {
    if (!(block_max[b] >= least)) continue;
    size_t end = std::min(logits.size(), (b + 1) * sampling::kBlock);
    for (size_t i = b * sampling::kBlock; i < end; ++i)
      if (logits[i] >= least) best.emplace_back(logits[i], static_cast<int32_t>(i));
  }
  auto likelier = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  std::partial_sort(best.begin(), best.begin() + k, best.end(), likelier);
  for (int i = 0; i < k; ++i)
    out.push_back({best[static_cast<size_t>(i)].second,
                   static_cast<float>(best[static_cast<size_t>(i)].first - log_sum), i + 1});
  return out;
}

}  // namespace taco
