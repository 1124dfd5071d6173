// The passes over a whole row of logits, vectorised, chosen at run time for the CPU. All levels add the same
// numbers in the same order, so the results are equal bit for bit on every machine.
#pragma once

#include <cstdint>

namespace taco::sampling {

constexpr int kBlock = 64;  // elements that share a block maximum and a block sum
inline int num_blocks(int n) { return (n + kBlock - 1) / kBlock; }

struct RowMax {
  float max;     // -Infinity for a row of nothing else
  bool has_nan;  // then max means nothing
};

// block_max: [num_blocks(n)].
RowMax row_max(const float* x, int n, float* block_max);

// The lowest index of `max` in x; block_max as row_max left it.
int first_index_of(const float* x, int n, const float* block_max, float max);

// weights[i] = exp((x[i] - shift) * scale), for (x[i] - shift) * scale <= 0; an error of 2 ulp at most; below
// -87 it is 0. Either output may be null. Returns the sum.
double sum_exp(const float* x, int n, float shift, float scale, float* weights, float* block_sums);

int count_greater(const float* x, int n, float value);

}  // namespace taco::sampling
