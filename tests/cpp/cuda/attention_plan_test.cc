// The plan of a step's attention, which needs no device.
#include "backend/cuda/attention/plan.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <tuple>

namespace taco::cuda {
namespace {

struct Step {
  explicit Step(const std::vector<std::pair<int, int>>& seqs, bool tree = false) {
    for (auto [q, kv] : seqs) {
      q_start.push_back(q_start.back() + q);
      kv_len.push_back(kv);
    }
    shape = {.rows = q_start.back(),
             .num_seqs = static_cast<int>(seqs.size()),
             .q_start = q_start.data(),
             .kv_len = kv_len.data(),
             .tree = tree};
    for (auto [q, kv] : seqs) shape.max_q_len = std::max(shape.max_q_len, q);
  }
  std::vector<int32_t> q_start{0}, kv_len;
  StepShape shape;
};

constexpr PlanKey kLlama{
    .num_heads = 32, .num_kv_heads = 8, .head_dim = 128, .window = 0, .plain = false, .sm90 = false};
constexpr PlanLimits kLimits{.decode_rows = 8,
                             .decode_slots = 264,
                             .few_rows = 32,
                             .few_slots = 264,
                             .tile_rows = 128,
                             .num_sms = 132,
                             .batch_invariant = false};

// Every packed row of every sequence is in one tile whose splits cover its keys in order, once.
void expect_complete(const Step& step, const PlanKey& key, const Plan& plan) {
  const int group = key.num_heads / key.num_kv_heads;
  std::map<int, std::vector<char>> rows;
  for (int s = 0; s < step.shape.num_seqs; ++s) {
    int q_len = step.q_start[s + 1] - step.q_start[s];
    if (q_len > 0) rows[s].assign(q_len * group, 0);
  }
  std::map<int, std::pair<int64_t, int64_t>> parts;  // semaphore: rows of partial results
  for (const WorkList* list : {&plan.decode, &plan.tile, &plan.plain}) {
    std::map<std::pair<int, int>, std::vector<WorkItem>> tiles;
    for (const WorkItem& item : list->items) tiles[{item.seq, item.first_row}].push_back(item);
    for (auto& [place, items] : tiles) {
      std::sort(items.begin(), items.end(), [](const auto& a, const auto& b) { return a.split < b.split; });
      const WorkItem& first = items[0];
      const int q_len = step.q_start[first.seq + 1] - step.q_start[first.seq];
      ASSERT_EQ(first.q_len, q_len);
      ASSERT_EQ(first.row0, step.q_start[first.seq]);
      ASSERT_EQ(first.kv_len, step.kv_len[first.seq]);
      for (int r = first.first_row; r < first.first_row + first.num_rows; ++r) {
        ASSERT_LT(r, static_cast<int>(rows[first.seq].size()));
        ASSERT_EQ(rows[first.seq][r]++, 0);
      }
      const int oldest = first.kv_len - q_len, last = (first.first_row + first.num_rows - 1) / group;
      const int low = oldest + (step.shape.tree ? 0 : first.first_row / group);
      if (key.window > 0) {
        ASSERT_LE(first.kv_begin, std::max(0, low - key.window + 1));
      } else {
        ASSERT_EQ(first.kv_begin, 0);
      }
      ASSERT_EQ(items.back().kv_end, step.shape.tree ? first.kv_len : std::max(0, oldest + last + 1));
      for (size_t i = 0; i < items.size(); ++i) {
        ASSERT_EQ(items[i].split, static_cast<int>(i));
        ASSERT_EQ(items[i].num_splits, static_cast<int>(items.size()));
        ASSERT_EQ(items[i].num_rows, first.num_rows);
        if (i > 0) {
          ASSERT_EQ(items[i].kv_begin, items[i - 1].kv_end);
          ASSERT_EQ(items[i].kv_begin % kSplitStep, 0);
          ASSERT_GT(items[i].kv_end, items[i].kv_begin);
        }
      }
      if (items.size() > 1) {
        const int64_t size = static_cast<int64_t>(items.size()) * key.num_kv_heads * first.num_rows;
        ASSERT_TRUE(parts.insert({first.semaphore, {first.part_row, first.part_row + size}}).second);
      }
    }
    if (list->header.chunked) {
      ASSERT_EQ(list->header.chunk_start[0], 0);
      for (int c = 0; c < list->header.num_chunks; ++c) {
        int count = list->header.chunk_start[c + 1] - list->header.chunk_start[c];
        ASSERT_GT(count, 0);
        ASSERT_LE(count, kMaxChunkItems);
      }
      ASSERT_EQ(list->header.chunk_start[list->header.num_chunks], static_cast<int>(list->items.size()));
    } else {
      ASSERT_EQ(list->header.num_chunks, static_cast<int>(list->items.size()));
    }
  }
  for (const PrefillSm90Item& item : plan.sm90) {
    const int q_len = step.q_start[item.seq + 1] - step.q_start[item.seq];
    for (int j = item.tile * kPrefillSm90Rows; j < std::min(q_len, (item.tile + 1) * kPrefillSm90Rows); ++j)
      for (int g = 0; g < group; ++g) ASSERT_EQ(rows[item.seq][j * group + g]++, 0);
  }
  for (auto& [seq, seen] : rows)
    for (char count : seen) ASSERT_EQ(count, 1) << "sequence " << seq;
  int64_t at = 0;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (auto& [semaphore, range] : parts) {
    ASSERT_LT(semaphore, plan.semaphores);
    ranges.push_back(range);
  }
  std::sort(ranges.begin(), ranges.end());
  for (auto [begin, end] : ranges) {
    ASSERT_GE(begin, at);
    at = end;
  }
  ASSERT_LE(at, plan.part_rows);
}

TEST(AttentionPlan, CoversEveryRowAndKeyOnce) {
  std::mt19937 rng(3);
  Plan plan;
  for (int round = 0; round < 400; ++round) {
    const bool tree = round % 5 == 4;
    std::vector<std::pair<int, int>> seqs;
    const int count = 1 + rng() % (round % 7 == 0 ? 400 : 20);
    for (int i = 0; i < count; ++i) {
      int q = rng() % 4 == 0 ? (tree ? rng() % 65 : rng() % 700) : rng() % 4 == 0 ? rng() % 6 : 1;
      seqs.push_back(
          {q, q + (rng() % 3 == 0 ? 0 : static_cast<int>(rng() % (round % 3 == 0 ? 20000 : 900)))});
    }
    Step step(seqs, tree);
    PlanKey key = kLlama;
    if (round % 3 == 1)
      key = {.num_heads = 71, .num_kv_heads = 1, .head_dim = 64, .window = 0, .plain = false, .sm90 = false};
    if (round % 3 == 2)
      key = {.num_heads = 20, .num_kv_heads = 20, .head_dim = 80, .window = 0, .plain = false, .sm90 = false};
    key.window = round % 4 == 1 ? static_cast<int>(1 + rng() % 3000) : 0;
    key.sm90 = !tree && rng() % 2 == 0;
    key.plain = rng() % 8 == 0;
    PlanLimits limits = kLimits;
    limits.batch_invariant = rng() % 3 == 0;
    make_plan(step.shape, key, limits, plan);
    expect_complete(step, key, plan);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
}

// Memory that is reserved once for partial results is enough: it moves for no usual step.
TEST(AttentionPlan, PartialResultsHaveRoom) {
  std::mt19937 rng(11);
  Plan plan;
  double most = 0;  // of the room
  for (int round = 0; round < 3000; ++round) {
    const bool tree = rng() % 2 == 0, prompts = !tree && rng() % 3 == 0;
    const int count = 1 + static_cast<int>(rng() % (round % 3 == 0 ? 8 : 256));
    const int longest = 1 + static_cast<int>(rng() % 12);
    const unsigned context = 1u << rng() % 15;
    std::vector<std::pair<int, int>> seqs;
    for (int i = 0; i < count; ++i) {
      const int q = 1 + static_cast<int>(rng() % (prompts && rng() % 4 == 0 ? 500 : longest));
      seqs.push_back({q, q + static_cast<int>(rng() % context)});
    }
    PlanKey key = kLlama;
    if (round % 4 == 1)
      key = {.num_heads = 71, .num_kv_heads = 1, .head_dim = 64, .window = 0, .plain = false, .sm90 = false};
    if (round % 4 == 2)
      key = {.num_heads = 20, .num_kv_heads = 20, .head_dim = 80, .window = 0, .plain = false, .sm90 = false};
    key.window = round % 5 == 0 ? 1000 : 0;
    key.sm90 = !tree && rng() % 2 == 0;
    Step step(seqs, tree);
    make_plan(step.shape, key, kLimits, plan);
    const int chunks = kLimits.decode_slots / key.num_kv_heads;
    if (plan.decode.items.size() > static_cast<size_t>(kMaxChunkItems * chunks)) continue;
    const int64_t room = usual_part_rows(key, kLimits);
    ASSERT_LE(plan.part_rows, room) << "round " << round << ", " << count << " sequences";
    most = std::max(most, static_cast<double>(plan.part_rows) / static_cast<double>(room));
  }
  EXPECT_GT(most, 0.25);  // nor is it far too much
}

// Decoding fills the device's blocks once, evenly.
TEST(AttentionPlan, DecodingIsOneEvenWave) {
  Plan plan;
  for (auto [batch, context] : {std::pair{1, 600},
                                {1, 1024},
                                {1, 8192},
                                {8, 600},
                                {32, 1024},
                                {32, 8192},
                                {100, 777},
                                {128, 1024},
                                {128, 8192},
                                {256, 600}}) {
    Step step(std::vector<std::pair<int, int>>(batch, {1, context}));
    make_plan(step.shape, kLlama, kLimits, plan);
    expect_complete(step, kLlama, plan);
    const WorkList& list = plan.decode;
    ASSERT_TRUE(list.header.chunked);
    EXPECT_LE(list.header.num_chunks * kLlama.num_kv_heads, kLimits.decode_slots);
    int longest = 0;
    for (int c = 0; c < list.header.num_chunks; ++c) {
      int keys = 0;
      for (int i = list.header.chunk_start[c]; i < list.header.chunk_start[c + 1]; ++i)
        keys += list.items[i].kv_end - list.items[i].kv_begin;
      longest = std::max(longest, keys);
    }
    EXPECT_LE(longest, batch * context / 33 * 1.08 + 96) << batch << " x " << context;
  }
}

// Where every sequence has few rows, the longest alone decides on the kernel (graphs hold it); beside a long
// chunk drafts still do not go to the kernels of many rows.
TEST(AttentionPlan, DraftsGoToTheDecodeKernel) {
  PlanKey key = kLlama;
  key.sm90 = true;
  Plan plan;
  auto rows = [&](const std::vector<std::pair<int, int>>& seqs) {
    Step step(seqs);
    make_plan(step.shape, key, kLimits, plan);
    expect_complete(step, key, plan);
    return plan.decode_rows;
  };
  EXPECT_EQ(rows({{1, 700}, {1, 20}}), 8);
  for (int longest : {2, 5, 16, 64}) {
    EXPECT_EQ(rows({{longest, 700}, {1, 20}, {1, 5000}}), 32) << longest;
    EXPECT_TRUE(plan.tile.items.empty() && plan.sm90.empty()) << longest;
  }
  EXPECT_EQ(rows({{700, 700}, {1, 20}, {2, 20}}), 8);
  EXPECT_EQ(rows({{700, 700}, {1, 20}, {5, 4000}}), 32);
  EXPECT_FALSE(plan.sm90.empty());
  for (const PrefillSm90Item& item : plan.sm90) EXPECT_EQ(item.seq, 0);
}

// In the batch-invariant mode the places of a sequence's splits do not depend on the others.
TEST(AttentionPlan, FixedSplitsStandAtFixedPlaces) {
  PlanLimits limits = kLimits;
  limits.batch_invariant = true;
  Plan plan;
  Step step({{1, 5000}, {3, 600}, {64, 1024}, {1, 7}});
  make_plan(step.shape, kLlama, limits, plan);
  expect_complete(step, kLlama, plan);
  EXPECT_TRUE(plan.tile.items.empty());
  for (const WorkItem& item : plan.decode.items) {
    EXPECT_EQ(item.kv_begin % kFixedSplit, 0);
    EXPECT_EQ(item.kv_begin / kFixedSplit, item.split);
    EXPECT_LE(item.kv_end, item.kv_begin + kFixedSplit);
  }
}

}  // namespace
}  // namespace taco::cuda
