// The 8-bit floats: every value, every rounding, the ends of the range.
#include "base/dtype.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"

namespace taco {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

template <typename F8>
F8 convert(float v) {
  if constexpr (std::is_same_v<F8, f8e4m3>) return to_f8e4m3(v);
  if constexpr (std::is_same_v<F8, f8e5m2>) return to_f8e5m2(v);
}

template <typename F8>
class Float8 : public testing::Test {};
using Formats = testing::Types<f8e4m3, f8e5m2>;
TYPED_TEST_SUITE(Float8, Formats);

TYPED_TEST(Float8, EveryFiniteValueSurvives) {
  int finite = 0;
  for (int bits = 0; bits < 256; ++bits) {
    float v = to_float(TypeParam{static_cast<uint8_t>(bits)});
    if (!std::isfinite(v)) continue;
    ++finite;
    EXPECT_EQ(convert<TypeParam>(v).bits, bits) << v;
  }
  const bool e4m3 = std::is_same_v<TypeParam, f8e4m3>;
  EXPECT_EQ(finite, e4m3 ? 254 : 248);
}

TYPED_TEST(Float8, RoundsToTheNearestAndTiesToEven) {
  for (int bits = 0; bits < 0x7b; ++bits) {
    float low = to_float(TypeParam{static_cast<uint8_t>(bits)});
    float high = to_float(TypeParam{static_cast<uint8_t>(bits + 1)});
    float middle = (low + high) / 2;  // exact
    ASSERT_LT(low, middle);
    EXPECT_EQ(convert<TypeParam>(middle).bits, bits % 2 ? bits + 1 : bits);
    EXPECT_EQ(convert<TypeParam>(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(convert<TypeParam>(std::nextafter(middle, kInf)).bits, bits + 1);
    EXPECT_EQ(convert<TypeParam>(-std::nextafter(middle, kInf)).bits, (bits + 1) | 0x80);
  }
}

TEST(Float8Range, Saturates) {
  EXPECT_EQ(to_float(to_f8e4m3(448.0f)), 448.0f);
  EXPECT_EQ(to_float(to_f8e4m3(1e9f)), 448.0f);
  EXPECT_EQ(to_float(to_f8e4m3(-kInf)), -448.0f);
  EXPECT_EQ(to_float(to_f8e5m2(60000.0f)), 57344.0f);
  EXPECT_EQ(to_float(to_f8e5m2(kInf)), 57344.0f);
  EXPECT_EQ(to_float(to_f8e5m2(-3e38f)), -57344.0f);
}

TEST(Float8Range, KnownValues) {
  EXPECT_EQ(to_f8e4m3(1.0f).bits, 0x38);
  EXPECT_EQ(to_f8e5m2(1.0f).bits, 0x3c);
  EXPECT_EQ(to_float(f8e4m3{0x01}), 0x1p-9f);
  EXPECT_EQ(to_float(f8e5m2{0x01}), 0x1p-16f);
  EXPECT_EQ(to_float(f8e5m2{0x7c}), kInf);
  EXPECT_EQ(to_f8e4m3(-0.0f).bits, 0x80);
  EXPECT_EQ(to_f8e4m3(0x1p-30f).bits, 0);
}

TEST(Float8Range, NanStaysNan) {
  float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(to_float(to_f8e4m3(nan))));
  EXPECT_TRUE(std::isnan(to_float(to_f8e5m2(nan))));
  EXPECT_TRUE(std::isnan(to_float(to_f8e5m2(-nan))));
}

TEST(DTypeNames, Float8) {
  EXPECT_EQ(dtype_from_name("fp8"), DType::kF8E4M3);
  EXPECT_EQ(dtype_from_name("fp8_e4m3"), DType::kF8E4M3);
  EXPECT_EQ(dtype_from_name("fp8_e5m2"), DType::kF8E5M2);
  EXPECT_EQ(dtype_name(DType::kF8E5M2), "fp8_e5m2");
  EXPECT_THROW(dtype_from_name("fp9"), Error);
}

}  // namespace
}  // namespace taco
