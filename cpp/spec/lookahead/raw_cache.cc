#include "spec/lookahead/raw_cache.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace taco {
namespace {

constexpr int kLevels = 8, kCounts = 4, kDepths = 8;
constexpr size_t kRingChunk = size_t{64} << 10;

int level(int order) { return std::min(order, kLevels - 1); }
int count_class(float count) { return count < 1.5f ? 0 : count < 2.5f ? 1 : count < 5.0f ? 2 : 3; }
int first_class(bool global, int order, float count) {
  return (level(order) * 2 + global) * kCounts + count_class(count);
}
int next_class(int order, int depth) { return level(order) * kDepths + std::min(depth, kDepths - 1); }

uint16_t tag_of(const int32_t* tokens, int length) {
  uint64_t h = 0;
  for (int i = 0; i < length; ++i) h = hash_step(h, tokens[i]);
  return static_cast<uint16_t>(hash_key(h));
}

}  // namespace

PhraseRing::PhraseRing(int copy_length, int64_t max_phrases, MemoryBudget* budget)
    : copy_length_(copy_length),
      per_chunk_(static_cast<uint32_t>(std::bit_floor(kRingChunk / (copy_length * sizeof(int32_t))))),
      slots_(static_cast<uint32_t>(std::bit_floor(
          static_cast<uint64_t>(std::clamp<int64_t>(max_phrases, per_chunk_, int64_t{1} << 31))))),
      budget_(budget) {}

PhraseRing::~PhraseRing() {
  for (int32_t* chunk : chunks_) delete[] chunk;
  budget_->release(bytes_);
}

uint32_t PhraseRing::add(const int32_t* tokens) {
  if (next_ % slots_ / per_chunk_ == chunks_.size()) {
    const size_t bytes = static_cast<size_t>(per_chunk_) * copy_length_ * sizeof(int32_t);
    if (budget_->charge(bytes)) {
      bytes_ += bytes;
      chunks_.push_back(new int32_t[bytes / sizeof(int32_t)]);
    } else if (chunks_.empty()) {
      return next_ - 1;  // no room at all: held_ is 0, nothing is found
    } else {
      // No room: the ring is as long as it is now, rounded down to a power of two.
      slots_ = std::bit_floor(static_cast<uint32_t>(chunks_.size())) * per_chunk_;
      held_ = 0;
      next_ = 0;
    }
  }
  std::memcpy(slot(next_), tokens, copy_length_ * sizeof(int32_t));
  held_ = std::min(held_ + 1, slots_);
  return next_++;
}

RawLookaheadCache::RawLookaheadCache(const LookaheadConfig& config, const TokenRules& rules,
                                     MemoryBudget* budget)
    : rules_(rules),
      match_length_(config.match_length),
      copy_length_(config.copy_length),
      is_hybrid_(config.is_hybrid),
      first_rates_(kLevels * 2 * kCounts, kLevels * 2 * kCounts),
      next_rates_(kLevels * kDepths, kLevels * kDepths) {
  if (config.global_cache_switch) {
    const auto phrase_bytes = static_cast<int64_t>(copy_length_ * sizeof(int32_t));
    ring_ = std::make_unique<PhraseRing>(copy_length_,
                                         static_cast<int64_t>(budget->limit()) / 3 / phrase_bytes, budget);
    table_ = std::make_unique<CellTable>(
        CellTableOptions{config.cell_max_size, config.threshold, config.decay, true, config.cache_size},
        budget);
  }
  for (int order = 0; order < kLevels; ++order) {
    for (int i = 0; i < 2 * kCounts; ++i) {
      const float count = static_cast<float>(i % kCounts);
      first_rates_.set_prior(order * 2 * kCounts + i,
                             0.8f - 0.65f * std::exp(-0.35f * static_cast<float>(order)) + 0.04f * count);
    }
    for (int depth = 0; depth < kDepths; ++depth)
      next_rates_.set_prior(order * kDepths + depth, 0.55f + 0.04f * static_cast<float>(std::min(depth, 6)));
  }
}

// A phrase ends with its end of text, and before a token that is not of the vocabulary.
int RawLookaheadCache::cut(const int32_t* tokens, int length) const {
  int n = 0;
  while (n < length && rules_.known(tokens[n]))
    if (rules_.ends(tokens[n++])) break;
  return n;
}

int RawLookaheadCache::find_local(const TextIndex& text, uint32_t end, const TextIndex::Match* matches,
                                  int count, int max, Phrase* phrases) const {
  // Distinct phrases with their frequencies. A phrase that the text's end cuts short stands behind those that
  // are whole.
  struct Found {
    int32_t tokens[DraftTree::kMaxNodes];
    int length, freq;
    bool whole;
  };
  constexpr int kMaxFound = 8;
  Found found[kMaxFound];
  int distinct = 0;
  for (int m = 0; m < count; ++m) {
    if (distinct == kMaxFound) break;
    Found& f = found[distinct];
    const int available = static_cast<int>(std::min<uint32_t>(end - matches[m].next, copy_length_));
    text.copy(matches[m].next, available, f.tokens);
    f.length = cut(f.tokens, available);
    if (f.length == 0) continue;
    f.whole = f.length == copy_length_ || f.length < available || rules_.ends(f.tokens[f.length - 1]);
    f.freq = 1;
    int same = 0;
    while (same < distinct && (found[same].length != f.length ||
                               std::memcmp(found[same].tokens, f.tokens, f.length * sizeof(int32_t)) != 0))
      ++same;
    if (same < distinct)
      ++found[same].freq;
    else
      ++distinct;
  }
  int told = 0;
  for (; told < max && told < distinct; ++told) {
    int best = -1;
    for (int i = 0; i < distinct; ++i) {
      if (found[i].freq == 0) continue;
      if (best < 0 || found[i].whole > found[best].whole ||
          (found[i].whole == found[best].whole && found[i].freq > found[best].freq))
        best = i;
    }
    Phrase& phrase = phrases[told];
    std::memcpy(phrase.tokens, found[best].tokens, found[best].length * sizeof(int32_t));
    phrase.length = found[best].length;
    phrase.order = matches[0].length;
    phrase.source = DraftSource::kRawLocal;
    phrase.rate = first_class(false, phrase.order, static_cast<float>(found[best].freq));
    found[best].freq = 0;
  }
  return told;
}

