// A sequence's own text, and where in it each of its short grams stood before.
//
// For gram lengths 1, 2 and 4 every position is linked to the one before it whose gram has the same hash, as
// in LZ77 coders: 28 to 40 bytes a token, some 30 ns to append one, and at any position the earlier
// occurrences can be walked as they were when the text ended there.
#pragma once

#include <cstdint>
#include <span>

#include "spec/lookahead/context_hash.h"
#include "spec/lookahead/memory_budget.h"

namespace taco {

class TextIndex {
 public:
  // A place where a context stood before: `next` is the position of what followed, `length` tokens matched.
  struct Match {
    uint32_t next;
    int32_t length;
  };
  static constexpr int kMaxMatches = 64;

  TextIndex(const TokenRules& rules, MemoryBudget* budget) : rules_(rules), budget_(budget) {}
  ~TextIndex() { clear(); }
  TextIndex(const TextIndex&) = delete;

  // Room for this many tokens in all; false if the budget has none.
  bool reserve(uint32_t tokens);
  // False, and the token is not taken, if there is no room for it.
  bool append(int32_t token);
  void clear();  // gives its memory back

  uint32_t size() const { return size_; }
  const int32_t& operator[](uint32_t position) const { return tokens_[position]; }
  size_t bytes() const { return bytes_; }

  // The last `max_size` tokens before `end`, up to a barrier.
  Context context(uint32_t end, int max_size) const;
  // Where the context stood before `end`, such that what followed lies before `end` as well: longer matches
  // first, then the newer. Lengths are from min_length to max_length (the context's size at most). `at_end`:
  // the context is the text's own tokens before `end`. Looks at a bounded number of places. Returns the
  // number of matches.
  int find(const Context& context, uint32_t end, bool at_end, int min_length, int max_length,
           Match* matches) const;

 private:
  static constexpr int kChains = 3;
  static constexpr int kGram[kChains] = {1, 2, 4};
  // Steps along one chain: what a common token's many occurrences may cost.
  static constexpr int kSteps[kChains] = {4, 8, 8};

  static uint32_t gram_hash(const Context& context, int length);
  void link(uint32_t position);
  int match_length(const Context& context, uint32_t position, int max_length) const;

  TokenRules rules_;
  MemoryBudget* budget_;
  int32_t* tokens_ = nullptr;
  uint32_t* previous_[kChains] =
      {};                         // position of the last token of the gram's earlier occurrence, + 1; 0: none
  uint32_t* head_[kChains] = {};  // by hash: of the newest occurrence, + 1
  uint32_t size_ = 0, capacity_ = 0, head_mask_ = 0;
  size_t bytes_ = 0;
};

}  // namespace taco
