// The Lookahead Cache as its owner sees it.
#include "spec/lookahead/lookahead_drafter.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

namespace taco {
namespace {

using Tokens = std::vector<int32_t>;
constexpr size_t kMemory = size_t{16} << 20;
constexpr int32_t kEos = 2;

LookaheadConfig settings(int mode) {
  LookaheadConfig config;
  config.cache_mode = mode;
  config.voc_size = 1000;
  config.eos_token_id = {kEos, 3};
  return config;
}

DraftTree draft(LookaheadDrafter& drafter, uint64_t sequence, int32_t root, int max_depth = 63,
                int max_nodes = 63, float min_p = 0.0f) {
  DraftTree tree;
  tree.reset(root);
  const DraftRequest request{sequence, max_depth, max_nodes, min_p, &tree};
  drafter.draft({&request, 1});
  return tree;
}

Tokens first_path(const DraftTree& tree) {
  Tokens out;
  for (int node = 0;;) {
    int best = -1;
    for (int i = node + 1; i < tree.size; ++i)
      if (tree.parent[i] == node && (best < 0 || tree.p[i] > tree.p[best])) best = i;
    if (best < 0) return out;
    out.push_back(tree.token[best]);
    node = best;
  }
}

// How many tokens of `future` the tree would give.
int accepted(const DraftTree& tree, std::span<const int32_t> future) {
  int node = 0, n = 0;
  for (const int32_t token : future) {
    node = tree.find_child(node, token);
    if (node < 0) break;
    ++n;
  }
  return n;
}

void check_tree(const DraftTree& tree, const LookaheadConfig& config, int max_depth, int max_nodes,
                float min_p) {
  std::map<int, int> width;
  ASSERT_LE(tree.num_drafts(), max_nodes);
  for (int i = 1; i < tree.size; ++i) {
    ASSERT_LT(tree.parent[i], i);
    ASSERT_EQ(tree.find_child(tree.parent[i], tree.token[i]), i) << "siblings are distinct";
    ASSERT_LE(tree.depth[i], std::min(max_depth, config.copy_length));
    ASSERT_GE(tree.p[i], min_p);
    ASSERT_LE(tree.p[i], tree.p[tree.parent[i]] * 1.0001f);
    ASSERT_GE(tree.token[i], 0);
    ASSERT_LT(tree.token[i], config.voc_size);
    ASSERT_NE(tree.token[tree.parent[i]], kEos) << "nothing follows an end of text";
    ++width[tree.depth[i]];
  }
  const int allowed = config.cache_mode == 0 ? config.top_k : config.token_paths_top_k;
  for (const auto& [depth, nodes] : width) ASSERT_LE(nodes, allowed) << "depth " << depth;
}

TEST(Lookahead, CopiesFromItsOwnText) {
  for (int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory);
    drafter.begin(1, 0, Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 10, 11});
    EXPECT_EQ(first_path(draft(drafter, 1, 11)), (Tokens{12, 13, 14, 15, 16, 17, 18})) << mode;
    EXPECT_EQ(first_path(draft(drafter, 1, 11, 3)), (Tokens{12, 13, 14})) << mode;
    EXPECT_EQ(draft(drafter, 1, 11, 63, 2).num_drafts(), 2);
    drafter.commit(1, Tokens{12, 13});
    EXPECT_EQ(first_path(draft(drafter, 1, 13)), (Tokens{14, 15, 16, 17, 18, 19, 20})) << mode;
    // The next token may be known before it is committed.
    EXPECT_EQ(first_path(draft(drafter, 1, 14)), (Tokens{15, 16, 17, 18, 19, 20, 10})) << mode;
    drafter.end(1);
    drafter.end(1);
  }
}

TEST(Lookahead, OneTokenIsEnoughForRawAndHybridOnly) {
  for (int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory);
    drafter.begin(1, 0, Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 99, 10});
    const Tokens path = first_path(draft(drafter, 1, 10));
    if (mode == 1) {
      EXPECT_TRUE(path.empty());
    } else {
      EXPECT_EQ(path, (Tokens{11, 12, 13, 14, 15, 16, 17})) << mode;
    }
  }
  LookaheadConfig config = settings(0);
  config.is_hybrid = false;
  LookaheadDrafter drafter(config, kMemory);
  drafter.begin(1, 0, Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 99, 10});
  EXPECT_EQ(draft(drafter, 1, 10).num_drafts(), 0);
}

