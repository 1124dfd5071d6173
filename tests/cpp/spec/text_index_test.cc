// Earlier places of a context in a sequence's own text, against a scan of all of it.
#include "spec/lookahead/text_index.h"

#include <gtest/gtest.h>

#include <algorithm>
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

// What find should tell of a context at the end of the text, where the positions linked are known.
std::vector<uint32_t> scan(const std::vector<int32_t>& text, const std::vector<bool>& linked,
                           const Context& context, int min_length) {
  std::vector<uint32_t> out;
  for (uint32_t next = 1; next < text.size(); ++next)
    if (linked[next - 1] && naive_length(text, context, next, 7) >= min_length) out.push_back(next);
  return out;
}

TEST(TextIndex, APromptIsLinkedInPiecesWhileTheTextGrows) {
  const TokenRules rules{20000, std::array{kEos}};
  std::mt19937 random(6);
  for (const uint32_t prompt_size : {1u, 255u, 256u, 257u, 5000u, 30000u}) {
    MemoryBudget budget(4 << 20);
    TextIndex index(rules, &budget);
    std::vector<int32_t> text;
    size_t from = 0;
    int left = 0;
    // Rare tokens and pieces that come again, a few times each.
    auto next_token = [&] {
      if (left == 0 && text.size() > 100 && random() % 30 == 0)
        from = random() % (text.size() - 20), left = 9;
      if (random() % 200 == 0) return kEos;
      return left > 0 ? (--left, text[from++]) : static_cast<int32_t>(3 + random() % 19000);
    };
    while (text.size() < prompt_size) text.push_back(next_token());
    ASSERT_EQ(index.take(text), prompt_size);
    EXPECT_EQ(index.unlinked(), prompt_size);
    std::vector<bool> linked(text.size());
    uint32_t done = 0;
    int found_some = 0;
    for (int round = 0; round < 60; ++round) {
      const uint32_t piece = std::min<uint32_t>(index.unlinked(), random() % (prompt_size / 20 + 2));
      ASSERT_TRUE(index.link(piece));
      for (uint32_t i = 0; i < piece; ++i) linked[done++] = true;
      EXPECT_EQ(index.unlinked(), prompt_size - done);
      for (int i = 0; i < 10; ++i) {
        text.push_back(next_token());
        linked.push_back(true);
        ASSERT_TRUE(index.append(text.back()));
      }
      ASSERT_EQ(index.size(), text.size());
      // At the end of the text, and for what stood elsewhere.
      for (int look = 0; look < 6; ++look) {
        const uint32_t end = look == 0 ? index.size() : 1 + static_cast<uint32_t>(random() % index.size());
        const Context context = index.context(end, 7);
        for (int i = 0; i < context.size; ++i) ASSERT_EQ(context.last[i], text[end - 1 - i]);
        for (const int min_length : {1, 2, 4}) {
          TextIndex::Match matches[TextIndex::kMaxMatches];
          const int found = index.find(context, index.size(), look == 0, min_length, 7, matches);
          std::vector<uint32_t> told;
          for (int m = 0; m < found; ++m) {
            told.push_back(matches[m].next);
            EXPECT_EQ(matches[m].length, naive_length(text, context, matches[m].next, 7));
          }
          std::sort(told.begin(), told.end());
          const std::vector<uint32_t> expected = scan(text, linked, context, min_length);
          EXPECT_TRUE(std::includes(expected.begin(), expected.end(), told.begin(), told.end()));
          if (expected.size() <= 4) {
            EXPECT_EQ(told, expected) << prompt_size << " end " << end << " min " << min_length;
          }
          found_some += found > 0;
        }
      }
      // As the text was when it ended earlier, in its output: what was linked later is no match.
      if (index.size() > prompt_size + 20) {
        const uint32_t end = prompt_size + 1 + static_cast<uint32_t>(random() % 20);
        TextIndex::Match matches[TextIndex::kMaxMatches];
        const int found = index.find(index.context(end, 7), end, true, 1, 7, matches);
        for (int m = 0; m < found; ++m) EXPECT_LT(matches[m].next, end);
      }
    }
    EXPECT_GT(found_some, 100);
    std::vector<int32_t> copied(text.size());
    index.copy(0, static_cast<int>(text.size()), copied.data());
    EXPECT_EQ(copied, text);
    EXPECT_EQ(index.bytes(), budget.used());
    EXPECT_LT(index.bytes(), text.size() * 28 + 80000);
    index.drop_links();
    EXPECT_EQ(index.bytes(), budget.used());
    EXPECT_LT(index.bytes(), text.size() * 4 + text.size() / 4 + 2000);
    EXPECT_EQ(index[index.size() - 1], text.back());
    TextIndex::Match matches[TextIndex::kMaxMatches];
    EXPECT_EQ(index.find(index.context(index.size(), 7), index.size(), true, 1, 7, matches), 0);
  }
}

TEST(TextIndex, GivesBackPieceByPiece) {
  for (const bool linked : {false, true}) {
    MemoryBudget budget(4 << 20);
    TextIndex index(kRules, &budget);
    const std::vector<int32_t> prompt(10000, 7);
    ASSERT_EQ(index.take(prompt), prompt.size());
    if (linked) {
      ASSERT_TRUE(index.link(6000));
      ASSERT_TRUE(index.append(8));
    }
    int calls = 0;
    size_t before = budget.used();
    while (!index.give_back(8)) {
      ++calls;
      EXPECT_LT(budget.used(), before);
      EXPECT_LE(before - budget.used(), 8u * 3072);
      EXPECT_EQ(index.bytes(), budget.used());
      before = budget.used();
    }
    EXPECT_GE(calls, linked ? 12 : 9);
    EXPECT_EQ(budget.used(), 0u);
    EXPECT_EQ(index.size(), 0u);
  }
}

TEST(TextIndex, LinksGoOnWhenThereIsRoomAgain) {
  MemoryBudget budget(400000);
  TextIndex index(kRules, &budget);
  std::vector<int32_t> prompt(10000);
  for (int i = 0; i < 10000; ++i) prompt[i] = i / 97 % 90 + i % 7 + 3;
  ASSERT_EQ(index.take(prompt), prompt.size());
  ASSERT_TRUE(budget.charge(150000));
  EXPECT_FALSE(index.link(10000));
  EXPECT_GT(index.refused(), 0u);
  const uint32_t left = index.unlinked();
  EXPECT_GT(left, 100u);
  EXPECT_LT(left, 10000u);
  EXPECT_EQ(index.bytes() + 150000, budget.used());
  EXPECT_FALSE(index.append(5));
  EXPECT_EQ(index.size(), 10000u);
  budget.release(150000);
  EXPECT_TRUE(index.link(10000));
  EXPECT_EQ(index.unlinked(), 0u);
  EXPECT_TRUE(index.append(5));
  TextIndex::Match matches[TextIndex::kMaxMatches];
  EXPECT_GT(index.find(index.context(5000, 4), index.size(), false, 4, 4, matches), 0);
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
