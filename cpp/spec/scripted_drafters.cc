#include "spec/scripted_drafters.h"

#include <algorithm>

#include "base/error.h"

namespace taco {
namespace {

uint64_t hash_of(std::span<const int32_t> tokens) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a over tokens
  for (const int32_t token : tokens) hash = (hash ^ static_cast<uint32_t>(token)) * 1099511628211u;
  return hash;
}

}  // namespace

FixedDrafter::FixedDrafter(int nodes, int vocab_size) : nodes_(nodes), vocab_size_(vocab_size) {
  TACO_REQUIRE(nodes >= 0 && nodes < DraftTree::kMaxNodes, "nodes must be from 0 to ",
               DraftTree::kMaxNodes - 1);
  TACO_REQUIRE(vocab_size > 0, "vocab_size must be positive");
}

void FixedDrafter::draft(std::span<const DraftRequest> requests) {
  for (const DraftRequest& request : requests) {
    add_timed_drafts(*request.tree, std::min({nodes_, request.max_nodes, request.max_depth}), vocab_size_);
  }
}

ReplayDrafter::ReplayDrafter(std::shared_ptr<Drafter> drafter, std::vector<Text> texts, int32_t forced)
    : drafter_(std::move(drafter)), texts_(std::move(texts)), forced_(forced) {
  TACO_REQUIRE(drafter_ != nullptr, "a replay needs a drafter");
  TACO_REQUIRE(forced >= 0 && forced < kFirst, "the forced token must be below ", kFirst);
  for (const Text& text : texts_) by_hash_[hash_of(text.prompt)].push_back(&text);
}

void ReplayDrafter::begin(uint64_t sequence, uint64_t name_space, std::span<const int32_t> prompt) {
  const auto found = by_hash_.find(hash_of(prompt));
  if (found == by_hash_.end()) return;
  for (const Text* text : found->second) {
    if (!std::equal(prompt.begin(), prompt.end(), text->prompt.begin(), text->prompt.end())) continue;
    Sequence& added = sequences_[sequence];
    added.text = text;
    added.recorded.reset(0);
    drafter_->begin(sequence, name_space, prompt);
    return;
  }
}

void ReplayDrafter::commit(uint64_t sequence, std::span<const int32_t> tokens) {
  const auto at = sequences_.find(sequence);
  if (at == sequences_.end()) return;
  const std::vector<int32_t>& output = at->second.text->output;
  size_t& done = at->second.done;
  const size_t count = std::min(tokens.size(), output.size() - done);
  if (count > 0) drafter_->commit(sequence, std::span(output).subspan(done, count));
  done += count;
}

void ReplayDrafter::end(uint64_t sequence) {
  if (sequences_.erase(sequence) > 0) drafter_->end(sequence);
}

// The recorded tree in the engine's words: a node on the text's way is `forced`, the others are kFirst +
// place.
void ReplayDrafter::translate(Sequence& sequence, DraftTree& tree) const {
  const DraftTree& recorded = sequence.recorded;
  const std::vector<int32_t>& output = sequence.text->output;
  uint64_t& on_the_way = sequence.on_the_way;
  on_the_way = 1;
  for (int i = 1; i < recorded.size; ++i) {
    const size_t place = sequence.done + recorded.depth[i] - 1;
    const bool on =
        on_the_way >> recorded.parent[i] & 1 && place < output.size() && output[place] == recorded.token[i];
    if (on) on_the_way |= uint64_t{1} << i;
    tree.add(recorded.parent[i], on ? forced_ : kFirst + i, recorded.p[i], recorded.source[i]);
  }
}

void ReplayDrafter::draft(std::span<const DraftRequest> requests) {
  requests_.clear();
  answers_.clear();
  for (const DraftRequest& request : requests) {
    const auto at = sequences_.find(request.sequence);
    if (at == sequences_.end()) continue;
    Sequence& sequence = at->second;
    if (sequence.done == 0 || sequence.done >= sequence.text->output.size()) continue;
    sequence.recorded.reset(sequence.text->output[sequence.done - 1]);
    DraftRequest inner = request;
    inner.tree = &sequence.recorded;
    requests_.push_back(inner);
    answers_.push_back(request.tree);
  }
  drafter_->draft(requests_);
  for (size_t i = 0; i < requests_.size(); ++i) translate(sequences_.at(requests_[i].sequence), *answers_[i]);
}

void ReplayDrafter::verified(uint64_t sequence, const DraftTree& tree, int accepted) {
  const auto at = sequences_.find(sequence);
  if (at == sequences_.end()) return;
  Sequence& state = at->second;
  // A part of the recorded tree, told in the drafter's words.
  DraftTree own;
  own.reset(state.recorded.token[0]);
  std::vector<int> origin(static_cast<size_t>(tree.size), 0);
  for (int i = 1; i < tree.size; ++i) {
    const int parent = origin[static_cast<size_t>(tree.parent[i])];
    int node = tree.token[i] - kFirst;
    if (tree.token[i] == forced_) {
      node = -1;
      for (int k = parent + 1; k < state.recorded.size && node < 0; ++k)
        if (state.recorded.parent[k] == parent && state.on_the_way >> k & 1) node = k;
    }
    TACO_CHECK(node > 0 && node < state.recorded.size, "not a tree of this drafter");
    origin[static_cast<size_t>(i)] = node;
    own.add(tree.parent[i], state.recorded.token[node], tree.p[i], tree.source[i]);
  }
  drafter_->verified(sequence, own, accepted);
}

}  // namespace taco
