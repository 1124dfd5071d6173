#include <cstring>

#include "attention_case.h"
#include "backend/cpu/activations.h"
#include "base/error.h"
#include "cpu_levels.h"

namespace taco::cpu {
namespace {

ThreadPool& pool(int threads) {
  static ThreadPool one(1), three(3);
  return threads == 1 ? one : three;
}

std::vector<float> run(const AttentionCase& c, int threads) {
  std::vector<float> out;
  Attention attention;
  attention.run(c.params(out), pool(threads));
  return out;
}

// Relative L2 error over all heads; NaN where the op wrote outside its columns or left something out.
double error(const AttentionCase& c, const std::vector<float>& out) {
  std::vector<float> expected;
  AttentionParams p = c.params(expected);
  ref::attention(p);
  double difference = 0, size = 0;
  const int64_t width = int64_t{p.num_heads} * p.cache.head_dim;
  for (int64_t r = 0; r < c.rows(); ++r) {
    for (int64_t i = 0; i < p.out_stride; ++i) {
      const float x = out[r * p.out_stride + i], y = expected[r * p.out_stride + i];
      if (i >= width) {
        if (!std::isnan(x)) return std::numeric_limits<double>::quiet_NaN();
        continue;
      }
      difference += (double{x} - y) * (double{x} - y);
      size += double{y} * y;
    }
  }
  return std::sqrt(difference / size);
}

double tolerance(const Level& level, DType dtype) {
  return level.bf16_products && dtype == DType::kBF16 ? 5e-3 : 1e-6;
}

std::string describe(const AttentionShape& s) {
  return str_cat(s.num_heads, "/", s.num_kv_heads, " heads of ", s.head_dim, ", blocks of ", s.block_size,
                 ", ", dtype_name(s.dtype), ", window ", s.window, ", softcap ", s.softcap,
                 s.alibi ? ", alibi" : "", s.sinks ? ", sinks" : "");
}

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

class AttentionTest : public testing::TestWithParam<Level> {};

TEST_P(AttentionTest, AgreesWithTheReferenceForEveryShape) {
  LevelGuard guard(GetParam());
  const std::vector<SequenceShape> ragged{{1, 1}, {1, 37}, {5, 5}, {1, 130}, {40, 171}, {3, 129}};
  uint32_t seed = 1;
  for (DType dtype : kTypes) {
    for (int block_size : {8, 16, 32}) {
      for (auto [heads, kv_heads] : {std::pair{9, 3}, std::pair{4, 4}, std::pair{7, 1}}) {
        for (int dim : {64, 80, 96, 128, 256, 16, 20, 33}) {
          if (heads != 9 && dim != 64 && dim != 20) continue;
          AttentionShape shape{heads, kv_heads, dim, block_size, dtype};
          AttentionCase c(shape, ragged, ++seed);
          EXPECT_LT(error(c, run(c, 1)), tolerance(GetParam(), dtype)) << describe(shape);
        }
      }
    }
  }
}

TEST_P(AttentionTest, AgreesWithTheReferenceForEveryRule) {
  LevelGuard guard(GetParam());
  const std::vector<SequenceShape> ragged{{1, 700}, {70, 640}, {33, 33}, {1, 5}, {2, 513}};
  uint32_t seed = 100;
  for (DType dtype : kTypes) {
    for (int dim : {64, 24}) {
      for (int window : {0, 1, 7, 128, 200, 600}) {
        for (int rule = 0; rule < 8; ++rule) {
          AttentionShape shape{
              6, 2, dim, 16, dtype, window, rule & 1 ? 5.0f : 0.0f, (rule & 2) != 0, (rule & 4) != 0};
          if (rule != 0 && window > 7 && window < 600) continue;
          AttentionCase c(shape, ragged, ++seed);
          EXPECT_LT(error(c, run(c, 3)), tolerance(GetParam(), dtype)) << describe(shape);
        }
      }
    }
  }
}

TEST_P(AttentionTest, AgreesWithTheReferenceForPatternsOfBlocks) {
  LevelGuard guard(GetParam());
  const std::vector<SequenceShape> ragged{{1, 700}, {40, 340}, {33, 33}, {1, 5}, {2, 513}};
  uint32_t seed = 300;
  for (DType dtype : kTypes) {
    for (KeyPattern pattern : {KeyPattern{64, 2, 8, 1},
                               {16, 1, 3, 0},
                               {5, 3, 7, 2},
                               {300, 1, 2, 1},
                               {1, 4, 1000, 1},
                               {128, 1, 5, 0}}) {
      for (int window : {0, 90}) {
        AttentionShape shape{6, 2, 16, 16, dtype, window};
        shape.alibi = window > 0;
        shape.pattern = pattern;
        AttentionCase c(shape, ragged, ++seed);
        EXPECT_LT(error(c, run(c, 3)), tolerance(GetParam(), dtype)) << describe(shape) << pattern.block;
        AttentionCase every({6, 2, 16, 16, dtype, window, 0, window > 0}, ragged, seed);
        EXPECT_GT(error(every, run(c, 1)), 1e-2) << "the pattern hid nothing";
      }
    }
  }
}

// Rows that are nodes of draft trees, under every rule that goes by positions.
TEST_P(AttentionTest, AgreesWithTheReferenceForTreesAndPatterns) {
  LevelGuard guard(GetParam());
  const std::vector<SequenceShape> ragged{{20, 700}, {1, 40}, {64, 130}, {7, 7}};
  uint32_t seed = 400;
  for (DType dtype : kTypes) {
    for (KeyPattern pattern : {KeyPattern{}, KeyPattern{16, 1, 3, 1}, KeyPattern{3, 2, 4, 0}}) {
      for (int window : {0, 10}) {
        AttentionShape shape{6, 2, 16, 16, dtype, window};
        shape.alibi = true;
        shape.pattern = pattern;
        AttentionCase c(shape, ragged, ++seed);
        std::mt19937 rng(seed);
        std::vector<uint64_t> masks;
        std::vector<int32_t> positions;
        for (const SequenceShape& s : ragged) {
          const size_t first = masks.size();
          for (int node = 0; node < s.q_len; ++node) {
            const int parent = node == 0 ? -1 : static_cast<int>(rng() % node);
            masks.push_back((parent < 0 ? 0 : masks[first + parent]) | uint64_t{1} << node);
            positions.push_back(parent < 0 ? s.kv_len - s.q_len : positions[first + parent] + 1);
          }
        }
        std::vector<float> out, expected;
        AttentionParams p = c.params(expected);
        p.tree_mask = masks.data();
        p.positions = positions.data();
        ref::attention(p);
        p.out = c.params(out).out;
        Attention attention;
        attention.run(p, pool(3));
        double difference = 0, size = 0;
        for (size_t i = 0; i < out.size(); ++i) {
          if (std::isnan(expected[i])) continue;  // between the rows
          difference += (double{out[i]} - expected[i]) * (double{out[i]} - expected[i]);
          size += double{expected[i]} * expected[i];
        }
        EXPECT_LT(std::sqrt(difference / size), tolerance(GetParam(), dtype))
            << describe(shape) << ", pattern of " << pattern.block;
      }
    }
  }
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  LevelGuard guard(GetParam());
  for (DType dtype : kTypes) {
    AttentionShape shape{4, 2, 64, 16, dtype};
    AttentionCase c(shape, {{1, 300}, {17, 200}}, 7, 100.0f);
    const std::vector<float> out = run(c, 1);
    std::vector<float> unused;
    const AttentionParams p = c.params(unused);
    for (int64_t r = 0; r < c.rows(); ++r)
      for (int64_t i = 0; i < int64_t{p.num_heads} * 64; ++i)
        ASSERT_TRUE(std::isfinite(out[r * p.out_stride + i])) << dtype_name(dtype);
    if (dtype != DType::kBF16 || !GetParam().bf16_products) {
      EXPECT_LT(error(c, out), 1e-4);
    }
  }
}

// The result of a row is the same bits however its sequence is cut into steps, whatever runs beside it and
// however many threads there are. (Where the products are bfloat16, so too.)
TEST_P(AttentionTest, ChunkingBatchAndThreadsDoNotChangeABit) {
  LevelGuard guard(GetParam());
  for (DType dtype : kTypes) {
    for (int dim : {64, 80, 20}) {
      for (int window : {0, 150}) {
        AttentionShape shape{6, 2, dim, 16, dtype, window};
        // One prefill of 1300 tokens, by one thread.
        AttentionCase whole(shape, {{1300, 1300}}, 42);
        const std::vector<float> expected = run(whole, 1);
        std::vector<float> unused;
        const AttentionParams all = whole.params(unused);
        auto check = [&](int64_t row, const float* out, const char* what) {
          ASSERT_EQ(0, std::memcmp(out, expected.data() + row * all.out_stride,
                                   sizeof(float) * shape.num_heads * shape.head_dim))
              << what << ", row " << row << ", " << describe(shape);
        };
        for (int threads : {1, 3}) {
          const std::vector<float> out = run(whole, threads);
          for (int64_t r = 0; r < 1300; ++r) check(r, out.data() + r * all.out_stride, "alone");
        }
        // Pieces of the same sequence, as if each were a sequence of a batch.
        const std::vector<std::pair<int, int>> pieces{{0, 1},      {1, 2},      {2, 70},    {70, 71},
                                                      {128, 256},  {255, 256},  {511, 512}, {512, 513},
                                                      {600, 1100}, {1299, 1300}};
        for (int threads : {1, 3}) {
          std::vector<int32_t> q_start{0}, kv_len, tables;
          std::vector<float> q;
          for (auto [begin, end] : pieces) {
            q.insert(q.end(), f32(all.q) + begin * all.q_stride, f32(all.q) + end * all.q_stride);
            q_start.push_back(q_start.back() + end - begin);
            kv_len.push_back(end);
            tables.insert(tables.end(), all.block_tables, all.block_tables + all.max_blocks);
          }
          std::vector<float> out(q_start.back() * all.out_stride);
          AttentionParams p = all;
          p.q = q.data();
          p.num_seqs = static_cast<int>(pieces.size());
          p.q_start = q_start.data();
          p.kv_len = kv_len.data();
          p.block_tables = tables.data();
          p.out = out.data();
          Attention attention;
          attention.run(p, pool(threads));
          for (size_t i = 0; i < pieces.size(); ++i)
            for (int t = pieces[i].first; t < pieces[i].second; ++t)
              check(t, out.data() + (q_start[i] + t - pieces[i].first) * all.out_stride, "in a batch");
          // Each alone: long contexts are then split over the threads.
          for (size_t i = 0; i < pieces.size(); ++i) {
            AttentionParams one = p;
            const int32_t start[2] = {0, q_start[i + 1] - q_start[i]};
            one.q = q.data() + q_start[i] * all.q_stride;
            one.num_seqs = 1;
            one.q_start = start;
            one.kv_len = &kv_len[i];
            std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
            attention.run(one, pool(threads));
            for (int t = pieces[i].first; t < pieces[i].second; ++t)
              check(t, out.data() + (t - pieces[i].first) * all.out_stride, "a chunk alone");
          }
        }
      }
    }
  }
}

TEST_P(AttentionTest, PlaceOfTheBlocksDoesNotMatter) {
  LevelGuard guard(GetParam());
  for (DType dtype : kTypes) {
    AttentionShape shape{4, 2, 64, 16, dtype};
    AttentionCase c(shape, {{1, 300}, {17, 200}, {60, 60}}, 9);
    const std::vector<float> before = run(c, 1);
    c.permute_blocks(5);
    const std::vector<float> after = run(c, 1);
    EXPECT_EQ(0, std::memcmp(before.data(), after.data(), before.size() * sizeof(float)));
  }
}

TEST_P(AttentionTest, NothingToDo) {
  LevelGuard guard(GetParam());
  AttentionCase c({4, 2, 64, 16, DType::kF32}, {{0, 30}, {0, 0}}, 3);
  EXPECT_TRUE(run(c, 3).empty());
}

TEST_P(AttentionTest, RefusesWhatTheCacheCannotHold) {
  LevelGuard guard(GetParam());
  AttentionCase c({4, 2, 64, 16, DType::kF32}, {{1, 30}}, 3);
  std::vector<float> out;
  AttentionParams p = c.params(out);
  Attention attention;
  p.cache.dtype = DType::kF8E4M3;
  EXPECT_THROW(attention.run(p, pool(1)), Error);
  p = c.params(out);
  p.max_blocks = 1;
  EXPECT_THROW(attention.run(p, pool(1)), Error);
}

INSTANTIATE_TEST_SUITE_P(Levels, AttentionTest, testing::ValuesIn(available_levels()), level_name);

}  // namespace
}  // namespace taco::cpu