TEST(Lookahead, SequencesLearnFromEachOther) {
  const Tokens text{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
  for (int mode : {0, 1, 2}) {
    for (bool shared : {true, false}) {
      LookaheadConfig config = settings(mode);
      config.global_cache_switch = shared;
      LookaheadDrafter drafter(config, kMemory);
      drafter.begin(1, 5, Tokens{50});
      drafter.commit(1, text);
      drafter.end(1);
      drafter.catch_up(0);
      drafter.begin(2, 5, Tokens{60, 10, 11});
      const DraftTree tree = draft(drafter, 2, 11);
      EXPECT_EQ(tree.num_drafts() > 0, shared) << mode;
      if (shared) {
        EXPECT_EQ(first_path(tree), (Tokens{12, 13, 14, 15, 16, 17, 18})) << mode;
        EXPECT_TRUE(tree.source[1] == DraftSource::kRawGlobal || tree.source[1] == DraftSource::kTurboGlobal);
      }
      // But not from another name space.
      drafter.begin(3, 6, Tokens{60, 10, 11});
      EXPECT_EQ(draft(drafter, 3, 11).num_drafts(), 0) << mode;
    }
  }
}

TEST(Lookahead, NameSpacesShareNothing) {
  for (int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory);
    std::mt19937 random(4);
    // Many texts of disjoint vocabularies in two name spaces.
    for (uint64_t id = 0; id < 200; ++id) {
      Tokens text;
      for (int i = 0; i < 100; ++i)
        text.push_back(static_cast<int32_t>(100 + 400 * (id % 2) + random() % 30));
      drafter.begin(id, id % 2, Tokens{});
      drafter.commit(id, text);
      drafter.end(id);
    }
    drafter.catch_up(0);
    for (uint64_t space : {0, 1}) {
      // The other one's tokens as a prompt meet nothing known.
      Tokens prompt;
      const auto base = static_cast<int32_t>(100 + 400 * (1 - space));
      for (int i = 0; i < 30; ++i) prompt.push_back(base + i);
      drafter.begin(1000, space, prompt);
      const DraftTree tree = draft(drafter, 1000, prompt.back());
      EXPECT_EQ(tree.num_drafts(), 0) << mode;
      drafter.end(1000);
    }
  }
}

TEST(Lookahead, AnEndOfTextDropsTheLocalCache) {
  for (int mode : {0, 1, 2}) {
    LookaheadConfig config = settings(mode);
    config.global_cache_switch = false;
    LookaheadDrafter drafter(config, kMemory);
    const Tokens text{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
    drafter.begin(1, 0, text);
    drafter.commit(1, Tokens{10, 11});
    EXPECT_GT(draft(drafter, 1, 11).num_drafts(), 0);
    drafter.commit(1, Tokens{30, kEos, 10, 11});
    EXPECT_EQ(draft(drafter, 1, 11).num_drafts(), 0) << mode;
    // In a prompt (between the turns of a chat) it only ends what n-grams reach over.
    Tokens chat = text;
    chat.insert(chat.end(), {kEos, 10, 11});
    drafter.begin(2, 0, chat);
    EXPECT_EQ(first_path(draft(drafter, 2, 11)), (Tokens{12, 13, 14, 15, 16, 17, 18})) << mode;
    // An end of text may be proposed; nothing follows it.
    drafter.begin(3, 0, Tokens{10, 11, 12, kEos, 40, 41, 42, 43, 44, 45, 46, 47, 10, 11});
    EXPECT_EQ(first_path(draft(drafter, 3, 11)), (Tokens{12, kEos})) << mode;
  }
}

// A model may end its texts in several ways: each of them drops the local cache, and no n-gram spans it.
TEST(Lookahead, EveryEndOfTextCounts) {
  for (const int mode : {0, 1, 2}) {
    for (const int32_t end : {kEos, 3, 4}) {  // 4 is none
      LookaheadConfig config = settings(mode);
      config.global_cache_switch = false;
      LookaheadDrafter drafter(config, kMemory);
      drafter.begin(1, 0, Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 19});
      drafter.commit(1, Tokens{30, end, 10, 11});
      EXPECT_EQ(draft(drafter, 1, 11).num_drafts() > 0, end == 4) << mode << ", " << end;
    }
  }
}

