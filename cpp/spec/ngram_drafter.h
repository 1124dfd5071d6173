// N-gram prompt lookup: the longest n-gram (n from ngram_max down to ngram_min) at the end of a sequence that
// stood in it before, at its earliest place; what followed there is the draft. Without a search: each
// n-gram's first place is kept, and a new token adds one of each length.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "spec/drafter.h"
#include "spec/lookahead/calibration.h"

namespace taco {

class NgramDrafter : public Drafter {
 public:
  static constexpr int kMaxGram = 63;

  // Throws kInvalidArgument that names the flag to change.
  NgramDrafter(int ngram_min, int ngram_max, int num_speculative_tokens);

  void begin(uint64_t sequence, uint64_t name_space, std::span<const int32_t> prompt) override;
  void commit(uint64_t sequence, std::span<const int32_t> tokens) override;
  void end(uint64_t sequence) override { sequences_.erase(sequence); }
  void draft(std::span<const DraftRequest> requests) override;
  void verified(uint64_t sequence, const DraftTree& tree, int accepted) override {}

 private:
  struct Slot {
    uint32_t hash;  // the low bits are n
    uint32_t next;  // position of what followed the n-gram's first place; 0: free
  };
  struct Sequence {
    std::vector<int32_t> tokens;
    std::vector<Slot> slots;
    uint32_t used = 0;
    uint32_t match =
        0;         // position of what followed the longest n-gram that ends the text; 0: none did before
    int gram = 0;  // its length
    // A copy in progress, to learn how long copies stay right.
    uint32_t copy_at = 0;
    int copy_depth = 0, copy_gram = 0;
  };

  void append(Sequence& s, int32_t token, bool train);
  uint32_t first_place(Sequence& s, int n);  // and takes note of it if it is here
  void widen(Sequence& s);

  int min_, max_, depth_;
  RateTable first_rates_, next_rates_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;
};

}  // namespace taco
