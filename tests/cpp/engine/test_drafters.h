// Drafters that know the truth, or know that they do not.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "spec/drafter.h"

namespace taco {

// What every drafter of the tests does: remembers each sequence's tokens and checks the order of the calls.
class TestDrafter : public Drafter {
 public:
  void begin(uint64_t sequence, uint64_t, std::span<const int32_t> prompt) override {
    if (!texts_.emplace(sequence, Text{{prompt.begin(), prompt.end()}, prompt.size()}).second) ++wrong_calls;
  }
  void commit(uint64_t sequence, std::span<const int32_t> tokens) override {
    auto it = texts_.find(sequence);
    if (it == texts_.end()) {
      ++wrong_calls;
      return;
    }
    it->second.tokens.insert(it->second.tokens.end(), tokens.begin(), tokens.end());
  }
  void end(uint64_t sequence) override { texts_.erase(sequence); }
  void draft(std::span<const DraftRequest> requests) override {
    for (const DraftRequest& request : requests) {
      auto it = texts_.find(request.sequence);
      if (it == texts_.end() || it->second.tokens.back() != request.tree->token[0]) {
        ++wrong_calls;
        continue;
      }
      grow(it->second, request);
      prune_and_lay_out(*request.tree, ~uint64_t{0});
    }
  }
  void verified(uint64_t, const DraftTree& tree, int accepted_drafts) override {
    drafted += static_cast<uint64_t>(tree.num_drafts());
    accepted += static_cast<uint64_t>(accepted_drafts);
  }

  uint64_t drafted = 0, accepted = 0;
  int wrong_calls = 0;
  size_t num_texts() const { return texts_.size(); }

 protected:
  struct Text {
    std::vector<int32_t> tokens;
    size_t prompt_len;
    std::span<const int32_t> prompt() const { return {tokens.data(), prompt_len}; }
  };
  virtual void grow(const Text& text, const DraftRequest& request) = 0;

 private:
  std::map<uint64_t, Text> texts_;
};

// The next `depth` tokens as they will be.
template <typename TokenAt>  // token(prompt, position)
class OracleDrafter final : public TestDrafter {
 public:
  OracleDrafter(int depth, TokenAt token_at) : depth_(depth), token_at_(token_at) {}

 private:
  void grow(const Text& text, const DraftRequest& request) override {
    int node = 0;
    for (int i = 0; i < std::min({depth_, request.max_depth, request.max_nodes}); ++i)
      node = request.tree->add(node, token_at_(text.prompt(), static_cast<int>(text.tokens.size()) + i), 1.0f,
                               DraftSource::kOther);
  }
  int depth_;
  TokenAt token_at_;
};

// Random trees that hold the truth here and there: at a random place, under siblings that claim to be
// likelier, to a random depth, sometimes not at all.
template <typename TokenAt>
class RandomTreeDrafter final : public TestDrafter {
 public:
  RandomTreeDrafter(int vocab, uint32_t seed, TokenAt token_at)
      : vocab_(vocab), rng_(seed), token_at_(token_at) {}

 private:
  int below(int n) { return static_cast<int>(rng_() % static_cast<uint32_t>(n)); }
  void grow(const Text& text, const DraftRequest& request) override {
    DraftTree& tree = *request.tree;
    const int nodes = std::min(below(4) == 0 ? 63 : below(12), request.max_nodes);
    std::vector<int> true_depth{0};  // of each node: how deep it is in the truth, or -1
    for (int attempts = 0; tree.num_drafts() < nodes && attempts < 200; ++attempts) {
      const int parent = below(3) == 0 ? below(tree.size) : tree.size - 1;
      if (tree.depth[parent] >= request.max_depth) continue;
      const int truth = true_depth[static_cast<size_t>(parent)];
      const int position = static_cast<int>(text.tokens.size()) + tree.depth[parent];
      const bool tell = truth >= 0 && below(3) != 0;
      const int32_t token = tell ? token_at_(text.prompt(), position) : below(vocab_);
      if (tree.find_child(parent, token) >= 0) continue;
      const bool is_true = truth >= 0 && token == token_at_(text.prompt(), position);
      tree.add(parent, token, tree.p[parent] * static_cast<float>(below(1000)) / 1000.0f,
               DraftSource::kOther);
      true_depth.push_back(is_true ? truth + 1 : -1);
    }
  }
  int vocab_;
  std::mt19937 rng_;
  TokenAt token_at_;
};

// Anything at all.
class GarbageDrafter final : public TestDrafter {
 public:
  GarbageDrafter(int vocab, uint32_t seed) : vocab_(vocab), rng_(seed) {}

 private:
  void grow(const Text&, const DraftRequest& request) override {
    DraftTree& tree = *request.tree;
    for (int i = 0; i < request.max_nodes; ++i) {
      const int parent = static_cast<int>(rng_() % static_cast<uint32_t>(tree.size));
      const auto token = static_cast<int32_t>(rng_() % static_cast<uint32_t>(vocab_));
      if (tree.depth[parent] >= request.max_depth || tree.find_child(parent, token) >= 0) continue;
      tree.add(parent, token, 0.5f * tree.p[parent], DraftSource::kOther);
    }
  }
  int vocab_;
  std::mt19937 rng_;
};

}  // namespace taco
