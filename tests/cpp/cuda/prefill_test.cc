// The Hopper prefill kernel against the float64 reference.
#include "backend/cuda/attention/prefill_sm90.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <thread>

#include "backend/cpu/ref/ref.h"
#include "cuda_test_util.h"

namespace taco::cuda::test {
namespace {

struct Sequence {
  int q_len, kv_len;
};

struct Case {
  const char* name;
  int head_dim, block_size, num_heads, num_kv_heads;
  DType dtype;
  std::vector<Sequence> sequences;
  int window = 0;
  float softcap = 0;
  float q_scale = 1;
};

std::ostream& operator<<(std::ostream& os, const Case& c) { return os << c.name; }

struct Problem {
  explicit Problem(const Case& c, uint64_t seed = 1) : c(c) {
    std::mt19937 rng(seed);
    const int num_seqs = static_cast<int>(c.sequences.size()), slack = 7;
    q_start.push_back(0);
    int64_t pages = 0;
    for (const Sequence& s : c.sequences) {
      q_start.push_back(q_start.back() + s.q_len);
      kv_len.push_back(s.kv_len);
      max_blocks = std::max<int64_t>(max_blocks, (s.kv_len + c.block_size - 1) / c.block_size + 2);
      pages += (s.kv_len + c.block_size - 1) / c.block_size;
    }
    num_blocks = pages + slack;
    q_stride = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
    out_stride = c.num_heads * c.head_dim + 8;
    std::vector<int32_t> free(num_blocks);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), rng);
    tables.assign(num_seqs * max_blocks, 0x7ffffff0);  // a place that faults where it is read
    const int64_t panel = int64_t{c.block_size} * c.head_dim;
    cache.assign(num_blocks * 2 * c.num_kv_heads * panel, std::numeric_limits<float>::quiet_NaN());
    host_cache = cache;
    KvCacheView view = host_view();
    for (int s = 0; s < num_seqs; ++s) {
      for (int t = 0; t < c.sequences[s].kv_len; ++t) {
        if (t % c.block_size == 0) {
          tables[s * max_blocks + t / c.block_size] = free.back();
          free.pop_back();
        }
        int64_t block = tables[s * max_blocks + t / c.block_size];
        for (int which = 0; which < 2; ++which) {
          for (int h = 0; h < c.num_kv_heads; ++h) {
            std::vector<float> x = rounded(random_floats(c.head_dim, rng()), c.dtype);
            for (int d = 0; d < c.head_dim; ++d) {
              cache[((block * 2 + which) * c.num_kv_heads + h) * panel + t % c.block_size * c.head_dim + d] =
                  x[d];
              cpu::ref::kv_store(view, block, which, h, t % c.block_size, d, x[d]);
            }
          }
        }
      }
    }
    q = rounded(random_floats(q_start.back() * q_stride, rng(), c.q_scale), c.dtype);
  }

  KvCacheView host_view() {
    return {host_cache.data(), DType::kF32, num_blocks, c.block_size, c.num_kv_heads, c.head_dim};
  }

  AttentionParams params() {
    AttentionParams p{};
    p.q_stride = q_stride;
    p.num_heads = c.num_heads;
    p.max_blocks = max_blocks;
    p.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    p.softcap = c.softcap;
    p.window = c.window;
    return p;
  }

  // [rows, heads * dim]
  std::vector<float> reference() {
    std::vector<float> out(q_start.back() * int64_t{c.num_heads} * c.head_dim);
    std::vector<std::thread> threads;
    for (size_t s = 0; s < c.sequences.size(); ++s) {
      threads.emplace_back([&, s] {
        AttentionParams p = params();
        p.q = q.data();
        p.cache = host_view();
        p.num_seqs = 1;
        p.q_start = q_start.data() + s;
        p.kv_len = kv_len.data() + s;
        p.block_tables = tables.data() + s * max_blocks;
        p.out = out.data();
        p.out_stride = int64_t{c.num_heads} * c.head_dim;
        cpu::ref::attention(p);
      });
    }
    for (std::thread& t : threads) t.join();
    return out;
  }

