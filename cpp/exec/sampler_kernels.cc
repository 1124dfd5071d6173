#include "exec/sampler_kernels.h"

#include <limits>

namespace taco::sampling {
namespace {
constexpr float kInf = std::numeric_limits<float>::infinity();
}  // namespace

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed by reference, and inlined

namespace generic {
#include "exec/sampler_kernels_impl.h"
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "exec/sampler_kernels_impl.h"
#pragma GCC pop_options
}  // namespace avx2

namespace avx512 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#include "exec/sampler_kernels_impl.h"
#pragma GCC pop_options
}  // namespace avx512
#endif
#pragma GCC diagnostic pop

namespace {

#define TACO_KERNELS(level) \
  Kernels { #level, level::row_max, level::sum_exp, level::count_greater, level::bins_of }

const Kernels& best() {
  static const Kernels kernels = kernels_of_this_cpu().front();
  return kernels;
}

}  // namespace

std::vector<Kernels> kernels_of_this_cpu() {
  std::vector<Kernels> levels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    levels.push_back(TACO_KERNELS(avx512));
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) levels.push_back(TACO_KERNELS(avx2));
#endif
  levels.push_back(TACO_KERNELS(generic));
  return levels;
}

RowMax row_max(const float* x, int n, float* block_max) { return best().row_max(x, n, block_max); }

double sum_exp(const float* x, int n, float shift, float scale, float* weights, float* block_sums) {
  return best().sum_exp(x, n, shift, scale, weights, block_sums);
}

int count_greater(const float* x, int n, float value) { return best().count_greater(x, n, value); }

void bins_of(const float* x, int n, float top, float scale, uint16_t* bins) {
  best().bins_of(x, n, top, scale, bins);
}

int first_index_of(const float* x, int n, const float* block_max, float max) {
  int blocks = num_blocks(n);
  for (int b = 0; b < blocks; ++b) {
    if (block_max[b] != max) continue;
    for (int i = b * kBlock; i < n; ++i)
      if (x[i] == max) return i;
  }
  return -1;
}

}  // namespace taco::sampling