TEST(Lookahead, NoNgramCrossesAnEndOfTextInTheSharedCache) {
  for (int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory);
    drafter.begin(1, 0, Tokens{});
    for (int i = 0; i < 20; ++i) drafter.commit(1, Tokens{10, 11, kEos, 12, 13, 14, 15, 16, 17, 18, 19});
    drafter.end(1);
    drafter.catch_up(0);
    drafter.begin(2, 0, Tokens{70, 10, 11});
    EXPECT_EQ(first_path(draft(drafter, 2, 11)), (Tokens{kEos})) << mode;
    drafter.begin(3, 0, Tokens{70, 11, kEos});
    EXPECT_EQ(draft(drafter, 3, kEos).num_drafts(), 0) << mode;
  }
}

TEST(Lookahead, ForeignIdsAreNeverCached) {
  for (int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory);
    for (uint64_t id = 0; id < 3; ++id) {
      drafter.begin(id, 0, Tokens{10, 11, 1000, 12, 13, 14, -5, 15, 16, 17, 18, 19, 20, 21, 10, 11});
      drafter.commit(id, Tokens{1 << 30, 12, 13});
      EXPECT_TRUE(first_path(draft(drafter, id, 13)) == (Tokens{14})) << mode;
      drafter.end(id);
      drafter.catch_up(0);
    }
    drafter.begin(9, 0, Tokens{90, 10, 11});
    EXPECT_EQ(draft(drafter, 9, 11).num_drafts(), 0) << mode;
  }
}

TEST(Lookahead, IgnoresPromptsIfAsked) {
  for (int mode : {0, 1, 2}) {
    LookaheadConfig config = settings(mode);
    config.ignore_prompt = true;
    LookaheadDrafter drafter(config, kMemory);
    const Tokens text{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 10, 11};
    drafter.begin(1, 0, text);
    EXPECT_EQ(draft(drafter, 1, 11).num_drafts(), 0) << mode;
    drafter.end(1);
    drafter.warm_up(0, text, Tokens{50, 51, 52, 53, 54, 55, 56, 57});
    drafter.begin(2, 0, Tokens{10, 11});
    EXPECT_EQ(draft(drafter, 2, 11).num_drafts(), 0) << mode;
    drafter.begin(3, 0, Tokens{50, 51});
    EXPECT_EQ(first_path(draft(drafter, 3, 51)), (Tokens{52, 53, 54, 55, 56, 57})) << mode;
  }
}

TEST(Lookahead, StopsAtTheLongestSequence) {
  for (int mode : {0, 2}) {
    LookaheadConfig config = settings(mode);
    config.max_seq_len = 16;
    LookaheadDrafter drafter(config, kMemory);
    drafter.begin(1, 0, Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 10, 11});
    EXPECT_EQ(first_path(draft(drafter, 1, 11)).size(), 3u);
    drafter.commit(1, Tokens{12, 13, 14});
    EXPECT_EQ(draft(drafter, 1, 14).num_drafts(), 0);
  }
}

TEST(Lookahead, TwoPathsWhereTwoThingsFollowed) {
  LookaheadConfig config = settings(1);
  LookaheadDrafter drafter(config, kMemory);
  Tokens text;
  for (int i = 0; i < 3; ++i)
    text.insert(text.end(), {10, 11, 12, 13, 14, 30 + i, 10, 11, 22, 23, 24, 40 + i});
  text.insert(text.end(), {10, 11});
  drafter.begin(1, 0, text);
  const DraftTree tree = draft(drafter, 1, 11);
  EXPECT_GE(tree.find_child(0, 12), 0);
  EXPECT_GE(tree.find_child(0, 22), 0);
  EXPECT_EQ(accepted(tree, Tokens{12, 13, 14}), 3);
  EXPECT_EQ(accepted(tree, Tokens{22, 23, 24}), 3);
  config.token_paths_top_k = 1;
  LookaheadDrafter narrow(config, kMemory);
  narrow.begin(1, 0, text);
  EXPECT_TRUE(draft(narrow, 1, 11).is_chain());
}

