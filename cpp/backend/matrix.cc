#include "backend/matrix.h"

#include <string>

#include "base/error.h"

namespace taco {
namespace {

constexpr FormatInfo kFormats[] = {
    {"F32", 1, 4},    {"F16", 1, 2},    {"BF16", 1, 2},     {"Q8_0", 32, 34},
    {"Q4_0", 32, 18}, {"Q4_1", 32, 20}, {"Q4_K", 256, 144}, {"Q6_K", 256, 210},
};

template <typename T>
T read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

float half_at(const uint8_t* p) { return to_float(read<f16>(p)); }

void dequantize_q8_0(const uint8_t* b, float* out) {
  float d = half_at(b);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<int8_t>(b[2 + i]);
}

// Q4_0 and Q4_1: w = d * nibble + m, low nibbles first.
void dequantize_nibbles(const uint8_t* q, float d, float m, float* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = d * (q[i] & 15) + m;
    out[16 + i] = d * (q[i] >> 4) + m;
  }
}

// {f16 d; f16 dmin; u8 scales[12]; u8 q[128]}: eight groups of 32 with a 6-bit scale and a 6-bit min each,
// packed in `scales`: groups 0..3 in the low 6 bits of bytes 0..3 (scale) and 4..7 (min), groups 4..7 in the
// nibbles of bytes 8..11 with their top 2 bits in the top bits of bytes 0..7. w = d * scale * nibble - dmin *
// min.
void dequantize_q4_k(const uint8_t* b, float* out) {
  float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t *s = b + 4, *q = b + 16;
  for (int group = 0; group < 8; ++group) {
    int scale, min;
    if (group < 4) {
      scale = s[group] & 63;
      min = s[group + 4] & 63;
    } else {
      scale = (s[group + 4] & 15) | ((s[group - 4] >> 6) << 4);
      min = (s[group + 4] >> 4) | ((s[group] >> 6) << 4);
    }
    const uint8_t* nibbles = q + (group / 2) * 32;
    int shift = (group % 2) * 4;
    for (int i = 0; i < 32; ++i) out[group * 32 + i] = d * scale * ((nibbles[i] >> shift) & 15) - dmin * min;
  }
}

// {u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d}: 6-bit values (4 bits in ql, 2 in qh) minus 32, one scale for
// each 16 columns. Each half of 128 columns uses 64 bytes of ql and 32 of qh.
void dequantize_q6_k(const uint8_t* b, float* out) {
  float d = half_at(b + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t *ql = b + half * 64, *qh = b + 128 + half * 32;
    const uint8_t* scales = b + 192 + half * 8;
    for (int i = 0; i < 128; ++i) {
      int quarter = i / 32, l = i % 32;
      int low = (ql[l + (quarter & 1) * 32] >> ((quarter >> 1) * 4)) & 15;
      int high = (qh[l] >> (quarter * 2)) & 3;
      out[half * 128 + i] = d * static_cast<int8_t>(scales[i / 16]) * ((low | (high << 4)) - 32);
    }
  }
}

}  // namespace

const FormatInfo& format_info(WeightFormat format) { return kFormats[static_cast<size_t>(format)]; }

WeightFormat format_from_name(std::string_view name) {
  std::string known;
  for (size_t i = 0; i < std::size(kFormats); ++i) {
    if (kFormats[i].name == name) return static_cast<WeightFormat>(i);
    known += (i ? ", " : "") + std::string(kFormats[i].name);
  }
  fail(ErrorCode::kInvalidArgument, "unknown weight format '", name, "' (known: ", known, ")");
}

void dequantize_row(const HostMatrix& matrix, int64_t row, float* out) {
  const FormatInfo& info = format_info(matrix.format);
  const uint8_t* p = static_cast<const uint8_t*>(matrix.data) + static_cast<size_t>(row) * matrix.row_bytes();
  int64_t cols = matrix.cols;
  switch (matrix.format) {
    case WeightFormat::kF32:
      std::memcpy(out, p, static_cast<size_t>(cols) * sizeof(float));
      return;
    case WeightFormat::kF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = half_at(p + 2 * i);
      return;
    case WeightFormat::kBF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = to_float(read<bf16>(p + 2 * i));
      return;
    default:
      break;
  }
  for (int64_t col = 0; col + info.block_cols <= cols; col += info.block_cols, p += info.block_bytes) {
    switch (matrix.format) {
      case WeightFormat::kQ8_0:
        dequantize_q8_0(p, out + col);
        break;
      case WeightFormat::kQ4_0:
        dequantize_nibbles(p + 2, half_at(p), -8.0f * half_at(p), out + col);
        break;
      case WeightFormat::kQ4_1:
        dequantize_nibbles(p + 4, half_at(p), half_at(p + 2), out + col);
        break;
      case WeightFormat::kQ4_K:
        dequantize_q4_k(p, out + col);
        break;
      default:
        dequantize_q6_k(p, out + col);
        break;
    }
  }
}

}  // namespace taco
