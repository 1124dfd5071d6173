// N-gram prompt lookup against a scan.
#include "spec/ngram_drafter.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace taco {
namespace {

// The longest n first, its earliest place, at most `depth` tokens that followed.
std::vector<int32_t> naive(const std::vector<int32_t>& text, int min_n, int max_n, int depth) {
  const int size = static_cast<int>(text.size());
  for (int n = max_n; n >= min_n; --n)
    for (int at = 0; at + n < size; ++at)
      if (std::equal(text.begin() + at, text.begin() + at + n, text.end() - n)) {
        const int last = std::min(size, at + n + depth);
        return {text.begin() + at + n, text.begin() + last};
      }
  return {};
}

TEST(NgramDrafter, DraftsWhatAScanFinds) {
  std::mt19937 random(1);
  int drafts = 0;
  for (int round = 0; round < 30; ++round) {
    const int min_n = 1 + static_cast<int>(random() % 3), max_n = min_n + static_cast<int>(random() % 4);
    const int depth = 1 + static_cast<int>(random() % 8), vocab = 5 + static_cast<int>(random() % 60);
    NgramDrafter drafter(min_n, max_n, depth);
    std::vector<int32_t> text;
    for (int i = 0; i < 40; ++i) text.push_back(static_cast<int32_t>(random() % vocab));
    drafter.begin(9, 0, text);
    for (int step = 0; step < 200; ++step) {
      DraftTree tree;
      tree.reset(text.back());
      const DraftRequest request{9, 63, 63, 0.0f, &tree};
      drafter.draft({&request, 1});
      const auto expected = naive(text, min_n, max_n, depth);
      ASSERT_TRUE(tree.is_chain());
      ASSERT_EQ(tree.num_drafts(), static_cast<int>(expected.size()));
      for (int i = 1; i < tree.size; ++i) {
        ASSERT_EQ(tree.token[i], expected[i - 1]);
        EXPECT_EQ(tree.source[i], DraftSource::kNgram);
        EXPECT_LE(tree.p[i], tree.p[i - 1]);
        EXPECT_GT(tree.p[i], 0.0f);
      }
      drafts += tree.num_drafts() > 0;
      std::vector<int32_t> more;
      for (unsigned i = 0; i < 1 + random() % 3; ++i)
        more.push_back(random() % 2 && text.size() > 20 ? text[text.size() - 17 + i]
                                                        : static_cast<int32_t>(random() % vocab));
      drafter.commit(9, more);
      text.insert(text.end(), more.begin(), more.end());
    }
    drafter.end(9);
    drafter.end(9);
  }
  EXPECT_GT(drafts, 3000);
}

TEST(NgramDrafter, KeepsToTheRequest) {
  NgramDrafter drafter(1, 3, 5);
  drafter.begin(1, 0, std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 1});
  auto draft = [&](int max_depth, int max_nodes, float min_p) {
    DraftTree tree;
    tree.reset(1);
    const DraftRequest request{1, max_depth, max_nodes, min_p, &tree};
    drafter.draft({&request, 1});
    return tree.num_drafts();
  };
  EXPECT_EQ(draft(63, 63, 0), 5);
  EXPECT_EQ(draft(2, 63, 0), 2);
  EXPECT_EQ(draft(63, 3, 0), 3);
  EXPECT_EQ(draft(63, 63, 0.99f), 0);
}

TEST(NgramDrafter, EstimatesFollowWhatHappens) {
  NgramDrafter drafter(1, 2, 4);
  auto estimate = [&] {
    drafter.begin(1, 0, std::vector<int32_t>{1, 2, 3, 4, 5, 1});
    DraftTree tree;
    tree.reset(1);
    const DraftRequest request{1, 4, 4, 0.0f, &tree};
    drafter.draft({&request, 1});
    drafter.end(1);
    return tree.p[1];
  };
  const float before = estimate();
  // Token 7 is followed by something else each time: what followed first is never right.
  drafter.begin(2, 0, std::vector<int32_t>{});
  for (int i = 0; i < 300; ++i) drafter.commit(2, std::vector<int32_t>{7, 100 + i});
  const float after = estimate();
  EXPECT_LT(after, 0.2f * before);
}

TEST(NgramDrafter, RefusesWrongSettings) {
  EXPECT_THROW(NgramDrafter(1, 0, 5), Error);
  EXPECT_THROW(NgramDrafter(4, 3, 5), Error);
  EXPECT_THROW(NgramDrafter(0, 3, 5), Error);
  EXPECT_THROW(NgramDrafter(1, 3, 64), Error);
  try {
    NgramDrafter(5, 3, 5);
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("--ngram-prompt-lookup-min = 5"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace taco
