// A sequence's own text, and where in it each of its short grams stood before.
//
// For gram lengths 1, 2 and 4 every position is linked to the one whose gram had the same hash and was linked
// before it, as in LZ77 coders: 28 to 40 bytes a token, some 30 ns to link one, and at any position the
// earlier occurrences can be walked as they were when the text ended there.
//
// Nothing here takes longer for a longer text. Tokens, links and heads lie in pages of 256, so that nothing
// is copied to grow. The table of heads grows a page at a time by linear hashing: a new page starts as a copy
// of the one whose hashes it shares, and the older part of a chain stays common to both (a walk looks at the
// tokens themselves). The tokens of a prompt can be taken first, which is a copy, and linked in pieces later;
// what is appended meanwhile is linked at once.
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
  static constexpr uint32_t kPage = 256;  // tokens, links or heads

  TextIndex(const TokenRules& rules, MemoryBudget* budget) : rules_(rules), budget_(budget) {}
  ~TextIndex() { clear(); }
  TextIndex(const TextIndex&) = delete;

  // Tokens of a prompt, not linked yet. Returns how many there was room for. Not after append.
  size_t take(std::span<const int32_t> prompt);
  // Links so many of the tokens taken, in their order. False if there is no room to link all of them.
  bool link(uint32_t max_tokens);
  uint32_t unlinked() const { return late_from_ - linked_; }
  // False, and the token is not taken, if there is no room for it.
  bool append(int32_t token);
  // Keeps the tokens alone: nothing is found any more. Takes no more tokens.
  void drop_links();
  // Gives so many pages back; true when nothing is left. Takes no more tokens.
  bool give_back(int64_t max_pages);
  void clear();  // gives its memory back

  uint32_t size() const { return size_; }
  int32_t operator[](uint32_t position) const { return tokens_[position / kPage]->token[position % kPage]; }
  // Tokens from `position` on.
  void copy(uint32_t position, int count, int32_t* out) const;
  size_t bytes() const { return bytes_; }
  size_t refused() const { return refused_; }  // bytes that there was no room for, the last time

  // The last `max_size` tokens before `end`, up to a barrier.
  Context context(uint32_t end, int max_size) const;
  // Has what find reads first of the context fetched.
  void prefetch(const Context& context) const {
    if (num_heads_ == 0) return;
    for (int c = 0; c < kChains && kGram[c] <= context.size; ++c)
      __builtin_prefetch(&head(c, gram_hash(context, kGram[c])));
  }
  // Where the context stood before `end`, such that what followed lies before `end` as well: longer matches
  // first, then those linked later, which are the newer ones but for a prompt's. Lengths are from min_length
  // to max_length (the context's size at most). `at_end`: the context is the text's own tokens before `end`.
  // Looks at a bounded number of places. Returns the number of matches.
  int find(const Context& context, uint32_t end, bool at_end, int min_length, int max_length,
           Match* matches) const;

 private:
  static constexpr int kChains = 3;
  static constexpr int kGram[kChains] = {1, 2, 4};
  // Steps along one chain: what a common token's many occurrences may cost.
  static constexpr int kSteps[kChains] = {4, 8, 8};

  struct Tokens {
    int32_t token[kPage];
  };
  // Position of the last token of the gram's earlier occurrence, + 1; 0: none.
  struct Links {
    uint32_t previous[kPage][kChains];
  };
  // By hash: of the newest occurrence, + 1.
  struct Heads {
    uint32_t newest[kChains][kPage];
  };

  static uint32_t gram_hash(const Context& context, int length);
  bool is_linked(uint32_t position) const { return position < linked_ || position >= late_from_; }
  uint32_t& head(int chain, uint32_t hash) const {
    uint32_t at = hash & head_mask_;
    if (at >= num_heads_) at &= head_mask_ >> 1;
    return heads_[at / kPage]->newest[chain][at % kPage];
  }
  uint32_t previous(int chain, uint32_t position) const {
    return links_[position / kPage]->previous[position % kPage][chain];
  }
  void prefetch_place(uint32_t position) const {
    __builtin_prefetch(&tokens_[position / kPage]->token[position % kPage]);
    __builtin_prefetch(links_[position / kPage]->previous[position % kPage]);
  }
  int match_length(const Context& context, uint32_t position, int max_length) const;

  bool charge(size_t bytes);
  template <typename T>
  T* take_page();
  template <typename T>
  void free_page(T*& page);
  bool widen_directory();
  bool make_token_page(uint32_t position);
  bool make_link_page(uint32_t position);
  bool grow_heads(uint32_t linked);
  void link_range(uint32_t first, uint32_t count);

  // One entry per page of tokens and links; heads are up to kMoreHeads pages more.
  static constexpr uint32_t kMoreHeads = 16;

  TokenRules rules_;
  MemoryBudget* budget_;
  // Of the directory, which is one block: pages that it has room for.
  uint32_t directory_ = 0;
  Tokens** tokens_ = nullptr;
  Links** links_ = nullptr;  // null where no position of the page is linked
  Heads** heads_ = nullptr;
  uint32_t size_ = 0;
  uint32_t linked_ = 0, late_from_ = 0;  // linked are positions below the one and from the other on
  uint32_t num_heads_ = 0, head_mask_ = 0;
  size_t bytes_ = 0, refused_ = 0;
};

}  // namespace taco
