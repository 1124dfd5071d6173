#include "backend/cpu/linear_pack.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace taco::cpu {
namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

void put_half(uint8_t* out, float value) {
  f16 half = to_f16(value);
  std::memcpy(out, &half, 2);
}

// One row's groups of 32 columns as 8-bit values and scales.
struct Group8 {
  float scale;
  int8_t q[kQuantGroup];
};

Group8 group8_of(const HostMatrix& m, int64_t row, int64_t group, const float* values) {
  Group8 out;
  if (m.format == WeightFormat::kQ8_0) {
    const uint8_t* block = static_cast<const uint8_t*>(m.data) + row * m.row_bytes() + group * 34;
    f16 d;
    std::memcpy(&d, block, 2);
    out.scale = to_float(d);
    std::memcpy(out.q, block + 2, kQuantGroup);
    return out;
  }
  float most = 0;
  for (int i = 0; i < kQuantGroup; ++i) most = std::max(most, std::fabs(values[i]));
  // The scale is rounded to half precision before it is used, so that only the values' own rounding remains.
  out.scale = to_float(to_f16(most / 127.0f));
  float inverse = out.scale > 0 ? 1.0f / out.scale : 0.0f;
  for (int i = 0; i < kQuantGroup; ++i) {
    out.q[i] = static_cast<int8_t>(std::clamp(std::nearbyint(values[i] * inverse), -127.0f, 127.0f));
  }
  return out;
}

struct Group4 {
  float scale, min;
  uint8_t q[kQuantGroup];
};

Group4 group4_of(const HostMatrix& m, int64_t row, int64_t group) {
  Group4 out;
  const uint8_t* data = static_cast<const uint8_t*>(m.data) + row * m.row_bytes();
  auto half = [](const uint8_t* p) {
    f16 h;
    std::memcpy(&h, p, 2);
    return to_float(h);
  };
  if (m.format == WeightFormat::kQ4_K) {
    // (layout: see dequantize_row)
    const uint8_t* block = data + group / 8 * 144;
    const uint8_t* s = block + 4;
    int g = static_cast<int>(group % 8), scale, min;
    if (g < 4) {
      scale = s[g] & 63;
      min = s[g + 4] & 63;
    } else {
      scale = (s[g + 4] & 15) | ((s[g - 4] >> 6) << 4);
      min = (s[g + 4] >> 4) | ((s[g] >> 6) << 4);
    }
    out.scale = half(block) * static_cast<float>(scale);
    out.min = -half(block + 2) * static_cast<float>(min);
    const uint8_t* q = block + 16 + g / 2 * 32;
    for (int i = 0; i < kQuantGroup; ++i) out.q[i] = (q[i] >> (g % 2 * 4)) & 15;
    return out;
  }
  bool has_min = m.format == WeightFormat::kQ4_1;
  const uint8_t* block = data + group * (has_min ? 20 : 18);
  out.scale = half(block);
  out.min = has_min ? half(block + 2) : -8.0f * out.scale;
  const uint8_t* q = block + (has_min ? 4 : 2);
  for (int i = 0; i < 16; ++i) {
    out.q[i] = q[i] & 15;
    out.q[16 + i] = q[i] >> 4;
  }
  return out;
}

void pack_q8(const HostMatrix& m, int64_t row, int rows, const float* values, uint8_t* out) {
  int64_t groups = round_up(m.cols, kQ8BlockCols) / kQuantGroup;
  for (int64_t g = 0; g < groups; ++g) {
    uint8_t* block = out + g / 2 * kQ8BlockBytes;
    uint8_t* bytes = block + g % 2 * 512;
    uint8_t* scales = block + 1024 + g % 2 * 32;
    std::memset(bytes, 128, 512);
    std::memset(scales, 0, 32);
    if (g * kQuantGroup >= m.cols) continue;
    for (int i = 0; i < rows; ++i) {
      Group8 group = group8_of(m, row + i, g, values + i * m.cols + g * kQuantGroup);
      put_half(scales + 2 * i, group.scale);
      for (int k = 0; k < kQuantGroup; ++k) bytes[k / 4 * 64 + i * 4 + k % 4] = static_cast<uint8_t>(group.q[k] + 128);
    }
  }
}

