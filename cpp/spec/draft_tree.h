// What a drafter proposes for one sequence: a tree of tokens that may follow its last one.
#pragma once

#include <bit>
#include <cstdint>

#include "base/error.h"

namespace taco {

enum class DraftSource : uint8_t { kRoot, kNgram, kRawLocal, kRawGlobal, kTurboLocal, kTurboGlobal, kOther };
constexpr int kNumDraftSources = 7;

// Node 0, the root, is the sequence's last known token; its children are guesses of the next one. A parent
// stands before its children. A node's place is its row in the step that verifies the tree.
struct DraftTree {
  static constexpr int kMaxNodes = 64;  // with the root: the bits of a mask

  int size = 0;  // with the root
  int32_t token[kMaxNodes];
  int8_t parent[kMaxNodes];  // of the root: -1
  uint8_t depth[kMaxNodes];  // of the root: 0
  float p[kMaxNodes];        // estimated probability that all of the path up to here is accepted
  DraftSource source[kMaxNodes];
  uint64_t ancestors[kMaxNodes];  // the node itself and all before it on its path

  // Makes it a root alone.
  void reset(int32_t root) {
    size = 0;
    append(-1, root, 1.0f, DraftSource::kRoot);
  }
  // Returns the node's place. The caller keeps size below kMaxNodes and siblings distinct.
  int add(int parent_node, int32_t draft, float estimate, DraftSource from) {
    TACO_CHECK(size > 0 && size < kMaxNodes && parent_node >= 0 && parent_node < size);
    return append(parent_node, draft, estimate, from);
  }
  int num_drafts() const { return size > 0 ? size - 1 : 0; }
  // Every node follows the one before it: no mask is needed.
  bool is_chain() const { return size == 0 || std::popcount(ancestors[size - 1]) == size; }
  // The child of `node` that is `draft`, or -1.
  int find_child(int node, int32_t draft) const {
    for (int i = node + 1; i < size; ++i)
      if (parent[i] == node && token[i] == draft) return i;
    return -1;
  }

 private:
  int append(int parent_node, int32_t draft, float estimate, DraftSource from) {
    const int i = size++;
    token[i] = draft;
    parent[i] = static_cast<int8_t>(parent_node);
    p[i] = estimate;
    source[i] = from;
    depth[i] = parent_node < 0 ? uint8_t{0} : static_cast<uint8_t>(depth[parent_node] + 1);
    ancestors[i] = (parent_node < 0 ? 0 : ancestors[parent_node]) | uint64_t{1} << i;
    return i;
  }
};

// Keeps the nodes whose bit is set in `keep` (the root always; a node whose parent goes must go too) and lays
// them out depth first, the likelier child first: where the likeliest path is accepted, its K and V are in
// their places already.
void prune_and_lay_out(DraftTree& tree, uint64_t keep);

// What steps are timed with: `nodes` drafts behind the root alone, a chain but for the last two, which are
// siblings, of tokens that count up from the root's.
void add_timed_drafts(DraftTree& tree, int nodes, int vocab_size);

}  // namespace taco
