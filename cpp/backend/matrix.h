// How weight matrices come from a checkpoint and what a backend makes of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "base/dtype.h"

namespace taco {

// The storage format of a matrix in a checkpoint. The Q formats are GGUF's blocks, bytes as in the file:
//   Q8_0 {f16 d; i8 q[32]}            w = d*q
//   Q4_0 {f16 d; u8 q[16]}            w = d*(q-8), low nibbles are columns 0..15, high nibbles 16..31
//   Q4_1 {f16 d; f16 m; u8 q[16]}     w = d*q+m, same nibble order
//   Q4_K, Q6_K                        super-blocks of 256 (ggml's specification of k-quants)
enum class WeightFormat : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K };

struct FormatInfo {
  std::string_view name;
  int block_cols;   // columns in a block
  int block_bytes;  // bytes of a block
};
const FormatInfo& format_info(WeightFormat format);
WeightFormat format_from_name(std::string_view name);  // "F32", "Q4_1", ...; throws kInvalidArgument
inline bool is_quantized(WeightFormat f) { return f >= WeightFormat::kQ8_0; }

// A row-major [rows, cols] matrix in host memory; rows are output features. `owner` keeps `data` alive.
// data null: a stand-in for a weight (load_format dummy); a backend fills it with uniform values in +-1e-3
// that depend on `seed` alone.
struct HostMatrix {
  WeightFormat format = WeightFormat::kF32;
  int64_t rows = 0, cols = 0;
  const void* data = nullptr;
  std::shared_ptr<const void> owner;
  uint64_t seed = 0;

  size_t row_bytes() const {
    const FormatInfo& info = format_info(format);
    return static_cast<size_t>(cols / info.block_cols) * info.block_bytes;
  }
  size_t bytes() const { return row_bytes() * rows; }
};

// Row `row` as float32 (the reference dequantisation: tests, embedding look-up).
void dequantize_row(const HostMatrix& matrix, int64_t row, float* out);

// A weight repacked by a backend for its matrix products.
class Linear {
 public:
  virtual ~Linear() = default;
  virtual int64_t out_features() const = 0;
  virtual int64_t in_features() const = 0;
  virtual size_t bytes() const = 0;
};

// A token or position table prepared for row look-up.
class Embedding {
 public:
  virtual ~Embedding() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;
  virtual size_t bytes() const = 0;
};

}  // namespace taco