TEST(Lookahead, RawWithSeveralPhrasesMakesAPrefixTree) {
  LookaheadConfig config = settings(0);
  config.top_k = 2;
  LookaheadDrafter drafter(config, kMemory);
  drafter.begin(
      1, 0, Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 10, 11, 12, 13, 24, 25, 26, 27, 28, 29, 30, 10, 11});
  const DraftTree tree = draft(drafter, 1, 11);
  EXPECT_EQ(accepted(tree, Tokens{12, 13, 14, 15, 16, 17, 18}), 7);
  EXPECT_EQ(accepted(tree, Tokens{12, 13, 24, 25, 26, 27, 28}), 7);
  EXPECT_EQ(tree.num_drafts(), 2 + 5 + 5);
}

TEST(Lookahead, ManyRowsMakeRawDraftsShorter) {
  LookaheadConfig config = settings(0);
  config.token_paths_top_k = 1;
  config.target_parallelism = 64;
  for (int paths : {1, 2}) {
    config.token_paths_top_k = paths;
    LookaheadDrafter drafter(config, kMemory);
    std::vector<DraftTree> trees(16);
    std::vector<DraftRequest> requests;
    for (uint64_t id = 0; id < 16; ++id) {
      drafter.begin(id, 0, Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 10, 11});
      trees[id].reset(11);
      for (int i = 0; i < 30; ++i) drafter.verified(id, trees[id], id < 8 ? 0 : 6);
      requests.push_back({id, 63, 63, 0.0f, &trees[id]});
    }
    drafter.draft(requests);
    int rows = 0;
    for (const DraftTree& tree : trees) rows += tree.size;
    if (paths == 1) {
      EXPECT_LE(rows, 64);
      EXPECT_GT(trees[9].num_drafts(), trees[1].num_drafts()) << "who hits drafts more";
    } else {
      EXPECT_EQ(rows, 16 * 8) << "several paths know no such limit";
    }
  }
}

// Random traffic: every tree is well formed, the bound holds, and the same calls give the same trees.
std::vector<Tokens> run_traffic(const LookaheadConfig& config, size_t memory, unsigned seed,
                                const LookaheadPace& pace, LookaheadStats* stats) {
  LookaheadDrafter drafter(config, memory, "", pace);
  std::mt19937 random(seed);
  std::map<uint64_t, Tokens> live;
  std::vector<Tokens> trees;
  std::vector<Tokens> old;
  uint64_t next_id = 1;
  auto text_like = [&](int n) {
    Tokens out;
    while (static_cast<int>(out.size()) < n) {
      if (!old.empty() && random() % 3) {
        const Tokens& from = old[random() % old.size()];
        const size_t at = random() % from.size();
        const size_t end = std::min(from.size(), at + 1 + random() % 20);
        out.insert(out.end(), from.begin() + static_cast<ptrdiff_t>(at),
                   from.begin() + static_cast<ptrdiff_t>(end));
      } else {
        out.push_back(static_cast<int32_t>(random() % 1010));
      }
    }
    return out;
  };
  for (int step = 0; step < 4000; ++step) {
    const unsigned what = random() % 20;
    if (what < 3 || live.empty()) {
      const int most = random() % 10 ? 50 : 2000;
      const Tokens prompt = text_like(static_cast<int>(random() % most));
      drafter.begin(next_id, random() % 2, prompt);
      old.push_back(prompt.empty() ? Tokens{1} : prompt);
      if (old.size() > 50) old.erase(old.begin());
      live[next_id++] = prompt;
    } else if (what == 3) {
      drafter.end(live.begin()->first);
      live.erase(live.begin());
    } else {
      auto at = live.begin();
      std::advance(at, random() % live.size());
      const int32_t root = at->second.empty() ? 5 : at->second.back();
      const int max_depth = 1 + static_cast<int>(random() % 10),
                max_nodes = 1 + static_cast<int>(random() % 63);
      const float min_p = random() % 2 ? 0.0f : 0.05f;
      const DraftTree tree = draft(drafter, at->first, root, max_depth, max_nodes, min_p);
      check_tree(tree, config, max_depth, max_nodes, min_p);
      trees.emplace_back(tree.token, tree.token + tree.size);
      const int hits =
          tree.num_drafts() > 0 ? static_cast<int>(random() % (tree.depth[tree.size - 1] + 1)) : 0;
      const bool verified_first = random() % 2;
      if (verified_first) drafter.verified(at->first, tree, hits);
      const Tokens more = text_like(hits + 1);
      drafter.commit(at->first, more);
      if (!verified_first) drafter.verified(at->first, tree, hits);
      at->second.insert(at->second.end(), more.begin(), more.end());
    }
    if (random() % 16 == 0) drafter.catch_up(1 + random() % 100);
    const LookaheadStats now = drafter.stats();
    EXPECT_LE(now.peak_bytes, memory);
    EXPECT_LE(now.bytes, memory);
  }
  for (const auto& [id, text] : live) drafter.end(id);
  drafter.catch_up(0);
  *stats = drafter.stats();
  EXPECT_EQ(stats->local_bytes, 0u);
  EXPECT_EQ(stats->waiting_tokens, 0);
  return trees;
}

