// Prompts that the Lookahead Cache takes in piece by piece, and what it does where more comes than it can
// learn.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "spec/lookahead/lookahead_drafter.h"

namespace taco {
namespace {

using Tokens = std::vector<int32_t>;
constexpr size_t kMemory = size_t{16} << 20;
constexpr int32_t kEos = 2;
constexpr LookaheadPace kSmall = {
    .begin_links = 10, .catch_up_links = 100, .commit_links = 5, .step_links = 200};

LookaheadConfig settings(int mode, bool shared = false) {
  LookaheadConfig config;
  config.cache_mode = mode;
  config.voc_size = 100000;
  config.eos_token_id = {kEos};
  config.global_cache_switch = shared;
  return config;
}

DraftTree draft(LookaheadDrafter& drafter, uint64_t sequence, int32_t root) {
  DraftTree tree;
  tree.reset(root);
  const DraftRequest request{sequence, 63, 63, 0.0f, &tree};
  drafter.draft({&request, 1});
  return tree;
}

// Tokens of which no two are the same.
Tokens count_from(int32_t first, int count) {
  Tokens out(count);
  for (int i = 0; i < count; ++i) out[i] = first + i;
  return out;
}

int accepted(const DraftTree& tree, std::span<const int32_t> future) {
  int node = 0, n = 0;
  while (n < static_cast<int>(future.size()) && (node = tree.find_child(node, future[n])) >= 0) ++n;
  return n;
}

TEST(LookaheadIntake, DraftsFromWhatIsThereAndInTheEndFromAll) {
  for (const int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory, "", kSmall);
    // The last two tokens stand at the front, and again in the middle, with other continuations.
    Tokens prompt = count_from(1000, 500);
    prompt[400] = 1002, prompt[401] = 1003;
    prompt.insert(prompt.end(), {1002, 1003});
    const auto front = std::span(prompt).subspan(4, 7), middle = std::span(prompt).subspan(402, 7);
    drafter.begin(1, 0, prompt);
    EXPECT_EQ(drafter.stats().unlinked_tokens, 502 - 10);
    for (int linked = 10; linked < 402; linked += 100) {
      EXPECT_EQ(drafter.stats().unlinked_tokens, 502 - linked);
      EXPECT_EQ(accepted(draft(drafter, 1, 1003), front), 7) << mode;
      EXPECT_EQ(accepted(draft(drafter, 1, 1003), middle), 0) << mode;
      drafter.catch_up(1);
    }
    EXPECT_EQ(accepted(draft(drafter, 1, 1003), middle), 7) << mode << ": the newest is preferred";
    drafter.catch_up(1);
    EXPECT_EQ(drafter.stats().unlinked_tokens, 0);
    EXPECT_EQ(accepted(draft(drafter, 1, 1003), middle), 7) << mode;
    drafter.commit(1, Tokens{prompt[402]});
    EXPECT_EQ(accepted(draft(drafter, 1, prompt[402]), std::span(prompt).subspan(403, 7)), 7) << mode;
  }
}

TEST(LookaheadIntake, OutputsCanBeDraftedFromAtOnce) {
  for (const int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory, "", kSmall);
    drafter.begin(1, 0, count_from(1000, 1000));
    const Tokens said = count_from(50, 12);
    drafter.commit(1, said);
    drafter.commit(1, Tokens{50, 51});
    EXPECT_EQ(drafter.stats().unlinked_tokens, 1000 - 10 - 2 * 5);
    EXPECT_EQ(accepted(draft(drafter, 1, 51), std::span(said).subspan(2)), 7) << mode;
    // And where the prompt meets them.
    drafter.commit(1, Tokens{1005, 1006});
    EXPECT_EQ(accepted(draft(drafter, 1, 1006), count_from(1007, 7)), 7) << mode;
    drafter.catch_up(0);
    EXPECT_EQ(drafter.stats().unlinked_tokens, 0);
    drafter.commit(1, Tokens{1998, 1999});
    EXPECT_EQ(accepted(draft(drafter, 1, 1999), said), 7) << mode;
  }
}

TEST(LookaheadIntake, CommitsTakeItInWhereNobodyCallsCatchUp) {
  LookaheadDrafter drafter(settings(2), kMemory, "", kSmall);
  drafter.begin(1, 0, count_from(1000, 1000));
  int64_t left = 990;
  int commits = 0;
  for (; left > 0; ++commits) {
    drafter.commit(1, Tokens{50});
    const int64_t now = drafter.stats().unlinked_tokens;
    EXPECT_LT(now, left);
    EXPECT_GE(now, left - 16) << "no more at once than allowed";
    left = now;
  }
  EXPECT_LT(commits, 200);
  drafter.commit(1, Tokens{1990, 1991});
  EXPECT_GE(accepted(draft(drafter, 1, 1991), count_from(1992, 7)), 7);
}

