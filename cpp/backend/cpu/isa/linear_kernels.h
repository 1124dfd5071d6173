// The contract between linear.cc and the matrix kernels of each instruction set: plain data only, because sources
// compiled for an instruction set include it.
//
// A panel is 16 output features by k_pad columns (zero padded), 64-byte aligned:
//   kF32   [k][16] float                                   k_pad = k
//   kF16   [k][16] half                                    k_pad = k rounded up to 2
//   kBF16  [k/2][16][2] bfloat16                           k_pad = k rounded up to 32
//          (a zmm feeds vdpbf16ps; 16 of them are one AMX tile)
//   kQ8    blocks of 64 columns: [16 quads][16][4] uint8 (w + 128), then half scale[2][16]    1088 bytes
//   kQ4    blocks of 32 columns: [4][16][4] uint8, low nibbles quad 2i, high nibbles quad 2i + 1;
//          then half scale[16], half min[16]                                                  320 bytes
//          w = scale * nibble + min
// where a quad is 4 neighbouring columns: one 32-bit lane of vpdpbusd.
#pragma once

#include <cstddef>
#include <cstdint>

namespace taco::cpu {

enum class PanelFormat : uint8_t { kF32, kF16, kBF16, kQ8, kQ4 };

inline constexpr int kPanelRows = 16;
inline constexpr int kMaxPanels = 4;  // panels a kernel takes at once
inline constexpr int kQuantGroup = 32;
inline constexpr int kQ8BlockCols = 64, kQ8BlockBytes = 1088;
inline constexpr int kQ4BlockCols = 32, kQ4BlockBytes = 320;

// How a kernel wants the rows it multiplies.
enum class RowFormat : uint8_t {
  kF32,        // as they are: row r at data + r * stride floats
  kBF16,       // [rows][stride] bfloat16, zero padded to a multiple of 32
  kBF16Tiles,  // [rows/16][k_pad/32][16][32] bfloat16, zero padded: one AMX tile after the other
  kInt8,       // [rows][stride] int8 per 32 columns, with scale, sum and scaled_sum
};

struct PackedRows {
  const void* data;
  int64_t stride;           // elements between rows
  // kInt8: each [rows][groups]
  const float* scale;       // x = scale * q
  const int32_t* sum;       // sum of q
  const float* scaled_sum;  // scale * sum
  int64_t groups;
};

struct PackRowsParams {
  const float* in;
  int64_t rows, k, in_stride;
  int64_t first, last;  // rows to pack now (multiples of 16 for kBF16Tiles, or the end)
  RowFormat format;
  void* data;
  int64_t stride;
  float* scale;
  int32_t* sum;
  float* scaled_sum;
  int64_t groups;
};

// c[r][16 * p + i] (+)= sum over columns [k_begin, k_end) of in[r][k] * panel_p[i][k]
struct PanelProductParams {
  const uint8_t* panel[kMaxPanels];
  const uint8_t* next[kMaxPanels];  // where the weights wanted after these stand, or null: fetched meanwhile
  int panels;                       // 1..kMaxPanels
  PackedRows in;                    // row 0 of it is c's row 0
  int64_t rows;
  int64_t k_begin, k_end;  // multiples of 64, or the end of k
  bool accumulate;
  float* c;  // [rows up to a multiple of 16][c_stride], 64-byte aligned
  int64_t c_stride;
  uint8_t* scratch;  // scratch_bytes of the kernel's, 64-byte aligned, of this thread
};

// out = epilogue(c + bias). Values of Epilogue and Activation in ops.h.
struct StoreParams {
  const float* c;
  const float* c_up;  // kGated: the other half's products
  int64_t c_stride, rows, cols;
  const float* bias;     // [cols] or null
  const float* bias_up;
  int epilogue, activation;
  float out_scale;
  float* out;
  int64_t out_stride;
};

struct LinearKernels {
  void (*pack_rows)(const PackRowsParams&);
  void (*product)(const PanelProductParams&);
  void (*store)(const StoreParams&);
  RowFormat row_format;
  int64_t scratch_bytes;
  // Called by each thread around its calls of `product`, or null.
  void (*begin)();
  void (*end)();
};

}  // namespace taco::cpu