int RawLookaheadCache::find_global(uint64_t key, int order, int max, Phrase* phrases) const {
  const std::span<const CellEntry> cell = table_->find(key);
  uint64_t told = 0;
  int count = 0;
  while (count < max) {
    int best = -1;
    for (int i = 0; i < static_cast<int>(cell.size()); ++i)
      if (!(told >> i & 1) && (best < 0 || cell[i].freq > cell[best].freq)) best = i;
    if (best < 0) break;
    told |= uint64_t{1} << best;
    const int32_t* tokens = ring_->find(cell[best].value);
    if (!tokens) continue;
    Phrase& phrase = phrases[count];
    phrase.length = cut(tokens, copy_length_);
    std::memcpy(phrase.tokens, tokens, phrase.length * sizeof(int32_t));
    if (phrase.length == 0) continue;
    phrase.order = order;
    phrase.source = DraftSource::kRawGlobal;
    phrase.rate = first_class(true, order, cell[best].freq * (1.0f / kFreqOne));
    ++count;
  }
  return count;
}

int RawLookaheadCache::find(const TextIndex* text, uint32_t end, bool at_end, const Context& context,
                            uint64_t seed, int max, Phrase* phrases) const {
  const int longest = std::min(match_length_, context.size);
  const int shortest = is_hybrid_ ? 1 : match_length_;
  if (longest < shortest) return 0;
  max = std::min(max, kMaxPhrases);
  uint64_t keys[kMaxOrder];
  if (table_) {
    context_keys(context, longest, seed, keys);
    for (int order = shortest; order <= longest; ++order) table_->prefetch(keys[order - 1]);
  }
  TextIndex::Match matches[TextIndex::kMaxMatches];
  const int found = text ? text->find(context, end, at_end, shortest, longest, matches) : 0;
  int count = 0, at = 0;
  for (int order = longest; order >= shortest && count < max; --order) {
    const int first = at;
    while (at < found && matches[at].length == order) ++at;
    if (at > first)
      count += find_local(*text, end, matches + first, at - first, max - count, phrases + count);
    if (table_ && count < max) count += find_global(keys[order - 1], order, max - count, phrases + count);
  }
  float rest = 1.0f;
  for (int i = 0; i < count; ++i) {
    const float rate = first_rates_.estimate(phrases[i].rate, phrases[i].rate);
    phrases[i].p = rest * rate;
    rest *= 1.0f - rate;
  }
  return count;
}

float RawLookaheadCache::next_rate(const Phrase& phrase, int depth) const {
  const int c = next_class(phrase.order, depth);
  return next_rates_.estimate(c, c);
}

void RawLookaheadCache::learn(const TextIndex& text, uint32_t at, uint32_t end, uint64_t seed, bool train) {
  const Context context = text.context(at, match_length_);
  const int shortest = is_hybrid_ ? 1 : match_length_;
  if (context.size < shortest) return;
  int32_t tokens[DraftTree::kMaxNodes];
  const int available = static_cast<int>(std::min<uint32_t>(end - at, copy_length_));
  text.copy(at, available, tokens);
  const int length = cut(tokens, available);
  if (length == 0) return;
  if (train) {
    Phrase phrase;
    if (find(&text, at, true, context, seed, 1, &phrase) > 0) {
      for (int i = 0; i < length && i < phrase.length; ++i) {
        const bool hit = phrase.tokens[i] == tokens[i];
        if (i == 0) {
          first_rates_.learn(phrase.rate, phrase.rate, hit);
        } else {
          const int c = next_class(phrase.order, i + 1);
          next_rates_.learn(c, c, hit);
        }
        if (!hit) break;
      }
    }
  }
  if (!table_) return;
  std::fill(tokens + length, tokens + copy_length_, -1);
  const uint16_t tag = tag_of(tokens, copy_length_);
  uint64_t keys[kMaxOrder];
  context_keys(context, context.size, seed, keys);
  for (int order = shortest; order <= context.size; ++order) table_->prefetch(keys[order - 1]);
  // The phrase is written once for all orders, and not at all where it is known.
  bool known = false;
  uint32_t number = 0;
  for (const CellEntry& entry : table_->find(keys[context.size - 1])) {
    const int32_t* held = entry.tag == tag ? ring_->find(entry.value) : nullptr;
    if (!held || ring_->old(entry.value) ||
        std::memcmp(held, tokens, static_cast<size_t>(copy_length_) * sizeof(int32_t)) != 0)
      continue;
    known = true;
    number = entry.value;
  }
  if (!known) number = ring_->add(tokens);
  for (int order = shortest; order <= context.size; ++order) table_->add(keys[order - 1], number, tag);
}

}  // namespace taco
