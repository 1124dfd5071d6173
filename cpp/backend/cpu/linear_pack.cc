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
    // Adding 1.5 * 2^23 rounds to nearest, in one instruction everywhere.
    float rounded = (std::clamp(values[i] * inverse, -127.0f, 127.0f) + 12582912.0f) - 12582912.0f;
    out.q[i] = static_cast<int8_t>(rounded);
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
      for (int k = 0; k < kQuantGroup; ++k)
        bytes[k / 4 * 64 + i * 4 + k % 4] = static_cast<uint8_t>(group.q[k] + 128);
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

// out[u][i] = in[i][u]: 16 rows to a panel, in blocks that stay in the first-level cache.
template <typename T>
void interleave(const uint8_t* const* in, int64_t units, uint8_t* out) {
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < units; begin += kBlock) {
    int64_t end = std::min(units, begin + kBlock);
    for (int i = 0; i < kPanelRows; ++i) {
      const uint8_t* row = in[i];
      uint8_t* to = out + i * sizeof(T);
      for (int64_t u = begin; u < end; ++u) {
        std::memcpy(to + u * kPanelRows * sizeof(T), row + u * sizeof(T), sizeof(T));
      }
    }
  }
}

// The rows of one panel as elements of `format`, zero padded to whole blocks: where they stand already if
// they can be read there, else in `scratch`.
void stage_rows(const HostMatrix& m, int64_t row, int rows, PanelFormat format, PackScratch& scratch,
                const uint8_t** in) {
  bool same = (format == PanelFormat::kF32 && m.format == WeightFormat::kF32) ||
              (format == PanelFormat::kF16 && m.format == WeightFormat::kF16) ||
              (format == PanelFormat::kBF16 && m.format == WeightFormat::kBF16);
  int64_t element = format == PanelFormat::kF32 ? 4 : 2;
  int64_t padded =
      format == PanelFormat::kF32 ? m.cols : round_up(m.cols, format == PanelFormat::kF16 ? 2 : 32);
  scratch.rows.assign(static_cast<size_t>(kPanelRows * padded * element), 0);
  scratch.values.resize(static_cast<size_t>(m.cols));
  for (int i = 0; i < kPanelRows; ++i) {
    uint8_t* staged = scratch.rows.data() + i * padded * element;
    in[i] = staged;
    if (i >= rows) continue;
    const uint8_t* stored =
        static_cast<const uint8_t*>(m.data) + static_cast<size_t>(row + i) * m.row_bytes();
    if (same && padded == m.cols) {
      in[i] = stored;
      continue;
    }
    if (same) {
      std::memcpy(staged, stored, static_cast<size_t>(m.cols * element));
      continue;
    }
    float* values = scratch.values.data();
    dequantize_row(m, row + i, values);
    if (format == PanelFormat::kF32) {
      std::memcpy(staged, values, static_cast<size_t>(m.cols) * sizeof(float));
    } else if (format == PanelFormat::kF16) {
      f16* to = reinterpret_cast<f16*>(staged);
      for (int64_t k = 0; k < m.cols; ++k) to[k] = to_f16(values[k]);
    } else {
      bf16* to = reinterpret_cast<bf16*>(staged);
      for (int64_t k = 0; k < m.cols; ++k) to[k] = to_bf16(values[k]);
    }
  }
}

}  // namespace

PanelFormat panel_format(WeightFormat format, DType compute) {
  TACO_REQUIRE(compute == DType::kF32 || compute == DType::kF16 || compute == DType::kBF16,
               "the CPU backend computes in float32, float16 or bfloat16, not in ", dtype_name(compute));
  if (is_quantized(format) && compute != DType::kF32) {
    return format == WeightFormat::kQ8_0 || format == WeightFormat::kQ6_K ? PanelFormat::kQ8
                                                                          : PanelFormat::kQ4;
  }
  return compute == DType::kF32   ? PanelFormat::kF32
         : compute == DType::kF16 ? PanelFormat::kF16
                                  : PanelFormat::kBF16;
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

void pack_panel(const HostMatrix& m, int64_t row, PanelFormat format, PackScratch& scratch, uint8_t* out) {
  int rows = static_cast<int>(std::min<int64_t>(kPanelRows, m.rows - row));
  if (format == PanelFormat::kQ4) return pack_q4(m, row, rows, out);
  // Quantised values that are kept as they are need no floats.
  if (format == PanelFormat::kQ8) {
    if (m.format != WeightFormat::kQ8_0) {
      scratch.values.resize(static_cast<size_t>(kPanelRows * m.cols));
      for (int i = 0; i < rows; ++i) dequantize_row(m, row + i, scratch.values.data() + i * m.cols);
    }
    return pack_q8(m, row, rows, scratch.values.data(), out);
  }
  const uint8_t* in[kPanelRows];
  stage_rows(m, row, rows, format, scratch, in);
  switch (format) {
    case PanelFormat::kF32:
      return interleave<uint32_t>(in, m.cols, out);
    case PanelFormat::kF16:
      return interleave<uint16_t>(in, round_up(m.cols, 2), out);
    default:
      return interleave<uint32_t>(in, round_up(m.cols, 32) / 2, out);
  }
}

}  // namespace taco::cpu
