#include "base/dtype.h"

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
}  // namespace

size_t dtype_size(DType dtype) { return kTable[static_cast<size_t>(dtype)].size; }
std::string_view dtype_name(DType dtype) { return kTable[static_cast<size_t>(dtype)].name; }

DType dtype_from_name(std::string_view name) {
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

}  // namespace taco
