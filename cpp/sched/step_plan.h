// What one step computes: made by the scheduler, read by an executor. Plain data.
#pragma once

#include <cstdint>
#include <vector>

#include "sched/sequence.h"
#include "spec/draft_tree.h"

namespace taco {

// `count` tokens of a sequence, from position `start` on. There is no prefill and no decode: a sequence has
// tokens computed and tokens known, and is given a part of the step's budget.
struct SeqStep {
  const Sequence* sequence;
  int32_t start, count;
  // The sequences that sample from the last row: empty while known tokens remain; itself; or, at the end of a
  // prompt with best_of > 1, all of the request's sequences.
  std::vector<const Sequence*> samplers;
  // Logprobs of the prompt tokens at positions start + 1 .. start + count (those inside the prompt) are
  // wanted.
  bool prompt_logprobs = false;
  // A tree of guesses to verify, or null. Then `count` is its size: the root is the last known token, and
  // node j is a row that stands at position start + depth and has its K and V in slot start + j of the
  // sequence. The sequence samples at every node; the output holds a run of tokens along the path that they
  // agree with. Afterwards the K and V of the run's drafts stand where those of a sequence without drafts
  // would.
  const DraftTree* draft = nullptr;

  // One known token, or a draft, and a token to come; else a part of a prompt, or of what was preempted.
  bool decodes() const { return draft || (count == 1 && !samplers.empty()); }
};

struct StepPlan {
  uint64_t number = 0;
  // Whole blocks change places before the step, in this order, each list in its own order. A device block
  // that swap_out reads may be written by swap_in or copies; no block is written twice.
  std::vector<BlockMove> swap_out;  // device -> host
  std::vector<BlockMove> swap_in;   // host -> device
  std::vector<BlockCopy> copies;    // device -> device (copy on write)
  std::vector<SeqStep> seqs;
  int32_t num_tokens = 0;  // sum of counts
  // Transfers (cache/transfer.h) that the step must not overtake: loads, of which it reads what they write,
  // layer by layer, and stores, of which it overwrites what they read, before anything else.
  std::vector<uint64_t> wait_for;
  // Whether a draft is no chain: then no sequence has more than DraftTree::kMaxNodes rows.
  bool has_trees = false;
};

}  // namespace taco
