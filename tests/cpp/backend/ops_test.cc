// The ops that treat each row by itself, at every level, against the reference.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "backend/cpu/memory.h"
#include "backend/cpu/ref/ref.h"
#include "base/error.h"
#include "cpu_levels.h"

namespace taco::cpu {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

ThreadPool& pool() {
  static ThreadPool three(3);
  return three;
}

std::vector<float> noise(int64_t n, uint32_t seed, float size = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

void expect_near(const std::vector<float>& got, const std::vector<float>& expected, float tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << what << " wrote outside its rows, at " << i;
    } else {
      ASSERT_NEAR(got[i], expected[i], tolerance * (1.0f + std::abs(expected[i]))) << what << " at " << i;
    }
  }
}

class OpsTest : public testing::TestWithParam<Level> {};

TEST_P(OpsTest, Exp2IsGoodToTheLastBitsAndExactAtItsEnds) {
  std::vector<float> x;
  for (float v = -126.0f; v <= 126.0f; v += 0.00137f) x.push_back(v);
  std::vector<float> y = x;
  GetParam().kernels->exp2(y.data(), static_cast<int64_t>(y.size()));
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::abs(y[i] / std::exp2(static_cast<double>(x[i])) - 1));
  EXPECT_LT(worst, 2e-7);
  float ends[] = {0.0f, -0.0f, -200.0f, -std::numeric_limits<float>::infinity(), 1.0f, -3.4e38f, kNaN};
  GetParam().kernels->exp2(ends, 7);
  EXPECT_EQ(ends[0], 1.0f);
  EXPECT_EQ(ends[1], 1.0f);
  EXPECT_EQ(ends[2], 0.0f);
  EXPECT_EQ(ends[3], 0.0f);
  EXPECT_EQ(ends[4], 2.0f);
  EXPECT_EQ(ends[5], 0.0f);
  EXPECT_TRUE(std::isnan(ends[6]));
}

TEST_P(OpsTest, ScaleLogits) {
  LevelGuard guard(GetParam());
  for (float softcap : {0.0f, 1.0f, 30.0f}) {
    std::vector<float> logits;
    for (float x = -200.0f; x <= 200.0f; x += 0.37f) logits.push_back(x);
    std::vector<float> expected = logits;
    run_scale_logits({logits.data(), static_cast<int64_t>(logits.size()), 0.7f, softcap}, pool());
    ref::scale_logits({expected.data(), static_cast<int64_t>(expected.size()), 0.7f, softcap});
    // 1 - 2 / (e^2x + 1) is good to 3e-7 of 1, hence to as much of the cap.
    for (size_t i = 0; i < logits.size(); ++i)
      ASSERT_NEAR(logits[i], expected[i], 3e-7f * std::max(softcap, std::abs(expected[i])))
          << "softcap " << softcap;
  }
}

TEST(MaskLogits, HidesTheTokensInEveryRow) {
  std::vector<float> logits = noise(3 * 50, 1), expected = logits;
  const std::vector<int32_t> ids{0, 49, 7};
  run_mask_logits({logits.data(), 3, 50, ids.data(), 3});
  for (int row = 0; row < 3; ++row)
    for (int32_t id : ids) expected[row * 50 + id] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(logits, expected);
  const int32_t beyond = 50;
  EXPECT_THROW(run_mask_logits({logits.data(), 3, 50, &beyond, 1}), Error);
}

