#include "spec/ngram_drafter.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace taco {
namespace {

constexpr int kLengths = 8, kDepths = 16;
constexpr uint32_t kGramBits = 63;

int first_class(int gram) { return std::min(gram, kLengths - 1); }
int next_class(int gram, int depth) { return first_class(gram) * kDepths + std::min(depth, kDepths - 1); }

}  // namespace

NgramDrafter::NgramDrafter(int ngram_min, int ngram_max, int num_speculative_tokens)
    : min_(ngram_min),
      max_(ngram_max),
      depth_(num_speculative_tokens),
      first_rates_(kLengths, kLengths),
      next_rates_(kLengths * kDepths, kLengths * kDepths) {
  TACO_REQUIRE(ngram_max >= 1 && ngram_max <= kMaxGram, "--ngram-prompt-lookup-max = ", ngram_max, ": 1 to ",
               kMaxGram, " are allowed");
  TACO_REQUIRE(ngram_min >= 1 && ngram_min <= ngram_max, "--ngram-prompt-lookup-min = ", ngram_min,
               ": 1 to --ngram-prompt-lookup-max (", ngram_max, ") are allowed");
  TACO_REQUIRE(num_speculative_tokens >= 1 && num_speculative_tokens < DraftTree::kMaxNodes,
               "--num-speculative-tokens = ", num_speculative_tokens, ": 1 to ", DraftTree::kMaxNodes - 1,
               " are allowed");
  for (int i = 0; i < kLengths; ++i) {
    first_rates_.set_prior(i, 0.2f + 0.07f * static_cast<float>(i));
    for (int d = 0; d < kDepths; ++d) next_rates_.set_prior(i * kDepths + d, 0.6f);
  }
}

void NgramDrafter::widen(Sequence& s) {
  std::vector<Slot> old(std::max<size_t>(256, s.slots.size() * 2), Slot{0, 0});
  old.swap(s.slots);
  const size_t mask = s.slots.size() - 1;
  for (const Slot& slot : old) {
    if (slot.next == 0) continue;
    size_t at = (slot.hash >> 6) & mask;
    while (s.slots[at].next != 0) at = (at + 1) & mask;
    s.slots[at] = slot;
  }
}

uint32_t NgramDrafter::first_place(Sequence& s, int n) {
  const auto size = static_cast<uint32_t>(s.tokens.size());
  const int32_t* gram = s.tokens.data() + size - n;
  uint64_t h = static_cast<uint64_t>(n);
  for (int i = 0; i < n; ++i) {
    h = (h ^ static_cast<uint32_t>(gram[i])) * 0x9E3779B97F4A7C15ull;
    h ^= h >> 32;
  }
  const uint32_t hash = (static_cast<uint32_t>(h) & ~kGramBits) | static_cast<uint32_t>(n);
  const size_t mask = s.slots.size() - 1;
  size_t at = (hash >> 6) & mask;
  for (; s.slots[at].next != 0; at = (at + 1) & mask) {
    if (s.slots[at].hash == hash &&
        std::memcmp(s.tokens.data() + s.slots[at].next - n, gram, n * sizeof(int32_t)) == 0)
      return s.slots[at].next;
  }
  s.slots[at] = {hash, size};
  ++s.used;
  return 0;
}

void NgramDrafter::append(Sequence& s, int32_t token, bool train) {
  if (train) {
    if (s.copy_depth == 0 && s.match != 0) {
      s.copy_at = s.match, s.copy_gram = s.gram;
      const bool hit = s.tokens[s.copy_at] == token;
      first_rates_.learn(first_class(s.gram), first_class(s.gram), hit);
      s.copy_depth = hit && depth_ > 1 ? 1 : 0;
    } else if (s.copy_depth > 0) {
      const int c = next_class(s.copy_gram, s.copy_depth + 1);
      const bool hit = s.tokens[++s.copy_at] == token;
      next_rates_.learn(c, c, hit);
      s.copy_depth = hit && s.copy_depth + 1 < depth_ ? s.copy_depth + 1 : 0;
    }
  }
  s.tokens.push_back(token);
  if (s.slots.size() < 2 * (s.used + static_cast<size_t>(max_) + 1)) widen(s);
  s.match = 0;
  for (int n = max_; n >= min_; --n) {
    if (s.tokens.size() < static_cast<size_t>(n)) continue;
    const uint32_t place = first_place(s, n);
    if (place != 0 && s.match == 0) s.match = place, s.gram = n;
  }
}

void NgramDrafter::begin(uint64_t sequence, uint64_t, std::span<const int32_t> prompt) {
  auto [at, added] = sequences_.try_emplace(sequence);
  TACO_CHECK(added, "sequence ", sequence, " began before");
  at->second = std::make_unique<Sequence>();
  at->second->tokens.reserve(prompt.size() + 256);
  for (const int32_t token : prompt) append(*at->second, token, false);
}

void NgramDrafter::commit(uint64_t sequence, std::span<const int32_t> tokens) {
  const auto at = sequences_.find(sequence);
  TACO_CHECK(at != sequences_.end(), "commit for an unknown sequence ", sequence);
  for (const int32_t token : tokens) append(*at->second, token, true);
}

void NgramDrafter::draft(std::span<const DraftRequest> requests) {
  for (const DraftRequest& request : requests) {
    const auto at = sequences_.find(request.sequence);
    if (at == sequences_.end() || at->second->match == 0) continue;
    const Sequence& s = *at->second;
    const int most = std::min({depth_, request.max_depth, request.max_nodes, DraftTree::kMaxNodes - 1});
    float p = first_rates_.estimate(first_class(s.gram), first_class(s.gram));
    int node = 0;
    for (int d = 1; d <= most && s.match + d - 1 < s.tokens.size(); ++d) {
      const int c = next_class(s.gram, d);
      if (d > 1) p *= next_rates_.estimate(c, c);
      if (p < request.min_p) break;
      node = request.tree->add(node, s.tokens[s.match + d - 1], p, DraftSource::kNgram);
    }
  }
}

}  // namespace taco