TEST(LookaheadIntake, TheShortestFirstAndNoMoreThanAStepMayTake) {
  LookaheadPace pace = kSmall;
  pace.begin_links = 150;
  LookaheadDrafter drafter(settings(2), kMemory, "", pace);
  drafter.begin(1, 0, count_from(1000, 1000));  // 150 of it
  drafter.begin(2, 0, count_from(3000, 200));   // 50 of it: 200 a step
  drafter.begin(3, 0, count_from(4000, 90));    // nothing
  EXPECT_EQ(drafter.stats().unlinked_tokens, 850 + 150 + 90);
  drafter.catch_up(1);  // 3, then 10 of 2
  EXPECT_EQ(drafter.stats().unlinked_tokens, 850 + 140);
  drafter.commit(3, Tokens{4080, 4081});
  EXPECT_EQ(accepted(draft(drafter, 3, 4081), count_from(4082, 7)), 7);
  drafter.begin(4, 0, count_from(5000, 120));  // a new step: all of it
  drafter.commit(4, Tokens{5110, 5111});
  EXPECT_GE(accepted(draft(drafter, 4, 5111), count_from(5112, 7)), 7);
  drafter.catch_up(1);
  drafter.catch_up(1);
  EXPECT_EQ(drafter.stats().unlinked_tokens, 850 - 60);
  drafter.commit(2, Tokens{3190, 3191});
  EXPECT_GE(accepted(draft(drafter, 2, 3191), count_from(3192, 7)), 7);
}

TEST(LookaheadIntake, AnEndInTheMiddleLosesNothingForOthers) {
  for (const int mode : {0, 1, 2}) {
    for (const bool by_token : {false, true}) {
      LookaheadDrafter drafter(settings(mode, true), kMemory, "", kSmall);
      const Tokens prompt = count_from(1000, 800);
      drafter.begin(1, 0, prompt);
      drafter.commit(1, Tokens{50, 51, 52, 53, 54, 55, 56, 57, 58});
      drafter.catch_up(1);
      if (by_token) {
        // An end of text drops the sequence's own text; it goes on with a new one.
        drafter.commit(1, Tokens{kEos, 60, 61});
        EXPECT_EQ(drafter.stats().unlinked_tokens, 0);
      }
      drafter.end(1);
      EXPECT_EQ(drafter.stats().unlinked_tokens, 0);
      EXPECT_EQ(drafter.catch_up(0), 0);
      const LookaheadStats stats = drafter.stats();
      EXPECT_EQ(stats.local_bytes, 0u);
      EXPECT_EQ(stats.learned_tokens, 800 + 9 + (by_token ? 3 : 0));
      EXPECT_EQ(stats.skipped_tokens, 0);
      for (const int at : {100, 700}) {
        drafter.begin(2, 0, Tokens{60, 1000 + at, 1001 + at});
        EXPECT_EQ(accepted(draft(drafter, 2, 1001 + at), count_from(1002 + at, 7)), 7) << mode;
        drafter.end(2);
      }
    }
  }
}

// The text of a sequence that does not fit starts anew, whether the tokens, the links or the output found no
// room; others still learn, and nothing is held in the end.
TEST(LookaheadIntake, WhatDoesNotFitStartsAnew) {
  for (const int mode : {0, 1, 2}) {
    for (const bool shared : {false, true}) {
      for (const int length : {10000, 30000, 120000, 400000}) {  // in 512 KiB for texts
        LookaheadConfig config = settings(mode, shared);
        config.voc_size = 1 << 20;
        LookaheadPace pace = kSmall;
        pace.begin_links = pace.catch_up_links = 2000;
        LookaheadDrafter drafter(config, size_t{1} << 20, "", pace);
        const Tokens prompt = count_from(1000, length);
        drafter.begin(1, 0, prompt);
        Tokens said;
        for (int i = 0; i < 600; ++i) {
          said.push_back(50 + i % 40);
          drafter.commit(1, Tokens{said.back()});
          const LookaheadStats stats = drafter.stats();
          ASSERT_LE(stats.peak_bytes, size_t{1} << 20);
          ASSERT_LE(stats.local_bytes, size_t{1} << 19);
          if (i > 300 || length == 10000) {
            if (i > 100) {
              Tokens next;
              for (int k = 1; k <= 7; ++k) next.push_back(50 + (i + k) % 40);
              EXPECT_EQ(accepted(draft(drafter, 1, said.back()), next), 7) << length << " " << i;
            }
          }
          drafter.catch_up(300);
        }
        if (length == 10000) {
          // All of it fits.
          drafter.commit(1, Tokens{9000, 9001});
          EXPECT_EQ(accepted(draft(drafter, 1, 9001), count_from(9002, 7)), 7);
        }
        drafter.end(1);
        drafter.catch_up(0);
        const LookaheadStats stats = drafter.stats();
        EXPECT_EQ(stats.local_bytes, 0u);
        EXPECT_EQ(stats.waiting_tokens, 0);
        EXPECT_EQ(stats.unlinked_tokens, 0);
        EXPECT_GT(stats.learned_tokens, 600);
      }
    }
  }
}

