#include "spec/draft_tree.h"

namespace taco {
namespace {

// Appends the children of `from`'s node `at`, which is `to`'s node `place`: the likeliest first, the earlier
// one at a tie.
void lay_out_children(const DraftTree& from, uint64_t keep, int at, int place, DraftTree& to) {
  uint64_t done = 0;
  for (;;) {
    int best = -1;
    for (int i = at + 1; i < from.size; ++i) {
      const uint64_t bit = uint64_t{1} << i;
      if (from.parent[i] != at || !(keep & bit) || (done & bit)) continue;
      if (best < 0 || from.p[i] > from.p[best]) best = i;
    }
    if (best < 0) return;
    done |= uint64_t{1} << best;
    const int added = to.add(place, from.token[best], from.p[best], from.source[best]);
    lay_out_children(from, keep, best, added, to);
  }
}

}  // namespace

void prune_and_lay_out(DraftTree& tree, uint64_t keep) {
  if (tree.size == 0) return;
  DraftTree out;
  out.reset(tree.token[0]);
  lay_out_children(tree, keep, 0, 0, out);
  tree = out;
}

void add_timed_drafts(DraftTree& tree, int nodes, int vocab_size) {
  for (int node = 1; node <= nodes; ++node) {
    const int before = node > 1 && node == nodes ? node - 2 : node - 1;
    tree.add(before, (tree.token[0] + node) % vocab_size, 1.0f, DraftSource::kOther);
  }
}

}  // namespace taco