TEST_P(OpsTest, Norm) {
  LevelGuard guard(GetParam());
  uint32_t seed = 0;
  for (int64_t dim : {1, 7, 16, 64, 100, 576, 4096}) {
    for (int64_t rows : {1, 3, 70}) {
      for (int flags = 0; flags < 32; ++flags) {
        const bool with_residual = flags & 1, with_weight = flags & 2, with_bias = flags & 4,
                   in_place = flags & 8;
        const NormKind kind = flags & 16 ? NormKind::kLayer : NormKind::kRms;
        if (dim > 100 && rows > 3 && flags % 5 != 0) continue;
        const int64_t in_stride = dim + 3, out_stride = in_place ? in_stride : dim + 1;
        std::vector<float> in = noise(rows * in_stride, ++seed, 3.0f), residual = noise(rows * dim, ++seed);
        const std::vector<float> weight = noise(dim, ++seed), bias = noise(dim, ++seed);
        std::vector<float> out(rows * out_stride, kNaN);
        std::vector<float> in2 = in, residual2 = residual, out2 = out;
        auto params = [&](std::vector<float>& i, std::vector<float>& r, std::vector<float>& o) {
          NormParams p{};
          p.kind = kind;
          p.in = i.data();
          p.residual = with_residual ? r.data() : nullptr;
          p.residual_scale = 0.5f;
          p.weight = with_weight ? weight.data() : nullptr;
          p.bias = with_bias ? bias.data() : nullptr;
          p.weight_offset = flags % 3 == 0 ? 1.0f : 0.0f;
          p.eps = 1e-5f;
          p.rows = rows;
          p.dim = dim;
          p.in_stride = in_stride;
          p.out_stride = out_stride;
          p.out = in_place ? i.data() : o.data();
          return p;
        };
        run_norm(params(in, residual, out), pool());
        ref::norm(params(in2, residual2, out2));
        const std::string what = str_cat("dim ", dim, " rows ", rows, " flags ", flags);
        // A LayerNorm of one element divides nothing by almost nothing.
        const float tolerance = kind == NormKind::kLayer && dim < 8 ? 1e-4f : 4e-6f;
        expect_near(in_place ? in : out, in_place ? in2 : out2, tolerance, what);
        expect_near(residual, residual2, 1e-6f, what + " residual");
      }
    }
  }
}

TEST_P(OpsTest, NormOfGroups) {
  LevelGuard guard(GetParam());
  for (int64_t dim : {5, 64}) {
    for (int flags = 0; flags < 16; ++flags) {
      const int groups = 3;
      const int64_t rows = 9, stride = groups * dim + 7;
      std::vector<float> in = noise(rows * stride, 11 + flags), expected = in, out = in;
      const std::vector<float> weight = noise(groups * dim, 12), bias = noise(groups * dim, 13);
      NormParams p{};
      p.kind = flags & 1 ? NormKind::kLayer : NormKind::kRms;
      p.weight = flags & 2 ? weight.data() : nullptr;
      p.bias = flags & 4 ? bias.data() : nullptr;
      p.weight_offset = 1.0f;
      p.eps = 1e-5f;
      p.rows = rows;
      p.dim = dim;
      p.in_stride = p.out_stride = stride;
      p.groups = groups;
      p.group_weights = flags & 8;
      p.in = p.out = out.data();
      run_norm(p, pool());
      p.in = p.out = expected.data();
      ref::norm(p);
      // What lies behind the groups stays as it is, too.
      expect_near(out, expected, 4e-6f, str_cat("dim ", dim, " flags ", flags));
    }
  }
}

TEST_P(OpsTest, NormOfNoKindCopies) {
  LevelGuard guard(GetParam());
  std::vector<float> in = noise(40, 1), residual = noise(40, 2), out(40, kNaN);
  NormParams p{};
  p.kind = NormKind::kNone;
  p.in = in.data();
  p.residual = residual.data();
  p.rows = 4;
  p.dim = p.in_stride = p.out_stride = 10;
  p.out = out.data();
  run_norm(p, pool());
  EXPECT_EQ(out, residual);
}

TEST_P(OpsTest, NormOfARowDoesNotDependOnTheOthers) {
  LevelGuard guard(GetParam());
  const std::vector<float> in = noise(100 * 576, 5), weight = noise(576, 6);
  NormParams p{};
  p.kind = NormKind::kRms;
  p.in = in.data();
  p.weight = weight.data();
  p.eps = 1e-5f;
  p.rows = 100;
  p.dim = p.in_stride = p.out_stride = 576;
  std::vector<float> all(100 * 576), one(576);
  p.out = all.data();
  run_norm(p, pool());
  p.rows = 1;
  p.in = in.data() + 63 * 576;
  p.out = one.data();
  run_norm(p, pool());
  EXPECT_EQ(0, std::memcmp(one.data(), all.data() + 63 * 576, 576 * sizeof(float)));
}

