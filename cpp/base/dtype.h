// Element types of tensors held by the engine, and their conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace taco {

enum class DType : uint8_t { kF32, kF16, kBF16, kI8, kU8, kI32, kI64, kF8E4M3, kF8E5M2 };

size_t dtype_size(DType dtype);
std::string_view dtype_name(DType dtype);  // "float32", "float16", "bfloat16", ...
// "fp8" is fp8_e4m3. Throws Error(kInvalidArgument) for a name it does not know.
DType dtype_from_name(std::string_view name);

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float to_float(bf16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

// Round to nearest even; a NaN stays a NaN.
inline bf16 to_bf16(float v) {
  uint32_t u = std::bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40)};
  return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

float to_float(f16 v);
f16 to_f16(float v);

// The 8-bit floats of "FP8 Formats for Deep Learning" (arXiv 2209.05433). e4m3 has no infinities and reaches
// 448; e5m2 reaches 57344. Conversion rounds to nearest even and saturates, infinities too; a NaN stays a
// NaN.
struct f8e4m3 {
  uint8_t bits;
};
struct f8e5m2 {
  uint8_t bits;
};

float to_float(f8e4m3 v);
f8e4m3 to_f8e4m3(float v);
float to_float(f8e5m2 v);
f8e5m2 to_f8e5m2(float v);

}  // namespace taco