void pack_q4(const HostMatrix& m, int64_t row, int rows, uint8_t* out) {
  for (int64_t g = 0; g < m.cols / kQuantGroup; ++g) {
    uint8_t* block = out + g * kQ4BlockBytes;
    std::memset(block, 0, kQ4BlockBytes);
    for (int i = 0; i < rows; ++i) {
      Group4 group = group4_of(m, row + i, g);
      put_half(block + 256 + 2 * i, group.scale);
      put_half(block + 288 + 2 * i, group.min);
      for (int k = 0; k < kQuantGroup; ++k) {
        int quad = k / 4;
        block[quad / 2 * 64 + i * 4 + k % 4] |= static_cast<uint8_t>(group.q[k] << (quad % 2 * 4));
      }
    }
  }
}

}  // namespace

PanelFormat panel_format(WeightFormat format, DType compute) {
  TACO_REQUIRE(compute == DType::kF32 || compute == DType::kF16 || compute == DType::kBF16,
               "the CPU backend computes in float32, float16 or bfloat16, not in ", dtype_name(compute));
  if (is_quantized(format) && compute != DType::kF32) {
    return format == WeightFormat::kQ8_0 || format == WeightFormat::kQ6_K ? PanelFormat::kQ8 : PanelFormat::kQ4;
  }
  return compute == DType::kF32 ? PanelFormat::kF32 : compute == DType::kF16 ? PanelFormat::kF16 : PanelFormat::kBF16;
}

size_t panel_bytes(PanelFormat format, int64_t cols) {
  switch (format) {
    case PanelFormat::kF32:
      return static_cast<size_t>(cols) * 64;
    case PanelFormat::kF16:
      return static_cast<size_t>(round_up(cols, 2)) * 32;
    case PanelFormat::kBF16:
      return static_cast<size_t>(round_up(cols, 32)) * 32;
    case PanelFormat::kQ8:
      return static_cast<size_t>(round_up(cols, kQ8BlockCols) / kQ8BlockCols) * kQ8BlockBytes;
    case PanelFormat::kQ4:
      return static_cast<size_t>(round_up(cols, kQ4BlockCols) / kQ4BlockCols) * kQ4BlockBytes;
  }
  return 0;
}

void pack_panel(const HostMatrix& m, int64_t row, PanelFormat format, std::vector<float>& values, uint8_t* out) {
  int rows = static_cast<int>(std::min<int64_t>(kPanelRows, m.rows - row));
  if (format == PanelFormat::kQ4) return pack_q4(m, row, rows, out);
  // Quantised values that are kept as they are need no floats.
  if (format != PanelFormat::kQ8 || m.format != WeightFormat::kQ8_0) {
    values.resize(static_cast<size_t>(kPanelRows * m.cols));
    for (int i = 0; i < rows; ++i) dequantize_row(m, row + i, values.data() + i * m.cols);
  }
  if (format == PanelFormat::kQ8) return pack_q8(m, row, rows, values.data(), out);
  std::memset(out, 0, panel_bytes(format, m.cols));
  for (int i = 0; i < rows; ++i) {
    const float* in = values.data() + i * m.cols;
    if (format == PanelFormat::kF32) {
      float* w = reinterpret_cast<float*>(out) + i;
      for (int64_t k = 0; k < m.cols; ++k) w[k * kPanelRows] = in[k];
    } else if (format == PanelFormat::kF16) {
      uint16_t* w = reinterpret_cast<uint16_t*>(out) + i;
      for (int64_t k = 0; k < m.cols; ++k) w[k * kPanelRows] = to_f16(in[k]).bits;
    } else {
      uint16_t* w = reinterpret_cast<uint16_t*>(out) + 2 * i;
      for (int64_t k = 0; k < m.cols; ++k) w[k / 2 * 32 + k % 2] = to_bf16(in[k]).bits;
    }
  }
}

}  // namespace taco::cpu