TEST_P(OpsTest, RopeAndCache) {
  LevelGuard guard(GetParam());
  uint32_t seed = 50;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int block_size : {8, 16, 32}) {
      for (auto [dim, rotary] :
           {std::pair{64, 64}, {128, 128}, {80, 32}, {64, 0}, {33, 22}, {20, 20}, {256, 64}}) {
        for (int flags = 0; flags < 8; ++flags) {
          const bool interleaved = flags & 1, norms = flags & 2, scaled = flags & 4;
          const int heads = 5, kv_heads = 2, rows = 45, positions_count = 99;
          const int64_t width = int64_t{heads + 2 * kv_heads} * dim, stride = width + 2;
          const int64_t num_blocks = 64 / block_size + 3;
          std::vector<float> qkv = noise(rows * stride, ++seed), qkv2 = qkv;
          const std::vector<float> cos_sin = noise(positions_count * rotary, ++seed),
                                   q_norm = noise(dim, ++seed), k_norm = noise(dim, ++seed),
                                   q_scale = noise(positions_count, ++seed);
          std::mt19937 rng(seed);
          std::vector<int32_t> positions(rows);
          std::vector<int64_t> slots(num_blocks * block_size);
          for (int32_t& x : positions) x = static_cast<int32_t>(rng() % positions_count);
          for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int64_t>(i);
          std::shuffle(slots.begin(), slots.end(), rng);
          slots[3] = -1;
          const size_t bytes = num_blocks * 2 * kv_heads * block_size * dim * dtype_size(dtype);
          // Slots that nothing is written to must stay as they were, to the byte.
          std::vector<char> cache(bytes, 0x5a), cache2 = cache;
          auto params = [&](std::vector<float>& x, std::vector<char>& c) {
            RopeAndCacheParams p{};
            p.qkv = x.data();
            p.rows = rows;
            p.stride = stride;
            p.num_heads = heads;
            p.num_kv_heads = kv_heads;
            p.head_dim = dim;
            p.positions = positions.data();
            p.cos_sin = rotary ? cos_sin.data() : nullptr;
            p.rotary_dim = rotary;
            p.interleaved = interleaved;
            p.slots = slots.data();
            p.q_norm = norms ? q_norm.data() : nullptr;
            p.k_norm = norms ? k_norm.data() : nullptr;
            p.q_scale = scaled ? q_scale.data() : nullptr;
            p.cache = {c.data(), dtype, num_blocks, block_size, kv_heads, dim};
            return p;
          };
          const RopeAndCacheParams mine = params(qkv, cache), theirs = params(qkv2, cache2);
          run_rope_and_cache(mine, pool());
          ref::rope_and_cache(theirs);
          const std::string what = str_cat(dtype_name(dtype), " block ", block_size, " dim ", dim, " rotary ",
                                           rotary, " flags ", flags);
          const float unit = dtype == DType::kF32 ? 0.0f : dtype == DType::kF16 ? 1e-3f : 8e-3f;
          for (int r = 0; r < rows; ++r) {
            const int64_t q_end = r * stride + int64_t{heads} * dim;
            for (int64_t i = r * stride; i < q_end; ++i)
              ASSERT_NEAR(qkv[i], qkv2[i], 4e-6f * (1 + std::abs(qkv2[i]))) << what;
          }
          for (int64_t b = 0; b < num_blocks; ++b)
            for (int value = 0; value < 2; ++value)
              for (int h = 0; h < kv_heads; ++h)
                for (int t = 0; t < block_size; ++t)
                  for (int d = 0; d < dim; ++d) {
                    const float x = ref::kv_load(mine.cache, b, value, h, t, d),
                                y = ref::kv_load(theirs.cache, b, value, h, t, d);
                    // V is only rounded: the same bits. K's rotation cancels, so its error is that of terms
                    // of size 1, and then it may round to the neighbour in its type.
                    if (value == 1) {
                      ASSERT_EQ(x, y) << what << " V";
                    } else {
                      ASSERT_NEAR(x, y, 4e-6f + unit * std::abs(y)) << what << " K";
                    }
                  }
        }
      }
    }
  }
}

TEST_P(OpsTest, CacheKeepsNaNAndInfinity) {
  LevelGuard guard(GetParam());
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const int dim = 32;
    std::vector<float> qkv(3 * dim, 1.0f);
    const float specials[] = {kNaN,          -kNaN,       std::numeric_limits<float>::infinity(),
                              3.3895314e38f, 1e-40f,      -0.0f,
                              65519.0f,      65520.0f,    6e-8f,
                              1.00390625f,   1.01171875f, 1.0004883f};
    for (int i = 0; i < 12; ++i) qkv[dim + i] = qkv[2 * dim + i] = specials[i];
    const int64_t slot = 5;
    const int32_t position = 0;
    std::vector<char> cache(2 * 16 * dim * 4);
    RopeAndCacheParams p{};
    p.qkv = qkv.data();
    p.rows = 1;
    p.stride = 3 * dim;
    p.num_heads = p.num_kv_heads = 1;
    p.head_dim = dim;
    p.positions = &position;
    p.slots = &slot;
    p.cache = {cache.data(), dtype, 1, 16, 1, dim};
    run_rope_and_cache(p, pool());
    for (int i = 0; i < 12; ++i) {
      float expected = specials[i];
      if (dtype == DType::kBF16) expected = to_float(to_bf16(expected));
      if (dtype == DType::kF16) expected = to_float(to_f16(expected));
      for (int value = 0; value < 2; ++value) {
        const float x = ref::kv_load(p.cache, 0, value, 0, 5, i);
        EXPECT_TRUE(x == expected || (std::isnan(x) && std::isnan(expected)))
            << dtype_name(dtype) << " " << specials[i] << " became " << x;
      }
    }
  }
}

