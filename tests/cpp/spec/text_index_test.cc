// Earlier places of a context in a sequence's own text, against a scan of all of it.
#include "spec/lookahead/text_index.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

namespace taco {
namespace {

constexpr int32_t kEos = 2;
constexpr TokenRules kRules{100, std::array{kEos}};

int naive_length(const std::vector<int32_t>& text, const Context& context, uint32_t next, int max_length) {
  int length = 0;
  while (length < max_length && length < context.size && static_cast<uint32_t>(length) < next &&
         text[next - 1 - length] == context.last[length])
    ++length;
  return length;
}

TEST(TextIndex, FindsWhatAScanFinds) {
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    MemoryBudget budget(1 << 20);
    TextIndex index(kRules, &budget);
    std::vector<int32_t> text;
    for (int i = 0; i < 600; ++i) {
      // Copies of what was there, so that there are long matches; some ends of text and foreign ids.
      int32_t token = static_cast<int32_t>(3 + random() % 90);
      if (i > 50 && random() % 4) token = text[i - 37];
      if (random() % 60 == 0) token = random() % 2 ? kEos : 1000;
      text.push_back(token);
      ASSERT_TRUE(index.append(token));
    }
    for (uint32_t end = 0; end <= text.size(); end += 1 + random() % 7) {
      const Context context = index.context(end, 7);
      for (int i = 0; i < context.size; ++i) ASSERT_EQ(context.last[i], text[end - 1 - i]);
      for (int min_length : {1, 2, 3, 5}) {
        TextIndex::Match matches[TextIndex::kMaxMatches];
        const int found = index.find(context, end, true, min_length, 7, matches);
        std::vector<bool> seen(text.size());
        for (int m = 0; m < found; ++m) {
          ASSERT_LT(matches[m].next, end);
          EXPECT_EQ(matches[m].length, naive_length(text, context, matches[m].next, 7));
          EXPECT_GE(matches[m].length, min_length);
          EXPECT_FALSE(seen[matches[m].next]) << "told twice";
          seen[matches[m].next] = true;
          if (m > 0) {
            EXPECT_TRUE(matches[m - 1].length > matches[m].length || matches[m - 1].next > matches[m].next);
          }
        }
        // No chain is longer here than the steps taken along it, so nothing may be missing but what is
        // frequent.
        int expected = 0;
        for (uint32_t next = 1; next < end; ++next)
          expected += naive_length(text, context, next, 7) >= min_length;
        if (expected <= 4) {
          EXPECT_EQ(found, expected) << "end " << end << " min " << min_length;
        }
        // From the head of the chain instead of the text's own end it is the same.
        if (end == text.size()) {
          TextIndex::Match again[TextIndex::kMaxMatches];
          EXPECT_EQ(index.find(context, end, false, min_length, 7, again), found);
        }
      }
    }
    EXPECT_EQ(index.bytes(), budget.used());
    index.clear();
    EXPECT_EQ(budget.used(), 0u);
  }
}

TEST(TextIndex, NoContextReachesOverAnEndOfText) {
  MemoryBudget budget(1 << 20);
  TextIndex index(kRules, &budget);
  for (int32_t token : {10, 11, kEos, 12, 13, 10, 11, kEos, 12}) ASSERT_TRUE(index.append(token));
  EXPECT_EQ(index.context(9, 7).size, 1);
  EXPECT_EQ(index.context(8, 7).size, 0);
  TextIndex::Match matches[TextIndex::kMaxMatches];
  ASSERT_EQ(index.find(index.context(9, 7), 9, true, 1, 7, matches), 1);
  EXPECT_EQ(matches[0].next, 4u);
  EXPECT_EQ(matches[0].length, 1);
}

TEST(TextIndex, RefusesWhatItHasNoRoomFor) {
  MemoryBudget budget(20000);
  TextIndex index(kRules, &budget);
  int taken = 0;
  while (index.append(5 + taken % 50)) ++taken;
  EXPECT_GT(taken, 250);
  EXPECT_LE(budget.peak(), 20000u);
  EXPECT_EQ(index.size(), static_cast<uint32_t>(taken));
  EXPECT_EQ(index[taken - 1], 5 + (taken - 1) % 50);
}

}  // namespace
}  // namespace taco
