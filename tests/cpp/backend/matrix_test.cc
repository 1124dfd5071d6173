// Dequantisation against the values of the `gguf` package.
#include "backend/matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "matrix_fixtures.h"

namespace taco {
namespace {

template <size_t kBytes, size_t kValues>
void expect_values(WeightFormat format, const uint8_t (&bytes)[kBytes], const float (&values)[kValues]) {
  // Two equal rows: the second one is found behind the first.
  std::vector<uint8_t> data(bytes, bytes + kBytes);
  data.insert(data.end(), bytes, bytes + kBytes);
  HostMatrix m;
  m.format = format;
  m.rows = 2;
  m.cols = kValues;
  m.data = data.data();
  ASSERT_EQ(m.row_bytes(), kBytes);
  EXPECT_EQ(m.bytes(), 2 * kBytes);
  for (int64_t row : {0, 1}) {
    std::vector<float> out(kValues);
    dequantize_row(m, row, out.data());
    for (size_t i = 0; i < kValues; ++i) {
      ASSERT_NEAR(out[i], values[i], 1e-6 * std::fabs(values[i]) + 1e-7)
          << format_info(format).name << " column " << i;
    }
  }
}

TEST(Matrix, DequantisesAsGguf) {
  expect_values(WeightFormat::kQ8_0, fixtures::q8_0_bytes, fixtures::q8_0_values);
  expect_values(WeightFormat::kQ4_0, fixtures::q4_0_bytes, fixtures::q4_0_values);
  expect_values(WeightFormat::kQ4_1, fixtures::q4_1_bytes, fixtures::q4_1_values);
  expect_values(WeightFormat::kQ4_K, fixtures::q4_k_bytes, fixtures::q4_k_values);
  expect_values(WeightFormat::kQ6_K, fixtures::q6_k_bytes, fixtures::q6_k_values);
}

TEST(Matrix, ReadsFloats) {
  const float f32[] = {1.5f, -2.25f, 3e-5f};
  const uint16_t halves[] = {0x3e00, 0xc080, 0x0001};  // 1.5, -2.25, 2^-24
  const uint16_t brains[] = {0x3fc0, 0xc010, 0x0080};  // 1.5, -2.25, 2^-126
  float out[3];
  HostMatrix m;
  m.rows = 1;
  m.cols = 3;
  m.data = f32;
  dequantize_row(m, 0, out);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(out[i], f32[i]);
  m.format = WeightFormat::kF16;
  m.data = halves;
  dequantize_row(m, 0, out);
  EXPECT_EQ(out[0], 1.5f);
  EXPECT_EQ(out[1], -2.25f);
  EXPECT_EQ(out[2], 0x1p-24f);
  m.format = WeightFormat::kBF16;
  m.data = brains;
  dequantize_row(m, 0, out);
  EXPECT_EQ(out[0], 1.5f);
  EXPECT_EQ(out[1], -2.25f);
  EXPECT_EQ(out[2], 0x1p-126f);
}

TEST(Matrix, FormatsGoByTheirNames) {
  for (WeightFormat f :
       {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16, WeightFormat::kQ8_0, WeightFormat::kQ4_0,
        WeightFormat::kQ4_1, WeightFormat::kQ4_K, WeightFormat::kQ6_K}) {
    EXPECT_EQ(format_from_name(format_info(f).name), f);
  }
  EXPECT_EQ(format_info(WeightFormat::kQ6_K).name, "Q6_K");
  try {
    format_from_name("Q5_0");
    FAIL() << "Q5_0 is not supported";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("Q5_0"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("Q4_K"), std::string::npos) << "the message lists what is known";
  }
}

}  // namespace
}  // namespace taco
