// Random weights for the tests of CUDA linear layers, as a checkpoint has them and as float32.
#pragma once

#include <cstring>
#include <random>

#include "cuda_test_util.h"

namespace taco::cuda::test {

struct TestMatrix {
  HostMatrix host;
  std::vector<uint8_t> bytes;
  std::vector<float> values;  // [rows][cols], dequantised
};

// Quantised formats take random blocks with scales of ordinary size: any bits are a valid block.
inline TestMatrix random_matrix(WeightFormat format, int64_t rows, int64_t cols, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0f, 0.5f);
  std::uniform_real_distribution<float> scale(0.002f, 0.02f);
  TestMatrix m;
  m.host.format = format;
  m.host.rows = rows;
  m.host.cols = cols;
  m.bytes.resize(m.host.bytes());
  const FormatInfo& info = format_info(format);
  auto put_half = [](uint8_t* p, float v) {
    const f16 h = to_f16(v);
    std::memcpy(p, &h, 2);
  };
  for (size_t i = 0; i < m.bytes.size(); i += static_cast<size_t>(info.block_bytes)) {
    uint8_t* b = m.bytes.data() + i;
    if (!is_quantized(format)) {
      const float v = normal(rng);
      const bf16 h = to_bf16(v);
      if (format == WeightFormat::kF32) std::memcpy(b, &v, 4);
      if (format == WeightFormat::kF16) put_half(b, v);
      if (format == WeightFormat::kBF16) std::memcpy(b, &h, 2);
      continue;
    }
    for (int j = 0; j < info.block_bytes; ++j) b[j] = static_cast<uint8_t>(rng());
    if (format == WeightFormat::kQ6_K) {
      put_half(b + 208, scale(rng) / 64);
    } else {
      put_half(b, format == WeightFormat::kQ4_K ? scale(rng) / 16 : scale(rng));
    }
    if (format == WeightFormat::kQ4_1) put_half(b + 2, -8 * scale(rng));
    if (format == WeightFormat::kQ4_K) put_half(b + 2, scale(rng) / 8);
  }
  m.host.data = m.bytes.data();
  m.values.resize(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) dequantize_row(m.host, r, m.values.data() + r * cols);
  return m;
}

// Row `row` of [gate; up] as CudaLinear stores it.
inline int64_t interleaved_row(int64_t row, int64_t half) {
  return row < half ? row / 8 * 16 + row % 8 : (row - half) / 8 * 16 + 8 + (row - half) % 8;
}

inline float fp8_rounded(float x) { return to_float(to_f8e4m3(x)); }

// As quantize_rows does it: each row to e4m3 with a scale, and back.
inline std::vector<float> through_fp8_rows(std::vector<float> x, int64_t cols) {
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(cols)) {
    float most = 0;
    for (int64_t i = 0; i < cols; ++i) most = std::max(most, std::fabs(x[row + i]));
    if (most == 0) continue;
    for (int64_t i = 0; i < cols; ++i)
      x[row + i] = fp8_rounded(x[row + i] * (448.0f / most)) * (most / 448.0f);
  }
  return x;
}

// As prepare_linear does it with fp8.
inline std::vector<float> through_fp8_tensor(std::vector<float> w) {
  float most = 0;
  for (float v : w) most = std::max(most, std::fabs(v));
  const float scale = most > 0 ? most / 448.0f : 1.0f;
  for (float& v : w) v = fp8_rounded(v / scale) * scale;
  return w;
}

}  // namespace taco::cuda::test