  // The rows of sequences [first, last), as a step of their own; everything of a row, its padding too.
  std::vector<float> device(int first, int last) {
    Context& ctx = backend().context();
    std::vector<int32_t> starts(q_start.begin() + first, q_start.begin() + last + 1);
    const int32_t row0 = starts[0];
    for (int32_t& start : starts) start -= row0;
    std::vector<PrefillSm90Item> items;
    for (int s = first; s < last; ++s)
      for (int tile = 0; tile * kPrefillSm90Rows < c.sequences[s].q_len; ++tile)
        items.push_back({s - first, tile});
    DeviceBuffer d_q =
        to_device({q.begin() + row0 * q_stride, q.begin() + q_start[last] * q_stride}, c.dtype);
    DeviceBuffer d_cache = to_device(cache, c.dtype), d_start(starts);
    DeviceBuffer d_kv(std::vector<int32_t>(kv_len.begin() + first, kv_len.begin() + last));
    DeviceBuffer d_tables(std::vector<int32_t>(tables.begin() + first * max_blocks, tables.end()));
    DeviceBuffer d_items(items), d_count(std::vector<int32_t>{static_cast<int32_t>(items.size())});
    DeviceBuffer d_out(starts.back() * out_stride * 2);
    AttentionParams p = params();
    p.q = d_q.as();
    p.cache = {d_cache.as(), c.dtype, num_blocks, c.block_size, c.num_kv_heads, c.head_dim};
    p.num_seqs = last - first;
    p.q_start = d_start.as<int32_t>();
    p.kv_len = d_kv.as<int32_t>();
    p.block_tables = d_tables.as<int32_t>();
    p.out = d_out.as();
    p.out_stride = out_stride;
    p.dtype = c.dtype;
    EXPECT_TRUE(takes_prefill_sm90(ctx, p));
    run_prefill_sm90(
        ctx, p,
        {d_items.as<PrefillSm90Item>(), d_count.as<int32_t>(), static_cast<int64_t>(items.size()) + 5});
    return from_device(d_out, c.dtype);
  }

  // Rows without their padding, which must be as it was.
  std::vector<float> dense(const std::vector<float>& strided) {
    const int64_t width = int64_t{c.num_heads} * c.head_dim;
    std::vector<float> out;
    for (size_t i = 0; i < strided.size(); ++i) {
      if (static_cast<int64_t>(i) % out_stride < width) {
        out.push_back(strided[i]);
      } else {
        EXPECT_TRUE(std::isnan(strided[i])) << "written behind a row";
      }
    }
    return out;
  }

  Case c;
  std::vector<int32_t> q_start, kv_len, tables;
  int64_t max_blocks = 0, num_blocks = 0, q_stride = 0, out_stride = 0;
  std::vector<float> cache, host_cache, q;
};

bool hopper() { return has_device() && backend().context().hopper(); }

class Prefill : public ::testing::TestWithParam<Case> {};

TEST_P(Prefill, MatchesReference) {
  if (!hopper()) GTEST_SKIP() << "no Hopper device";
  Problem problem(GetParam());
  std::vector<float> out = problem.dense(problem.device(0, static_cast<int>(problem.c.sequences.size())));
  std::vector<float> reference = problem.reference();
  EXPECT_LE(relative_error(out, reference), tolerance(problem.c.dtype));
  // Each sequence too: a small wrong one would not show in the whole.
  const int64_t width = int64_t{problem.c.num_heads} * problem.c.head_dim;
  for (size_t s = 0; s < problem.c.sequences.size(); ++s) {
    auto rows = [&](const std::vector<float>& x) {
      return std::vector<float>(x.begin() + problem.q_start[s] * width,
                                x.begin() + problem.q_start[s + 1] * width);
    };
    EXPECT_LE(relative_error(rows(out), rows(reference)), tolerance(problem.c.dtype)) << "sequence " << s;
  }
}

const std::vector<Sequence> kRagged = {{1, 1}, {17, 17}, {127, 127}, {128, 128}, {129, 129}, {300, 300}};
const std::vector<Sequence> kContinued = {{64, 65},   {1, 500},   {130, 391},
                                          {128, 256}, {33, 1000}, {200, 200 + 512}};
const std::vector<Sequence> kLong = {{1000, 1000}, {40, 40}, {257, 1281}};

// More items than thread blocks: each block takes several.
std::vector<Sequence> many(uint64_t seed) {
  std::mt19937 rng(seed);
  std::vector<Sequence> out;
  for (int i = 0; i < 24; ++i) {
    int q_len = 1 + static_cast<int>(rng() % (i % 4 == 0 ? 200 : 60));
    out.push_back({q_len, q_len + static_cast<int>(i % 3 == 0 ? 0 : rng() % 150)});
  }
  return out;
}

