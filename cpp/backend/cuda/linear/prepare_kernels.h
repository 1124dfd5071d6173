// Device work of preparing weights: conversion, the [gate; up] interleave, dummies, FP8.
#pragma once

#include "backend/cuda/context.h"

namespace taco::cuda {

// Where rows of [gate; up] stand: half > 0 is the number of gate rows (a multiple of 8), and rows are
// interleaved by eight; half 0: in order.
struct RowPlaces {
  int64_t half = 0;
#ifdef __CUDACC__
  __host__ __device__
#endif
      int64_t
      operator()(int64_t row) const {
    if (half == 0) return row;
    int64_t up = row >= half ? 1 : 0, r = row - up * half;
    return r / 8 * 16 + up * 8 + r % 8;
  }
};

// Rows [first_row, first_row + rows) of a [*, cols] matrix, from dense `source` rows on the device to their
// places in `out`. Types: float32, float16, bfloat16.
void store_rows(const void* source, DType source_type, void* out, DType out_type, int64_t rows, int64_t cols,
                int64_t first_row, RowPlaces places, const Context& ctx);
// The same rows with uniform values in +-1e-3 that depend on (seed, index in the part) alone.
void fill_dummy_rows(void* out, DType out_type, int64_t rows, int64_t cols, int64_t first_row,
                     RowPlaces places, uint64_t seed, const Context& ctx);
// FP8 with one scale for the tensor: scales[0..n) = max|source| / 448 (1 for zeros), out = source / scale.
void quantize_tensor(const void* source, DType source_type, int64_t count, void* out, float* scales,
                     int64_t n, const Context& ctx);

}  // namespace taco::cuda
