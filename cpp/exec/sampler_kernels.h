// The passes over a whole row of logits, vectorised, chosen at run time for the CPU. All levels add in the
// same order; they differ in the rounding of fused multiplications alone.
#pragma once

#include <cstdint>
#include <vector>

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

// weights[i] = exp((x[i] - shift) * scale), for e = (x[i] - shift) * scale <= 0; relative error 3e-7 + 2e-7
// |e|; 1 for e = 0, and 0 for e < -88. Either output may be null. Returns the sum.
double sum_exp(const float* x, int n, float shift, float scale, float* weights, float* block_sums);

int count_greater(const float* x, int n, float value);

// bins[i] = min((top - x[i]) * scale, kBins - 1), rounded down, for x[i] <= top: a likelier token never has a
// higher bin.
constexpr int kBins = 1024;
void bins_of(const float* x, int n, float top, float scale, uint16_t* bins);

// One instruction set's versions; for tests, which compare them.
struct Kernels {
  const char* name;
  RowMax (*row_max)(const float*, int, float*);
  double (*sum_exp)(const float*, int, float, float, float*, float*);
  int (*count_greater)(const float*, int, float);
  void (*bins_of)(const float*, int, float, float, uint16_t*);
};
std::vector<Kernels> kernels_of_this_cpu();  // the best first

}  // namespace taco::sampling