std::vector<Case> cases() {
  constexpr DType kB = DType::kBF16, kH = DType::kF16;
  return {
      {"Dim128Block16", 128, 16, 8, 2, kB, kRagged},
      {"Dim128Block8", 128, 8, 4, 4, kB, kRagged},
      {"Dim128Block32", 128, 32, 8, 1, kB, kRagged},
      {"Dim128Half", 128, 16, 4, 1, kH, kRagged},
      {"Dim128Continued", 128, 16, 4, 1, kB, kContinued},
      {"Dim128ContinuedBlock8Half", 128, 8, 4, 1, kH, kContinued},
      {"Dim128ContinuedBlock32", 128, 32, 2, 2, kB, kContinued},
      {"Dim128Long", 128, 16, 4, 2, kB, kLong},
      {"Dim128LargeScores", 128, 16, 4, 1, kB, kContinued, 0, 0, 20},
      {"Dim128Window", 128, 16, 4, 1, kB, kLong, 100},
      {"Dim128Window1", 128, 16, 4, 1, kB, kContinued, 1},
      {"Dim128Window128", 128, 32, 4, 1, kH, kContinued, 128},
      {"Dim128Softcap", 128, 16, 4, 1, kB, kContinued, 0, 20, 8},
      {"Dim128SoftcapWindow", 128, 16, 4, 2, kH, kLong, 200, 30, 8},
      {"Dim128Many", 128, 16, 16, 2, kB, many(1)},
      {"Dim128ManyHalfBlock8", 128, 8, 15, 3, kH, many(2)},
      {"Dim128ManyWindow", 128, 32, 16, 4, kB, many(3), 60},
      {"Dim64Many", 64, 16, 15, 3, kB, many(4)},
      {"Dim256Many", 256, 16, 12, 1, kB, many(5)},
      {"Dim64Block16", 64, 16, 8, 2, kB, kRagged},
      {"Dim64Block8", 64, 8, 3, 3, kH, kRagged},
      {"Dim64Block32", 64, 32, 8, 1, kB, kContinued},
      {"Dim64Long", 64, 16, 9, 3, kB, kLong},
      {"Dim64Window", 64, 16, 4, 1, kB, kLong, 70},
      {"Dim256Block16", 256, 16, 4, 2, kB, kRagged},
      {"Dim256Block8", 256, 8, 2, 2, kH, kContinued},
      {"Dim256Block32", 256, 32, 2, 1, kB, kContinued},
      {"Dim256Long", 256, 16, 2, 1, kB, kLong},
      {"Dim256WindowSoftcap", 256, 16, 2, 1, kB, kLong, 100, 50, 8},
      {"Dim64Softcap", 64, 16, 4, 1, kH, kContinued, 0, 50, 8},
  };
}

INSTANTIATE_TEST_SUITE_P(Cuda, Prefill, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return std::string(info.param.name); });

// Bitwise: a sequence alone, and among others; and the same step twice.
TEST(PrefillInvariance, RowsDoNotDependOnTheBatch) {
  if (!hopper()) GTEST_SKIP() << "no Hopper device";
  Problem problem({"", 128, 16, 8, 2, DType::kBF16, {{200, 700}, {1000, 1000}, {5, 133}}});
  std::vector<float> all = problem.device(0, 3), again = problem.device(0, 3);
  auto same = [](const float* a, const float* b, size_t n) {
    return std::memcmp(a, b, n * sizeof(float)) == 0;
  };
  EXPECT_TRUE(same(all.data(), again.data(), all.size()));
  for (int s = 0; s < 3; ++s) {
    std::vector<float> alone = problem.device(s, s + 1);
    EXPECT_TRUE(same(alone.data(), all.data() + problem.q_start[s] * problem.out_stride, alone.size())) << s;
  }
}

TEST(PrefillTakes, LeavesTheRestToOthers) {
  Context ctx;
  ctx.capability = 90;
  alignas(16) char memory[16];
  AttentionParams p{};
  p.q = p.out = memory;
  p.q_stride = p.out_stride = 1024;
  p.cache = {memory, DType::kBF16, 10, 16, 2, 128};
  p.dtype = DType::kBF16;
  p.scale = 1;
  EXPECT_TRUE(takes_prefill_sm90(ctx, p));
  auto refuses = [&](auto change) {
    AttentionParams other = p;
    change(other);
    return !takes_prefill_sm90(ctx, other);
  };
  float slopes = 0;
  uint64_t mask = 0;
  EXPECT_TRUE(refuses([&](AttentionParams& x) { x.alibi_slopes = &slopes; }));
  EXPECT_TRUE(refuses([&](AttentionParams& x) { x.sinks = &slopes; }));
  EXPECT_TRUE(refuses([&](AttentionParams& x) { x.tree_mask = &mask; }));
  EXPECT_TRUE(refuses([&](AttentionParams& x) { x.cache.head_dim = 80; }));
  EXPECT_TRUE(refuses([&](AttentionParams& x) { x.cache.dtype = DType::kF16; }));
  EXPECT_TRUE(refuses([&](AttentionParams& x) { x.cache.block_size = 64; }));
  EXPECT_TRUE(refuses([&](AttentionParams& x) { x.q_stride = 1028; }));
  ctx.capability = 80;
  EXPECT_FALSE(takes_prefill_sm90(ctx, p));
}

}  // namespace
}  // namespace taco::cuda::test
