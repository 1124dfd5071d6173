// Who proposes tokens. All calls come from the engine thread, one sequence's in the order of its life.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "spec/draft_tree.h"

namespace taco {

struct DraftRequest {
  uint64_t sequence;
  int max_depth;    // of a node; at least 1
  int max_nodes;    // without the root; at most DraftTree::kMaxNodes - 1
  float min_p;      // nodes with a smaller estimate are not worth their cost
  DraftTree* tree;  // in: the root alone (the sequence's last token); out: with its drafts, in any order
};

// For Drafter::catch_up in a step of so many rows, where ordinary ones take so long: no fewer tokens than it
// computes, so that learning keeps up, and as many as the share of the time allows that may go into it. That
// is small on the thread that computes, and larger beside a device. About 1 us a token.
int64_t tokens_to_learn(int rows, double step_seconds, bool beside_device);

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

  // What need not be done before the next draft, for about max_tokens committed tokens (0: all), and a piece
  // of prompts that are not taken in yet: called while a step runs on the device, if the owner can. Returns
  // how many tokens still wait.
  virtual int64_t catch_up(int64_t /*max_tokens*/) { return 0; }

  // The steps are a device's: the host's other cores have nothing better to do than to draft, too.
  virtual void use_other_cores() {}
  // Must not need more than a few microseconds for a sequence: the step waits for it. Trees may stay empty.
  virtual void draft(std::span<const DraftRequest> requests) = 0;
  // What became of a tree as it was verified (it may have been pruned; size 1: nothing was verified, the
  // sequence took an ordinary step). accepted: number of drafted tokens that the verifier took.
  virtual void verified(uint64_t sequence, const DraftTree& tree, int accepted) = 0;

  // The rest may be called from any thread, while the engine thread drafts.

  // Held by what it has learnt; in bytes.
  virtual size_t memory_bytes() const { return 0; }
  // Writes what it has learnt over sequences to `path`, or leaves the file that was there. Returns the bytes
  // written; 0: this drafter remembers nothing, and there is no file. Throws kUnavailable with the reason.
  virtual uint64_t save(const std::string& /*path*/) { return 0; }
  // Before the first sequence: takes over what was saved and returns the number of tokens or entries. Throws
  // kNotFound (no file), kInvalidArgument (damaged, of another version or another vocabulary), and has then
  // learnt nothing.
  virtual uint64_t load(const std::string& /*path*/) { return 0; }
};

}  // namespace taco
