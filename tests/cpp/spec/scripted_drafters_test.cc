#include "spec/scripted_drafters.h"

#include <gtest/gtest.h>

#include <map>

namespace taco {
namespace {

// Proposes the next three tokens of a counting text, and a wrong sibling of each; notes what it is told.
class CountingDrafter final : public Drafter {
 public:
  void begin(uint64_t, uint64_t, std::span<const int32_t> prompt) override {
    texts[0].assign(prompt.begin(), prompt.end());
  }
  void commit(uint64_t, std::span<const int32_t> tokens) override {
    texts[0].insert(texts[0].end(), tokens.begin(), tokens.end());
  }
  void end(uint64_t) override { ++ended; }
  int64_t catch_up(int64_t max_tokens) override { return caught_up += max_tokens; }
  void use_other_cores() override { other_cores = true; }
  void draft(std::span<const DraftRequest> requests) override {
    for (const DraftRequest& request : requests) {
      DraftTree& tree = *request.tree;
      EXPECT_EQ(tree.token[0], texts[0].back());
      int node = 0;
      for (int i = 1; i <= 3; ++i) {
        tree.add(node, 900 + i, 0.1f, DraftSource::kRawLocal);
        node = tree.add(node, tree.token[0] + i, 0.5f, DraftSource::kTurboLocal);
      }
    }
  }
  void verified(uint64_t, const DraftTree& tree, int accepted) override {
    last = tree;
    last_accepted = accepted;
  }

  std::map<uint64_t, std::vector<int32_t>> texts;
  DraftTree last;
  int last_accepted = -1, ended = 0;
  int64_t caught_up = 0;
  bool other_cores = false;
};

// What is measured is the drafter as it is in service.
TEST(ReplayDrafter, HasTheDrafterLearnAndUseItsThreads) {
  auto inner = std::make_shared<CountingDrafter>();
  ReplayDrafter replay(inner, {}, 1);
  EXPECT_EQ(replay.catch_up(300), 300);
  EXPECT_EQ(replay.catch_up(20), 320);
  replay.use_other_cores();
  EXPECT_TRUE(inner->other_cores);
}

// The text counts up to 13 and then does something else, so that two of the three guesses after 11 are right.
TEST(ReplayDrafter, AcceptsWhatTheRecordedTextAccepts) {
  auto inner = std::make_shared<CountingDrafter>();
  const std::vector<int32_t> prompt = {5, 6, 7};
  ReplayDrafter replay(inner, {{{1, 2}, {3}}, {prompt, {10, 11, 12, 13, 40, 41}}}, 1);
  replay.begin(8, 0, prompt);
  const std::vector<int32_t> first = {1, 1};
  replay.commit(8, first);
  DraftTree tree;
  tree.reset(1);
  const DraftRequest request{8, 7, 63, 0.0f, &tree};
  replay.draft({&request, 1});
  ASSERT_EQ(tree.size, 7);
  // What the engine's verifier does when the model says 1 all the time.
  int node = 0, accepted = 0;
  for (int next; (next = tree.find_child(node, 1)) > 0; node = next) ++accepted;
  EXPECT_EQ(accepted, 2);
  for (int i = 1; i < tree.size; ++i)
    for (int k = 1; k < i; ++k)
      EXPECT_FALSE(tree.parent[i] == tree.parent[k] && tree.token[i] == tree.token[k]);

  // Verified without the first wrong node, in the order that pruning gives.
  prune_and_lay_out(tree, ~uint64_t{2});
  const std::vector<int32_t> run = {1, 1, 1};
  replay.commit(8, run);
  replay.verified(8, tree, 2);
  EXPECT_EQ(inner->texts[0], (std::vector<int32_t>{5, 6, 7, 10, 11, 12, 13, 40}));
  EXPECT_EQ(inner->last_accepted, 2);
  ASSERT_EQ(inner->last.size, 6);
  EXPECT_EQ(inner->last.token[0], 11);
  EXPECT_GE(inner->last.find_child(0, 12), 1);
  EXPECT_GE(inner->last.find_child(inner->last.find_child(0, 12), 13), 1);
  EXPECT_EQ(inner->last.find_child(0, 901), -1);

  // Behind the recorded end nothing is drafted, and the drafter hears of no more tokens.
  replay.commit(8, run);
  tree.reset(1);
  replay.draft({&request, 1});
  EXPECT_EQ(tree.size, 1);
  EXPECT_EQ(inner->texts[0].back(), 41);
  replay.end(8);
  replay.end(8);
  EXPECT_EQ(inner->ended, 1);
}

TEST(ReplayDrafter, LeavesUnknownPromptsAlone) {
  auto inner = std::make_shared<CountingDrafter>();
  ReplayDrafter replay(inner, {{{1, 2}, {3, 4}}}, 1);
  const std::vector<int32_t> prompt = {1, 2, 3}, token = {9};
  replay.begin(1, 0, prompt);
  replay.commit(1, token);
  DraftTree tree;
  tree.reset(9);
  const DraftRequest request{1, 7, 63, 0.0f, &tree};
  replay.draft({&request, 1});
  replay.verified(1, tree, 0);
  EXPECT_EQ(tree.size, 1);
  EXPECT_TRUE(inner->texts.empty());
  EXPECT_EQ(inner->last_accepted, -1);
}

TEST(FixedDrafter, ProposesTreesOfTheSize) {
  FixedDrafter drafter(5, 10);
  DraftTree tree, small;
  tree.reset(7);
  small.reset(7);
  const DraftRequest requests[] = {{1, 63, 63, 0.0f, &tree}, {2, 2, 63, 0.0f, &small}};
  drafter.draft(requests);
  EXPECT_EQ(tree.num_drafts(), 5);
  EXPECT_FALSE(tree.is_chain());
  EXPECT_EQ(tree.token[5], 2);
  EXPECT_EQ(tree.parent[5], 3);
  EXPECT_EQ(tree.parent[4], 3);
  EXPECT_EQ(tree.depth[3], 3);
  EXPECT_EQ(small.num_drafts(), 2);
  EXPECT_THROW(FixedDrafter(64, 10), Error);
}

}  // namespace
}  // namespace taco
