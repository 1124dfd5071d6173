// Raw: the last match_length tokens (and fewer, if is_hybrid) stood somewhere before; what followed there, up
// to copy_length tokens, is copied. The sequence's own text first, then the phrases that all texts share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "spec/draft_tree.h"
#include "spec/lookahead/calibration.h"
#include "spec/lookahead/cell_table.h"
#include "spec/lookahead/text_index.h"
#include "spec/speculation_config.h"

namespace taco {

// Phrases of copy_length tokens in a ring: the oldest give way. Number n stays readable until the ring has
// come round.
class PhraseRing {
 public:
  PhraseRing(int copy_length, int64_t max_phrases, MemoryBudget* budget);
  ~PhraseRing();
  PhraseRing(const PhraseRing&) = delete;

  // tokens: copy_length of them, -1 after the end of a shorter one.
  uint32_t add(const int32_t* tokens);
  // Null if the number is not (or no longer) held.
  const int32_t* find(uint32_t number) const {
    const uint32_t age = next_ - 1 - number;
    return age < held_ ? slot(number) : nullptr;
  }
  // It will be overwritten before long: a phrase that is still in use should be written anew.
  bool old(uint32_t number) const { return next_ - 1 - number > slots_ / 2; }
  uint32_t size() const { return held_; }
  uint32_t next() const { return next_; }
  size_t bytes() const { return bytes_; }
  void clear() { next_ = held_ = 0; }

 private:
  int32_t* slot(uint32_t number) const {
    const uint32_t at = number % slots_;
    return chunks_[at / per_chunk_] + static_cast<size_t>(at % per_chunk_) * copy_length_;
  }

  int copy_length_;
  uint32_t per_chunk_, slots_;  // a power of two, so that numbers may wrap
  uint32_t next_ = 0, held_ = 0;
  std::vector<int32_t*> chunks_;
  MemoryBudget* budget_;
  size_t bytes_ = 0;
};

class RawLookaheadCache {
 public:
  struct Phrase {
    int32_t tokens[DraftTree::kMaxNodes];
    int length;
    float p;   // that its first token comes next
    int rate;  // its class
    int order;
    DraftSource source;
  };
  static constexpr int kMaxPhrases = 16;

  RawLookaheadCache(const LookaheadConfig& config, const TokenRules& rules, MemoryBudget* budget);

  int max_order() const { return match_length_; }

  // At most `max` phrases, the one to prefer first; their length is copy_length at most.
  int find(const TextIndex* text, uint32_t end, bool at_end, const Context& context, uint64_t seed, int max,
           Phrase* phrases) const;
  // That the phrase's token at `depth` (2 or more) follows where those before it were right.
  float next_rate(const Phrase& phrase, int depth) const;
  // Learns the phrase that starts at text[at] and ends at text[end - 1] at the latest.
  void learn(const TextIndex& text, uint32_t at, uint32_t end, uint64_t seed, bool train);

  CellTable* table() { return table_.get(); }  // null if sequences learn nothing from each other
  const CellTable* table() const { return table_.get(); }
  PhraseRing* ring() { return ring_.get(); }
  const PhraseRing* ring() const { return ring_.get(); }
  std::vector<RateTable*> rates() { return {&first_rates_, &next_rates_}; }

 private:
  int find_local(const TextIndex& text, uint32_t end, const TextIndex::Match* matches, int count, int max,
                 Phrase* phrases) const;
  int find_global(uint64_t key, int order, int max, Phrase* phrases) const;
  int cut(const int32_t* tokens, int length) const;

  TokenRules rules_;
  int match_length_, copy_length_;
  bool is_hybrid_;
  std::unique_ptr<PhraseRing> ring_;
  std::unique_ptr<CellTable> table_;
  RateTable first_rates_, next_rates_;
};

}  // namespace taco
