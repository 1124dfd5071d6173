// The contract between linear.cc and the matrix kernels of each instruction set: plain data only, because
// sources compiled for an instruction set include it.
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
  kBF16,       // [rows][stride] bfloat16, zero padded to stride
  kBF16Tiles,  // [rows/16][stride/32][16][32] bfloat16, zero padded: one AMX tile after the other
  kInt8,       // [rows][stride] int8 with one scale per 32 columns, zero padded to stride (a multiple of 64)
};

struct PackedRows {
  const void* data;
  int64_t stride;  // columns with their padding
  // kInt8: each [rows][stride / 32]
  const float* scale;       // x = scale * q
  const int32_t* offset;    // -128 * sum of q: takes the 128 in kQ8's bytes back out
  const float* scaled_sum;  // scale * sum of q: goes with kQ4's min
};

// Packs rows [first, last) of `in`; for kBF16Tiles both are multiples of 16, or the end.
struct PackRowsParams {
  const float* in;
  int64_t rows, k, in_stride;
  int64_t first, last;
  void* data;
  int64_t stride;
  float* scale;
  int32_t* offset;
  float* scaled_sum;
};

// c[r][16 * p + i] (+)= sum over columns [k_begin, k_end) of in[r][k] * panel_p[i][k]
struct ProductParams {
  const uint8_t* panel[kMaxPanels];
  int64_t panel_k;  // the column at which `panel` starts: 0, but for expanded panels
  int panels;       // 1..kMaxPanels
  PackedRows in;    // its row 0 is c's row 0; for kBF16Tiles a multiple of 16
  int64_t rows;
  int64_t k_begin, k_end;  // multiples of 64, or k
  bool accumulate;
  float* c;  // [rows up to a multiple of 16][c_stride], 64-byte aligned
  int64_t c_stride;
  // The weights wanted next: `next_bytes` at each are fetched into the cache meanwhile.
  const uint8_t* next[kMaxPanels];
  int64_t next_bytes;
};

// The same columns of kQ8 or kQ4 panels as kBF16 panels of their own, one after the other.
struct ExpandParams {
  const uint8_t* panel[kMaxPanels];
  int panels;
  int64_t k_begin, k_end;
  uint8_t* out;
  int64_t out_panel_bytes;
  const uint8_t* next[kMaxPanels];  // as in ProductParams
  int64_t next_bytes;
};

// out = epilogue(c + bias). Values of Epilogue and Activation in ops.h.
struct StoreParams {
  const float* c;
  const float* c_up;  // kGated: the other half's products
  int64_t c_stride, rows, cols;
  const float* bias;  // [cols] or null
  const float* bias_up;
  int epilogue, activation;
  float out_scale;
  float gate_limit, up_offset;  // Gating of ops.h
  float* out;
  int64_t out_stride;
};

struct LinearKernels {
  RowFormat row_format;
  void (*pack_rows)(const PackRowsParams&);  // null for RowFormat::kF32
  void (*expand)(const ExpandParams&);       // not null: `product` reads what this wrote
  void (*product)(const ProductParams&);
  void (*store)(const StoreParams&);
  // The block sizes that suit it: rows kept in the second-level cache (at most `max_rows`, of at most
  // `row_bytes` together) and rows multiplied before their products are stored. Multiples of 96 and 16.
  int64_t max_rows, row_bytes, store_rows;
  // Called by each thread around its calls of `product`, or null.
  void (*begin)();
  void (*end)();
};

// One set per instruction set and panel format.
namespace generic {
const LinearKernels* linear_kernels(PanelFormat format);
}
namespace avx2 {
const LinearKernels* linear_kernels(PanelFormat format);
}
namespace avx512 {
const LinearKernels* linear_kernels(PanelFormat format);
}
namespace avx512_bf16 {
const LinearKernels* linear_kernels(PanelFormat format);  // kBF16 only
}
namespace amx {
const LinearKernels* linear_kernels(PanelFormat format);  // kBF16, kQ8, kQ4
}

}  // namespace taco::cpu