TEST(LookaheadIntake, AFullSharedCacheGivesWay) {
  LookaheadDrafter drafter(settings(1, true), size_t{4} << 20);
  std::mt19937 random(3);
  while (drafter.stats().evictions < 10000) {
    Tokens text(2000);
    for (int32_t& token : text) token = static_cast<int32_t>(10 + random() % 50000);
    drafter.warm_up(0, text, {});
  }
  EXPECT_LT(drafter.stats().local_bytes + 100000, (size_t{4} << 20));
  const Tokens prompt = count_from(1000, 60000);  // 1.7 MB of 2 MB
  drafter.begin(1, 0, prompt);
  while (drafter.stats().unlinked_tokens > 0) drafter.catch_up(1);
  drafter.commit(1, Tokens{60000, 60001});
  EXPECT_EQ(accepted(draft(drafter, 1, 60001), count_from(60002, 7)), 7);
  EXPECT_GT(drafter.stats().local_bytes, size_t{60000} * 28);
  EXPECT_LE(drafter.stats().peak_bytes, size_t{4} << 20);
}

TEST(LookaheadIntake, ALongPromptDoesNotKeepOthersWaiting) {
  for (const int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode, true), kMemory);
    drafter.begin(1, 0, count_from(1000, 50000));
    drafter.begin(2, 0, Tokens{60});
    drafter.commit(2, count_from(100, 100));
    drafter.end(2);
    for (int step = 0; step < 3; ++step) drafter.catch_up(256);
    EXPECT_GT(drafter.stats().waiting_tokens, 40000);
    drafter.begin(3, 0, Tokens{70, 110, 111});
    EXPECT_EQ(accepted(draft(drafter, 3, 111), count_from(112, 7)), 7) << mode;
  }
}

// The next step waits for commits and ends, and not for catch_up.
TEST(LookaheadIntake, WhoCatchesUpIsLeftTheLearning) {
  for (const int mode : {0, 1, 2}) {
    for (const bool catches_up : {false, true}) {
      LookaheadDrafter drafter(settings(mode, true), kMemory);
      if (catches_up) drafter.catch_up(1);
      drafter.begin(1, 0, count_from(1000, 5000));
      for (int i = 0; i < 50; ++i) drafter.commit(1, count_from(10000 + 2 * i, 2));
      drafter.end(1);
      if (catches_up) {
        EXPECT_EQ(drafter.stats().learned_tokens, 0) << mode;
        EXPECT_GT(drafter.catch_up(1000), 4000);
        EXPECT_GE(drafter.stats().learned_tokens, 500);
        drafter.catch_up(0);
      }
      EXPECT_GT(drafter.stats().learned_tokens, catches_up ? 5000 : 1000) << mode;
    }
  }
}

TEST(LookaheadIntake, PromptsThatComeTooFastAreSkippedAnswersAreNot) {
  for (const int mode : {0, 1, 2}) {
    LookaheadPace pace;
    pace.most_waiting = 2000;
    pace.step_learns = 0;
    LookaheadDrafter drafter(settings(mode, true), kMemory, "", pace);
    for (uint64_t id = 1; id <= 20; ++id) {
      const auto number = static_cast<int32_t>(id);
      drafter.begin(id, 0, count_from(number * 1000, 900));
      drafter.commit(id, count_from(number * 1000 + 920, 20));
      drafter.end(id);
      // That of the one that ended last may be in the way; its answer stays.
      EXPECT_LE(drafter.stats().waiting_tokens, 2000 + 20 * number);
    }
    EXPECT_GT(drafter.stats().skipped_tokens, 10000);
    drafter.catch_up(0);
    const LookaheadStats stats = drafter.stats();
    EXPECT_EQ(stats.learned_tokens + stats.skipped_tokens, 20 * 920);
    EXPECT_EQ(stats.local_bytes, 0u);
    for (const int number : {1, 10, 20}) {
      drafter.begin(100, 0, Tokens{60, number * 1000 + 922, number * 1000 + 923});
      EXPECT_EQ(accepted(draft(drafter, 100, number * 1000 + 923), count_from(number * 1000 + 924, 7)), 7)
          << mode;
      drafter.end(100);
    }
  }
}

}  // namespace
}  // namespace taco
