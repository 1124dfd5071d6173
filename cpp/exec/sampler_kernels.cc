#include "exec/sampler_kernels.h"

#include <cstring>
#include <limits>

// Written on GCC's vector extensions: sixteen floats at a time, which the compiler lowers to what each clone
// has.
#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define TACO_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define TACO_CLONES
#endif
#define TACO_INLINE static inline __attribute__((always_inline))

namespace taco::sampling {
namespace {

typedef float V __attribute__((vector_size(64)));
typedef float Vu __attribute__((vector_size(64), aligned(4)));
typedef int32_t I __attribute__((vector_size(64)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));

constexpr float kInf = std::numeric_limits<float>::infinity();

TACO_INLINE V load(const float* p) { return *reinterpret_cast<const Vu*>(p); }
TACO_INLINE void store(float* p, const V& v) { *reinterpret_cast<Vu*>(p) = v; }

TACO_INLINE float add_lanes(const V& v) {
  V8 a[2];
  std::memcpy(a, &v, sizeof v);
  V8 b = a[0] + a[1];
  V4 c[2];
  std::memcpy(c, &b, sizeof b);
  V4 d = c[0] + c[1];
  return (d[0] + d[2]) + (d[1] + d[3]);
}

TACO_INLINE float max_lanes(const V& v) {
  V8 a[2];
  std::memcpy(a, &v, sizeof v);
  V8 b = a[0] > a[1] ? a[0] : a[1];
  V4 c[2];
  std::memcpy(c, &b, sizeof b);
  V4 d = c[0] > c[1] ? c[0] : c[1];
  float e = d[0] > d[2] ? d[0] : d[2], f = d[1] > d[3] ? d[1] : d[3];
  return e > f ? e : f;
}

// exp(x) for x <= 0: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial for exp(r), n put into the exponent.
TACO_INLINE V exp16(const V& logit) {
  const V magic = V{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  V lowest = V{} - 87.0f;
  I dead = logit < lowest;
  V x = dead ? lowest : logit;
  V shifted = x * 1.44269504088896341f + magic;
  V n = shifted - magic;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  I exponent = (reinterpret_cast<I>(shifted) - 0x4B400000) << 23;
  I bits = reinterpret_cast<I>(p) + exponent;
  bits = bits & ~dead;
  return reinterpret_cast<V>(bits);
}

TACO_INLINE void block_maximum(const float* x, V& max, I& nan) {
  V a = load(x), b = load(x + 16), c = load(x + 32), d = load(x + 48);
  nan |= (a != a) | (b != b) | (c != c) | (d != d);
  V ab = a > b ? a : b, cd = c > d ? c : d;
  max = ab > cd ? ab : cd;
}

TACO_INLINE float block_exp(const float* x, const V& shift, const V& scale, float* weights) {
  V e[4];
  for (int j = 0; j < 4; ++j) e[j] = exp16((load(x + 16 * j) - shift) * scale);
  if (weights)
    for (int j = 0; j < 4; ++j) store(weights + 16 * j, e[j]);
  return add_lanes((e[0] + e[1]) + (e[2] + e[3]));
}

// The last, partial block, filled up with what changes nothing.
TACO_INLINE void pad_block(const float* x, int count, float* block) {
  for (int j = 0; j < kBlock; ++j) block[j] = j < count ? x[j] : -kInf;
}

TACO_INLINE bool any(const I& v) {
  int32_t lanes[16], all = 0;
  std::memcpy(lanes, &v, sizeof v);
  for (int32_t lane : lanes) all |= lane;
  return all != 0;
}

}  // namespace

TACO_CLONES RowMax row_max(const float* x, int n, float* block_max) {
  I nan = {};
  V lanes = V{} - kInf;
  int full = n / kBlock;
  for (int b = 0; b < full; ++b) {
    V max;
    block_maximum(x + b * kBlock, max, nan);
    lanes = max > lanes ? max : lanes;
    block_max[b] = max_lanes(max);
  }
  if (n % kBlock) {
    float block[kBlock];
    pad_block(x + full * kBlock, n % kBlock, block);
    V max;
    block_maximum(block, max, nan);
    lanes = max > lanes ? max : lanes;
    block_max[full] = max_lanes(max);
  }
  return {max_lanes(lanes), any(nan)};
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

TACO_CLONES double sum_exp(const float* x, int n, float shift, float scale, float* weights,
                           float* block_sums) {
  V vshift = V{} + shift, vscale = V{} + scale;
  double sum = 0;
  int full = n / kBlock;
  for (int b = 0; b < full; ++b) {
    float s = block_exp(x + b * kBlock, vshift, vscale, weights ? weights + b * kBlock : nullptr);
    if (block_sums) block_sums[b] = s;
    sum += s;
  }
  if (int rest = n % kBlock) {
    float block[kBlock], out[kBlock];
    pad_block(x + full * kBlock, rest, block);
    float s = block_exp(block, vshift, vscale, out);
    if (weights) std::memcpy(weights + full * kBlock, out, sizeof(float) * static_cast<size_t>(rest));
    if (block_sums) block_sums[full] = s;
    sum += s;
  }
  return sum;
}

TACO_CLONES int count_greater(const float* x, int n, float value) {
  V limit = V{} + value;
  I count = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) count -= load(x + i) > limit;
  int32_t lanes[16], total = 0;
  std::memcpy(lanes, &count, sizeof count);
  for (int32_t lane : lanes) total += lane;
  for (; i < n; ++i) total += x[i] > value;
  return total;
}

}  // namespace taco::sampling
