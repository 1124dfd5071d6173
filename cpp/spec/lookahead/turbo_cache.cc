#include "spec/lookahead/turbo_cache.h"

#include <algorithm>
#include <cmath>

namespace taco {
namespace {

constexpr int kLevels = 8;  // orders 0 to 6, and longer
constexpr int kRatios = 7, kCounts = 4;
constexpr int kCoarse = kLevels * kRatios * 2;
constexpr int kFine = kLevels * kLevels * kRatios * kCounts * 2 * 2;

int level(int order) { return std::min(order, kLevels - 1); }

int ratio_class(float ratio) {
  constexpr float kEnds[kRatios - 1] = {0.15f, 0.3f, 0.5f, 0.7f, 0.9f, 0.999f};
  int i = 0;
  for (const float end : kEnds) i += ratio >= end;
  return i;
}

int count_class(float count) { return (count >= 1.5f) + (count >= 2.5f) + (count >= 5.0f); }

}  // namespace

TurboLookaheadCache::TurboLookaheadCache(const LookaheadConfig& config, const TokenRules& rules,
                                         MemoryBudget* budget)
    : rules_(rules),
      turbo_order_(config.min_match_length),
      min_order_(config.cache_mode == 2
                     ? std::min(config.min_match_length, config.is_hybrid ? 1 : config.match_length)
                     : config.min_match_length),
      max_order_(config.turbo_match_length),
      read_per_cell_(std::min(config.top_k_in_cell, config.cell_max_size)),
      local_weight_(config.token_paths_top_k > 1 ? config.start_freq : 1.0f),
      rates_(kCoarse, kFine) {
  if (config.global_cache_switch)
    table_ = std::make_unique<CellTable>(
        CellTableOptions{config.cell_max_size, config.threshold, config.decay, false, config.cache_size},
        budget);
  // What is believed before anything is seen: a longer context is surer, and a rarer continuation less so.
  constexpr float kMiddle[kRatios] = {0.08f, 0.22f, 0.4f, 0.6f, 0.8f, 0.95f, 1.0f};
  for (int order = 0; order < kLevels; ++order)
    for (int ratio = 0; ratio < kRatios; ++ratio)
      for (int below = 0; below < 2; ++below)
        rates_.set_prior((order * kRatios + ratio) * 2 + below,
                         (below ? 0.5f : 1.0f) *
                             (0.9f - 0.6f * std::exp(-0.35f * static_cast<float>(order))) * kMiddle[ratio]);
}

int TurboLookaheadCache::collect(const TextIndex* text, uint32_t end, bool at_end, const Context& context,
                                 const uint64_t* keys, int longest, Evidence* evidence,
                                 int* looked_down_to) const {
  int count = 0;
  auto place_of = [&](int32_t token) {
    int i = 0;
    while (i < count && evidence[i].token != token) ++i;
    return i;
  };
  if (text) {
    TextIndex::Match matches[TextIndex::kMaxMatches];
    const int found = text->find(context, end, at_end, min_order_, max_order_, matches);
    int newest_of = 0;
    for (int m = 0; m < found; ++m) {
      const int32_t token = (*text)[matches[m].next];
      if (!rules_.known(token)) continue;
      const int length = matches[m].length;
      const int i = place_of(token);
      if (i == count) {
        if (count == kMaxEvidence) break;
        evidence[count++] = {token, static_cast<int16_t>(length), 0, 1, 0, newest_of != length};
      } else if (evidence[i].local_order == length) {
        ++evidence[i].local_count;
      }
      newest_of = length;
    }
  }
  *looked_down_to = 0;
  if (!table_) return count;
  for (int order = std::min(context.size, longest); order >= min_order_; --order) {
    std::span<const CellEntry> cell = table_->find(keys[order - 1]);
    if (cell.empty()) continue;
    CellEntry best[kMaxCell];
    if (static_cast<int>(cell.size()) > read_per_cell_) {
      std::copy(cell.begin(), cell.end(), best);
      std::stable_sort(best, best + cell.size(),
                       [](const CellEntry& a, const CellEntry& b) { return a.freq > b.freq; });
      cell = {best, static_cast<size_t>(read_per_cell_)};
    }
    for (const CellEntry& entry : cell) {
      const auto token = static_cast<int32_t>(entry.value);
      const int i = place_of(token);
      if (i == count) {
        if (count == kMaxEvidence) break;
        evidence[count++] = {token, 0, static_cast<int16_t>(order), 0, entry.freq, false};
      } else if (evidence[i].global_order == 0) {
        evidence[i].global_order = static_cast<int16_t>(order);
        evidence[i].global_freq = entry.freq;
      }
    }
    // Two say enough: what shorter contexts add would hardly be drafted.
    if (count >= 2) {
      *looked_down_to = order;
      break;
    }
  }
  return count;
}

int TurboLookaheadCache::rank(const Evidence* evidence, int count, int max, Guess* guesses) const {
  // Weight of all that an order speaks for, of which longer orders have not spoken.
  float total[kMaxOrder + 1] = {}, weights[kMaxEvidence];
  int longest = 0;
  for (int i = 0; i < count; ++i) {
    const Evidence& e = evidence[i];
    const float local = local_weight_ * e.local_count, global = e.global_freq * (1.0f / kFreqOne);
    const int order = std::max(e.local_order, e.global_order);
    total[e.local_order] += local;
    total[e.global_order] += global;
    weights[i] = (e.local_order == order ? local : 0) + (e.global_order == order ? global : 0);
    longest = std::max(longest, order);
  }
  int chosen = 0;
  for (int i = 0; i < count; ++i) {
    const Evidence& e = evidence[i];
    const int order = std::max(e.local_order, e.global_order);
    const float times = (e.local_order == order ? e.local_count : 0) +
                        (e.global_order == order ? e.global_freq * (1.0f / kFreqOne) : 0);
    // A token's class: the orders that speak for it, its share of the longer one's weight, how often it was
    // seen, whether it was the newest, whether still longer contexts speak for other tokens.
    const int ratio = ratio_class(weights[i] / total[order]);
    const int levels = level(e.local_order) * kLevels + level(e.global_order);
    const int below = order < longest;
    const int coarse = (level(order) * kRatios + ratio) * 2 + below;
    const int fine = (((levels * kRatios + ratio) * kCounts + count_class(times)) * 2 + e.newest) * 2 + below;
    const float p = rates_.estimate(coarse, fine);
    if (chosen == max && p <= guesses[max - 1].p) continue;
    Guess guess;
    guess.token = e.token;
    guess.longest_next = e.global_order;
    const bool local = e.local_order == order;
    if (order >= turbo_order_)
      guess.source = local ? DraftSource::kTurboLocal : DraftSource::kTurboGlobal;
    else
      guess.source = local ? DraftSource::kRawLocal : DraftSource::kRawGlobal;
    guess.coarse = coarse;
    guess.fine = fine;
    guess.p = p;
    int at = chosen < max ? chosen++ : max;
    for (; at > 0 && guesses[at - 1].p < guess.p; --at)
      if (at < max) guesses[at] = guesses[at - 1];
    if (at < max) guesses[at] = guess;
  }
  return chosen;
}

void TurboLookaheadCache::prepare(const TextIndex* text, const Context& context, uint64_t seed, int longest,
                                  Lookup* lookup) const {
  lookup->context = context;
  lookup->longest = std::min({longest, context.size, max_order_});
  if (text) text->prefetch(context);
  if (!table_) return;
  context_keys(context, lookup->longest, seed, lookup->keys);
  for (int order = min_order_; order <= lookup->longest; ++order) table_->prefetch(lookup->keys[order - 1]);
}

int TurboLookaheadCache::guess(const TextIndex* text, uint32_t end, bool at_end, const Lookup& lookup,
                               int max, Guess* guesses) const {
  if (lookup.context.size < min_order_) return 0;
  Evidence evidence[kMaxEvidence];
  int looked_down_to;
  const int count =
      collect(text, end, at_end, lookup.context, lookup.keys, lookup.longest, evidence, &looked_down_to);
  const int chosen = rank(evidence, count, std::min(max, kMaxGuesses), guesses);
  for (int i = 0; i < chosen; ++i)
    guesses[i].longest_next = 1 + (guesses[i].longest_next > 0 ? guesses[i].longest_next : looked_down_to);
  return chosen;
}

void TurboLookaheadCache::learn(const TextIndex& text, uint32_t at, int count, uint64_t seed, bool train) {
  // All keys first: the table's lines come while other tokens are learned.
  Context contexts[kMostLearned];
  uint64_t keys[kMostLearned][kMaxOrder];
  for (int i = 0; i < count; ++i) {
    contexts[i] =
        i == 0 ? text.context(at, max_order_) : contexts[i - 1].next(text[at + i - 1], rules_, max_order_);
    if (!table_) continue;
    context_keys(contexts[i], contexts[i].size, seed, keys[i]);
    for (int order = min_order_; order <= contexts[i].size; ++order)
      table_->prefetch_to_add(keys[i][order - 1]);
  }
  const auto fetch_cells = [&](int i) {
    if (!table_ || count == 1 || i >= count) return;
    for (int order = min_order_; order <= contexts[i].size; ++order)
      table_->prefetch_cell(keys[i][order - 1]);
  };
  fetch_cells(0);
  for (int i = 0; i < count; ++i) {
    fetch_cells(i + 1);
    const Context& context = contexts[i];
    const int32_t token = text[at + i];
    if (!rules_.known(token) || context.size < min_order_) continue;
    if (train) {
      Evidence evidence[kMaxEvidence];
      Guess guesses[kMaxGuesses];
      int looked_down_to;
      const int found =
          collect(&text, at + i, true, context, keys[i], context.size, evidence, &looked_down_to);
      const int chosen = rank(evidence, found, kMaxGuesses, guesses);
      for (int g = 0; g < chosen; ++g)
        rates_.learn(guesses[g].coarse, guesses[g].fine, guesses[g].token == token);
    }
    if (!table_) continue;
    for (int order = min_order_; order <= context.size; ++order)
      table_->add(keys[i][order - 1], static_cast<uint32_t>(token));
  }
}

}  // namespace taco