TEST(Lookahead, SurvivesRandomTraffic) {
  for (int mode : {0, 1, 2}) {
    for (size_t memory : {size_t{1} << 20, size_t{64} << 20}) {
      for (bool shared : {true, false}) {
        for (bool small : {true, false}) {
          LookaheadConfig config = settings(mode);
          config.global_cache_switch = shared;
          config.cell_max_size = 4 + 8 * mode;
          config.top_k_in_cell = 6;
          config.top_k = 2;
          LookaheadPace pace;
          if (small) pace = {40, 100, 3, 300, 50, 5000};
          LookaheadStats first, second;
          const auto trees = run_traffic(config, memory, 17 + mode, pace, &first);
          EXPECT_EQ(trees, run_traffic(config, memory, 17 + mode, pace, &second)) << "same calls, same trees";
          EXPECT_EQ(first.bytes, second.bytes);
          EXPECT_GT(first.learned_tokens, 0);
          EXPECT_EQ(first.unlinked_tokens, 0);
          EXPECT_EQ(first.skipped_tokens > 0, small || memory == size_t{1} << 20) << first.skipped_tokens;
        }
      }
    }
  }
}

// Trees grow side by side, on several threads too: what a sequence drafts does not depend on who drafts with
// it, nor where.
TEST(Lookahead, DraftsOfABatchAreThoseOfEachAlone) {
  for (const int mode : {0, 1, 2}) {
    LookaheadDrafter drafter(settings(mode), kMemory);
    std::mt19937 random(8);
    Tokens pattern(300);
    for (int32_t& token : pattern) token = static_cast<int32_t>(4 + random() % 40);
    std::vector<Tokens> texts;
    for (uint64_t id = 0; id < 37; ++id) {
      Tokens text;
      while (text.size() < 10 * id) {
        const size_t at = random() % 280;
        for (size_t i = 0; i < 3 + random() % 15; ++i) text.push_back(pattern[at + i]);
        if (random() % 20 == 0) text.push_back(kEos);
      }
      text.push_back(pattern[random() % 300]);
      drafter.begin(id, id % 3, text);
      texts.push_back(text);
    }
    drafter.catch_up(0);
    std::vector<DraftTree> alone(texts.size()), together(texts.size());
    std::vector<DraftRequest> requests;
    int nodes = 0;
    for (size_t id = 0; id < texts.size(); ++id) {
      const int max_depth = 1 + static_cast<int>(id % 9), max_nodes = 1 + static_cast<int>(id * 7 % 20);
      alone[id] = draft(drafter, id, texts[id].back(), max_depth, max_nodes);
      nodes += alone[id].num_drafts();
      requests.push_back({id, max_depth, max_nodes, 0.0f, &together[id]});
    }
    EXPECT_GT(nodes, 50) << mode;
    for (int round = 0; round < 20; ++round) {
      if (round == 1) drafter.use_other_cores();
      for (size_t id = 0; id < texts.size(); ++id) together[id].reset(texts[id].back());
      drafter.draft(requests);
      for (size_t id = 0; id < texts.size(); ++id) {
        ASSERT_EQ(together[id].size, alone[id].size) << mode << ", " << id << ", round " << round;
        for (int i = 0; i < alone[id].size; ++i) {
          ASSERT_EQ(together[id].token[i], alone[id].token[i]);
          ASSERT_EQ(together[id].parent[i], alone[id].parent[i]);
          ASSERT_EQ(together[id].p[i], alone[id].p[i]);
        }
      }
    }
  }
}

