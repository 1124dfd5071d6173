// Every instruction set's passes against plain loops, for lengths around the block size.
#include "exec/sampler_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace taco::sampling {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_row(int n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, 9.0f);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = rng() % 50 ? normal(rng) : -kInf;
  x[static_cast<size_t>(n) / 2] = 20.0f;
  return x;
}

TEST(SamplerKernels, MatchPlainLoops) {
  for (const Kernels& k : kernels_of_this_cpu()) {
    for (int n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 200, 1000, 4096}) {
      SCOPED_TRACE(testing::Message() << k.name << " " << n);
      std::vector<float> x = random_row(n, static_cast<uint32_t>(n));
      size_t blocks = static_cast<size_t>(num_blocks(n));
      std::vector<float> block_max(blocks), block_sums(blocks), weights(x.size());

      RowMax row = k.row_max(x.data(), n, block_max.data());
      float max = *std::max_element(x.begin(), x.end());
      EXPECT_EQ(row.max, max);
      EXPECT_FALSE(row.has_nan);

      double total = k.sum_exp(x.data(), n, max, 0.7f, weights.data(), block_sums.data()), expected_total = 0;
      for (size_t b = 0; b < blocks; ++b) {
        float expected_max = -kInf;
        double sum = 0;
        for (size_t i = b * kBlock; i < std::min(x.size(), (b + 1) * kBlock); ++i) {
          expected_max = std::max(expected_max, x[i]);
          double e = std::max((static_cast<double>(x[i]) - max) * 0.7f, -1000.0);
          EXPECT_NEAR(weights[i], std::exp(e), std::exp(e) * (3e-7 + 2e-7 * std::abs(e)) + 1e-37);
          EXPECT_TRUE(x[i] != -kInf || weights[i] == 0.0f);
          EXPECT_TRUE(x[i] != max || weights[i] == 1.0f);
          sum += std::exp(e);
        }
        EXPECT_EQ(block_max[b], expected_max);
        EXPECT_NEAR(block_sums[b], sum, 1e-5 * sum + 1e-37);
        expected_total += sum;
      }
      EXPECT_NEAR(total, expected_total, 1e-5 * expected_total);
      EXPECT_EQ(k.sum_exp(x.data(), n, max, 0.7f, nullptr, nullptr), total);
      EXPECT_EQ(k.count_greater(x.data(), n, 1.5f),
                std::count_if(x.begin(), x.end(), [](float v) { return v > 1.5f; }));

      std::vector<uint16_t> bins(x.size());
      k.bins_of(x.data(), n, max, 17.5f, bins.data());
      for (size_t i = 0; i < x.size(); ++i)
        EXPECT_EQ(bins[i],
                  static_cast<uint16_t>(std::min((max - x[i]) * 17.5f, static_cast<float>(kBins - 1))));
    }
  }
}

TEST(SamplerKernels, FindNaNAnywhere) {
  for (const Kernels& k : kernels_of_this_cpu()) {
    for (int n : {1, 64, 100, 300}) {
      for (int at = 0; at < n; at += std::max(1, n / 13)) {
        std::vector<float> x(static_cast<size_t>(n), 1.0f), block_max(static_cast<size_t>(num_blocks(n)));
        x[static_cast<size_t>(at)] = std::nanf("");
        EXPECT_TRUE(k.row_max(x.data(), n, block_max.data()).has_nan) << k.name << " " << n << " " << at;
      }
    }
  }
}

}  // namespace
}  // namespace taco::sampling
