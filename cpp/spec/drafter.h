// Who proposes tokens. All calls come from the engine thread, one sequence's in the order of its life.
#pragma once

#include <cstdint>
#include <span>

#include "spec/draft_tree.h"

namespace taco {

struct DraftRequest {
  uint64_t sequence;
  int max_depth;    // of a node; at least 1
  int max_nodes;    // without the root; at most DraftTree::kMaxNodes - 1
  float min_p;      // nodes with a smaller estimate are not worth their cost
  DraftTree* tree;  // in: the root alone (the sequence's last token); out: with its drafts, in any order
};

class Drafter {
 public:
  virtual ~Drafter() = default;

  // A sequence appears, once; being preempted does not end it. name_space: sequences of different ones
  // (model, adapter, tenant) learn nothing from each other.
  virtual void begin(uint64_t sequence, uint64_t name_space, std::span<const int32_t> prompt) = 0;
  // Tokens that were added to its output, in order, each exactly once.
  virtual void commit(uint64_t sequence, std::span<const int32_t> tokens) = 0;
  // It ended (for whatever reason). Idempotent.
  virtual void end(uint64_t sequence) = 0;

  // Must not need more than a few microseconds for a sequence: the step waits for it. Trees may stay empty.
  virtual void draft(std::span<const DraftRequest> requests) = 0;
  // What became of a tree as it was verified (it may have been pruned; size 1: nothing was verified, the
  // sequence took an ordinary step). accepted: number of drafted tokens that the verifier took.
  virtual void verified(uint64_t sequence, const DraftTree& tree, int accepted) = 0;
};

}  // namespace taco