TEST(Lookahead, EstimatesAreThoseThatComeTrue) {
  LookaheadConfig config = settings(1);
  config.token_paths_top_k = 2;
  LookaheadDrafter drafter(config, kMemory);
  std::mt19937 random(23);
  // A text where each pair of tokens is followed by one of two, three times out of four by the first.
  drafter.begin(1, 0, Tokens{});
  Tokens text{10, 11};
  auto next = [&] {
    const int a = text[text.size() - 2], b = text.back();
    const int base = (a * 31 + b * 17) % 40;
    return 10 + (random() % 4 ? base : (base + 7) % 40);
  };
  double expected = 0, seen = 0, nodes = 0;
  drafter.commit(1, text);
  for (int step = 0; step < 30000; ++step) {
    const DraftTree tree = draft(drafter, 1, text.back(), 1);
    const int32_t token = next();
    if (step > 5000) {
      for (int i = 1; i < tree.size; ++i) {
        expected += tree.p[i];
        seen += tree.token[i] == token;
        ++nodes;
      }
    }
    text.push_back(token);
    drafter.commit(1, Tokens{token});
  }
  ASSERT_GT(nodes, 30000);
  EXPECT_NEAR(expected / nodes, seen / nodes, 0.02);
  EXPECT_GT(seen, 0.9 * 25000);  // both that can follow are drafted
}

TEST(Lookahead, RefusesWrongSettings) {
  struct Case {
    const char* key;
    void (*set)(LookaheadConfig&);
  };
  const Case cases[] = {
      {"cache_mode = 3", [](LookaheadConfig& c) { c.cache_mode = 3; }},
      {"copy_length = 0", [](LookaheadConfig& c) { c.copy_length = 0; }},
      {"copy_length = 64", [](LookaheadConfig& c) { c.copy_length = 64; }},
      {"match_length = 0", [](LookaheadConfig& c) { c.match_length = 0; }},
      {"turbo_match_length = 17", [](LookaheadConfig& c) { c.turbo_match_length = 17; }},
      {"min_match_length = 8", [](LookaheadConfig& c) { c.min_match_length = 8; }},
      {"cell_max_size = 65", [](LookaheadConfig& c) { c.cell_max_size = 65; }},
      {"voc_size = 0", [](LookaheadConfig& c) { c.voc_size = 0; }},
      {"eos_token_id = 1000",
       [](LookaheadConfig& c) {
         c.eos_token_id = {2, 1000};
       }},
      {"top_k = 0", [](LookaheadConfig& c) { c.top_k = 0; }},
      {"threshold = -1", [](LookaheadConfig& c) { c.threshold = -1; }},
      {"decay = 1", [](LookaheadConfig& c) { c.decay = 1; }},
      {"log_interval = 0", [](LookaheadConfig& c) { c.log_interval = 0; }},
      {"target_parallelism = 0", [](LookaheadConfig& c) { c.target_parallelism = 0; }},
      {"top_k_in_cell = 0", [](LookaheadConfig& c) { c.top_k_in_cell = 0; }},
      {"token_paths_top_k = 9", [](LookaheadConfig& c) { c.token_paths_top_k = 9; }},
      {"start_freq = 0", [](LookaheadConfig& c) { c.start_freq = 0; }},
      {"num_threads = 0", [](LookaheadConfig& c) { c.num_threads = 0; }},
  };
  for (const Case& wrong : cases) {
    LookaheadConfig config = settings(2);
    wrong.set(config);
    try {
      LookaheadDrafter drafter(config, kMemory);
      ADD_FAILURE() << wrong.key;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(e.what()).find(wrong.key), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("allowed"), std::string::npos) << e.what();
    }
  }
  EXPECT_THROW(LookaheadDrafter(settings(2), 1000), Error);
  EXPECT_NO_THROW(LookaheadDrafter(settings(2), size_t{1} << 20));
}

TEST(MakeDrafter, MakesWhatIsAskedFor) {
  SpeculationConfig config;
  EXPECT_EQ(make_drafter(config), nullptr);
  config.method = SpeculationMethod::kLookahead;
  config.lookahead = settings(2);
  config.memory_bytes = kMemory;
  EXPECT_NE(dynamic_cast<LookaheadDrafter*>(make_drafter(config).get()), nullptr);
  config.method = SpeculationMethod::kNgram;
  EXPECT_THROW(make_drafter(config), Error);
  config.ngram_max = 3;
  config.num_speculative_tokens = 5;
  EXPECT_NE(make_drafter(config), nullptr);
}

}  // namespace
}  // namespace taco
