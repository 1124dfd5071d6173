// Turbo: guesses one token at a time from contexts of every order from turbo_match_length down to
// min_match_length, those of the sequence's own text and those of all texts, as prediction by partial
// matching does: a continuation counts where its longest context is, and is left out of the shorter ones.
#pragma once

#include <cstdint>
#include <memory>

#include "spec/draft_tree.h"
#include "spec/lookahead/calibration.h"
#include "spec/lookahead/cell_table.h"
#include "spec/lookahead/text_index.h"
#include "spec/speculation_config.h"

namespace taco {

class TurboLookaheadCache {
 public:
  struct Guess {
    int32_t token;
    float p;  // that it is the next token
    DraftSource source;
    int coarse, fine;  // its classes in the table of rates
    int longest_next;  // no longer context of the shared cache can stand after it
  };
  static constexpr int kMaxGuesses = 8;

  // budget: of the cache that sequences share.
  TurboLookaheadCache(const LookaheadConfig& config, const TokenRules& rules, MemoryBudget* budget);

  int max_order() const { return max_order_; }

  // A context and its keys in the shared cache.
  struct Lookup {
    Context context;
    int longest;  // of the contexts to look up in the shared cache
    uint64_t keys[kMaxOrder];
  };
  // Has what guess will read fetched; worth it where something else is done in between. text may be null.
  // longest: max_order() if nothing is known.
  void prepare(const TextIndex* text, const Context& context, uint64_t seed, int longest,
               Lookup* lookup) const;
  // The likeliest next tokens, at most `max`, the likeliest first. See TextIndex::find for end and at_end.
  int guess(const TextIndex* text, uint32_t end, bool at_end, const Lookup& lookup, int max,
            Guess* guesses) const;
  // Learns that text[at] followed the tokens before it, for `count` tokens, kMostLearned at most. train: the
  // estimates learn from it as well.
  static constexpr int kMostLearned = 8;
  void learn(const TextIndex& text, uint32_t at, int count, uint64_t seed, bool train);

  CellTable* table() { return table_.get(); }  // null if sequences learn nothing from each other
  const CellTable* table() const { return table_.get(); }
  std::vector<RateTable*> rates() { return {&rates_}; }

 private:
  // What speaks for one token.
  struct Evidence {
    int32_t token;
    int16_t local_order, global_order;  // of the longest context that it followed; 0: none
    uint16_t local_count;               // at that order
    uint16_t global_freq;
    bool newest;  // it is what followed the newest of its longest local contexts
  };
  static constexpr int kMaxEvidence = 32;

  int collect(const TextIndex* text, uint32_t end, bool at_end, const Context& context, const uint64_t* keys,
              int longest, Evidence* evidence, int* looked_down_to) const;
  int rank(const Evidence* evidence, int count, int max, Guess* guesses) const;

  TokenRules rules_;
  int turbo_order_, min_order_, max_order_, read_per_cell_;
  float local_weight_;
  std::unique_ptr<CellTable> table_;
  RateTable rates_;
};

}  // namespace taco