TEST_P(OpsTest, RefusesSlotsOutsideTheCache) {
  LevelGuard guard(GetParam());
  std::vector<float> qkv(3 * 16), cache(2 * 16 * 16);
  const int64_t slot = 16;
  const int32_t position = 0;
  RopeAndCacheParams p{};
  p.qkv = qkv.data();
  p.rows = 1;
  p.stride = 3 * 16;
  p.num_heads = p.num_kv_heads = 1;
  p.head_dim = 16;
  p.positions = &position;
  p.slots = &slot;
  p.cache = {cache.data(), DType::kF32, 1, 16, 1, 16};
  EXPECT_THROW(run_rope_and_cache(p, pool()), Error);
}

TEST_P(OpsTest, GatherRows) {
  LevelGuard guard(GetParam());
  const std::vector<float> in = noise(50 * 101, 3);
  std::vector<int32_t> index(300);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * 7 % 50);
  std::vector<float> out(300 * 100, kNaN), expected = out;
  GatherRowsParams p{in.data(), index.data(), 300, 100, 101, out.data()};
  run_gather_rows(p, pool());
  p.out = expected.data();
  ref::gather_rows(p);
  EXPECT_EQ(out, expected);
}

TEST_P(OpsTest, CopyBlocks) {
  LevelGuard guard(GetParam());
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    std::vector<uint8_t> cache(6 * 2 * 2 * 16 * 20 * dtype_size(dtype));
    for (size_t i = 0; i < cache.size(); ++i) cache[i] = static_cast<uint8_t>(i * 31 % 63);
    std::vector<uint8_t> expected = cache;
    const int32_t pairs[] = {0, 3, 3, 5, 1, 1};  // in order: 5 gets what 0 held
    CopyBlocksParams p{{cache.data(), dtype, 6, 16, 2, 20}, pairs, 3};
    run_copy_blocks(p, pool());
    p.cache.data = expected.data();
    ref::copy_blocks(p);
    EXPECT_EQ(cache, expected);
    const int32_t outside[] = {0, 6};
    p.pairs = outside;
    p.num_pairs = 1;
    EXPECT_THROW(run_copy_blocks(p, pool()), Error);
  }
}

TEST_P(OpsTest, CopySlots) {
  LevelGuard guard(GetParam());
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const int layers = 3, blocks = 5, block_size = 8, heads = 2, head_dim = 20;
    const size_t layer = size_t{2} * blocks * block_size * heads * head_dim * dtype_size(dtype) + 64;
    std::vector<uint8_t> cache(layers * layer);
    for (size_t i = 0; i < cache.size(); ++i) cache[i] = static_cast<uint8_t>(i * 31 % 61);
    std::vector<uint8_t> expected = cache;
    const std::vector<uint8_t> before = cache;
    const int64_t pairs[] = {9, 7, 11, 9, 39, 20};  // in order: 9 is read before it is written
    const int32_t groups[] = {0, 2, 3};
    CopySlotsParams p{
        {cache.data(), dtype, blocks, block_size, heads, head_dim}, layers, int64_t(layer), pairs, groups, 2};
    run_copy_slots(p);
    p.cache.data = expected.data();
    ref::copy_slots(p);
    EXPECT_EQ(cache, expected);
    for (int l = 0; l < layers; ++l)
      EXPECT_FALSE(
          std::equal(cache.begin() + l * layer, cache.begin() + (l + 1) * layer, before.begin() + l * layer))
          << "layer " << l;
    const int64_t outside[] = {0, 40};
    p.pairs = outside;
    EXPECT_THROW(run_copy_slots(p), Error);
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, OpsTest, testing::ValuesIn(available_levels()), level_name);

}  // namespace
}  // namespace taco::cpu
