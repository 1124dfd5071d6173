#include "base/dtype.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"

namespace taco {
namespace {
struct Entry {
  DType dtype;
  std::string_view name;
  size_t size;
};
constexpr Entry kTable[] = {
    {DType::kF32, "float32", 4}, {DType::kF16, "float16", 2},     {DType::kBF16, "bfloat16", 2},
    {DType::kI8, "int8", 1},     {DType::kU8, "uint8", 1},        {DType::kI32, "int32", 4},
    {DType::kI64, "int64", 8},   {DType::kF8E4M3, "fp8_e4m3", 1}, {DType::kF8E5M2, "fp8_e5m2", 1},
};

// An 8-bit float with `mantissa` bits of mantissa whose smallest normal number is 2^lowest.
uint8_t encode_f8(float v, int mantissa, int lowest, float largest) {
  const auto sign = static_cast<uint8_t>(std::signbit(v) ? 0x80 : 0);
  if (std::isnan(v)) return static_cast<uint8_t>(sign | 0x7f);
  const double a = std::min(std::abs(v), largest);
  if (a == 0) return sign;
  const int exponent = std::max(std::ilogb(a), lowest);
  // In units of the last place, rounded to even; one more than all ones carries into the exponent.
  const int units = static_cast<int>(std::nearbyint(std::ldexp(a, mantissa - exponent)));
  return static_cast<uint8_t>(sign | (((exponent - lowest) << mantissa) + units));
}

float decode_f8(uint8_t bits, int mantissa, int lowest) {
  const int exponent = (bits & 0x7f) >> mantissa, units = bits & ((1 << mantissa) - 1);
  const int hidden = exponent > 0 ? 1 << mantissa : 0;
  const float a =
      std::ldexp(static_cast<float>(units + hidden), std::max(exponent, 1) - 1 + lowest - mantissa);
  return bits & 0x80 ? -a : a;
}
}  // namespace

size_t dtype_size(DType dtype) { return kTable[static_cast<size_t>(dtype)].size; }
std::string_view dtype_name(DType dtype) { return kTable[static_cast<size_t>(dtype)].name; }

DType dtype_from_name(std::string_view name) {
  if (name == "fp8") return DType::kF8E4M3;
  for (const Entry& e : kTable) {
    if (e.name == name) return e.dtype;
  }
  throw Error(ErrorCode::kInvalidArgument, "unknown dtype '" + std::string(name) + "'");
}

float to_float(f16 v) {
  uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  uint32_t exp = (v.bits >> 10) & 0x1fu, mant = v.bits & 0x3ffu;
  if (exp == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mant << 13));
  if (exp == 0) {
    float f = static_cast<float>(mant) * 0x1p-24f;
    return sign ? -f : f;
  }
  return std::bit_cast<float>(sign | ((exp + 112) << 23) | (mant << 13));
}

f16 to_f16(float v) {
  uint32_t u = std::bit_cast<uint32_t>(v), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return f16{static_cast<uint16_t>(sign | 0x7e00u)};
  if (a >= 0x477ff000u) return f16{static_cast<uint16_t>(sign | 0x7c00u)};
  if (a < 0x38800000u) {  // subnormal in half: adding 0.5 rounds to a multiple of 2^-24
    float r = std::bit_cast<float>(a) + 0.5f;
    return f16{static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(r) - 0x3f000000u))};
  }
  uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
  return f16{static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

f8e4m3 to_f8e4m3(float v) { return {encode_f8(v, 3, -6, 448.0f)}; }
f8e5m2 to_f8e5m2(float v) { return {encode_f8(v, 2, -14, 57344.0f)}; }

float to_float(f8e4m3 v) {
  if ((v.bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return decode_f8(v.bits, 3, -6);
}
float to_float(f8e5m2 v) {
  if ((v.bits & 0x7f) > 0x7c) return std::numeric_limits<float>::quiet_NaN();
  if ((v.bits & 0x7f) == 0x7c) return (v.bits & 0x80 ? -1.0f : 1.0f) * std::numeric_limits<float>::infinity();
  return decode_f8(v.bits, 2, -14);
}

}  // namespace taco
