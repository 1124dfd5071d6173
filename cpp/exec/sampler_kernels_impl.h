// The passes of sampler_kernels.h, on GCC's vector extensions: sixteen floats at a time. sampler_kernels.cc
// includes this file once for each instruction set, inside a namespace and a target pragma, so there is no
// include guard and nothing is included here: a standard header's inline functions must not be compiled for
// one CPU only.

typedef float V __attribute__((vector_size(64)));
typedef float Vu __attribute__((vector_size(64), aligned(4)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));
typedef uint16_t Hu __attribute__((vector_size(32), aligned(2)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));

#define TACO_INLINE static inline __attribute__((always_inline))

#define TACO_LOAD(p) (*reinterpret_cast<const Vu*>(p))
TACO_INLINE void store(float* p, const V& v) { *reinterpret_cast<Vu*>(p) = v; }

TACO_INLINE float add_lanes(const V& v) {
  V8 a[2];
  __builtin_memcpy(a, &v, sizeof v);
  V8 b = a[0] + a[1];
  V4 c[2];
  __builtin_memcpy(c, &b, sizeof b);
  V4 d = c[0] + c[1];
  return (d[0] + d[2]) + (d[1] + d[3]);
}

TACO_INLINE float max_lanes(const V& v) {
  V8 a[2];
  __builtin_memcpy(a, &v, sizeof v);
  V8 b = a[0] > a[1] ? a[0] : a[1];
  V4 c[2];
  __builtin_memcpy(c, &b, sizeof b);
  V4 d = c[0] > c[1] ? c[0] : c[1];
  float e = d[0] > d[2] ? d[0] : d[2], f = d[1] > d[3] ? d[1] : d[3];
  return e > f ? e : f;
}

// 2^x for x <= 0: x = n + f with |f| <= 1/2, a polynomial for 2^f (relative error 2e-7, and exactly 1 at 0),
// times 2^n by its exponent bits. From -127 down these bits are zero, and so is the result.
TACO_INLINE void exp2_16(const V& power, V& result) {
  const V magic = V{} + (12582912.0f + 127.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const V lowest = V{} - 127.0f;
  V x = power > lowest ? power : lowest;
  V shifted = x + magic;
  V f = x - (shifted - magic);
  V p = V{} + 1.326472731e-3f;
  p = p * f + 9.671512991e-3f;
  p = p * f + 5.550733581e-2f;
  p = p * f + 2.402224243e-1f;
  p = p * f + 6.931470037e-1f;
  p = p * f + 1.0f;
  result = p * reinterpret_cast<V>(reinterpret_cast<I>(shifted) << 23);
}

TACO_INLINE void block_maximum(const float* x, V& max, I& nan) {
  V a = TACO_LOAD(x), b = TACO_LOAD(x + 16), c = TACO_LOAD(x + 32), d = TACO_LOAD(x + 48);
  nan |= (a != a) | (b != b) | (c != c) | (d != d);
  V ab = a > b ? a : b, cd = c > d ? c : d;
  max = ab > cd ? ab : cd;
}

TACO_INLINE float block_exp(const float* x, const V& shift, const V& scale, float* weights) {
  V e[4];
  for (int j = 0; j < 4; ++j) exp2_16((TACO_LOAD(x + 16 * j) - shift) * scale, e[j]);
  if (weights)
    for (int j = 0; j < 4; ++j) store(weights + 16 * j, e[j]);
  return add_lanes((e[0] + e[1]) + (e[2] + e[3]));
}

// The last, partial block, filled up with what changes nothing.
TACO_INLINE void pad_block(const float* x, int count, float* block) {
  for (int j = 0; j < kBlock; ++j) block[j] = j < count ? x[j] : -kInf;
}

TACO_INLINE int sum_lanes(const I& v) {
  int32_t lanes[16], total = 0;
  __builtin_memcpy(lanes, &v, sizeof v);
  for (int j = 0; j < 16; ++j) total += lanes[j];
  return total;
}

static RowMax row_max(const float* x, int n, float* block_max) {
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
  return {max_lanes(lanes), sum_lanes(nan) != 0};
}

static double sum_exp(const float* x, int n, float shift, float scale, float* weights, float* block_sums) {
  V vshift = V{} + shift, vscale = V{} + scale * 1.44269504088896341f;
  double sum = 0;
  int full = n / kBlock;
  for (int b = 0; b < full; ++b) {
    float s = block_exp(x + b * kBlock, vshift, vscale, weights ? weights + b * kBlock : nullptr);
    if (block_sums) block_sums[b] = s;
    sum += static_cast<double>(s);
  }
  if (int rest = n % kBlock) {
    float block[kBlock], out[kBlock];
    pad_block(x + full * kBlock, rest, block);
    float s = block_exp(block, vshift, vscale, out);
    if (weights) __builtin_memcpy(weights + full * kBlock, out, sizeof(float) * static_cast<unsigned>(rest));
    if (block_sums) block_sums[full] = s;
    sum += static_cast<double>(s);
  }
  return sum;
}

static int count_greater(const float* x, int n, float value) {
  V limit = V{} + value;
  I count = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) count -= TACO_LOAD(x + i) > limit;
  int total = sum_lanes(count);
  for (; i < n; ++i) total += x[i] > value;
  return total;
}

static void bins_of(const float* x, int n, float top, float scale, uint16_t* bins) {
  V vtop = V{} + top, vscale = V{} + scale, last = V{} + static_cast<float>(kBins - 1);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    V bin = (vtop - TACO_LOAD(x + i)) * vscale;
    bin = bin < last ? bin : last;
    *reinterpret_cast<Hu*>(bins + i) = __builtin_convertvector(__builtin_convertvector(bin, I), H);
  }
  for (; i < n; ++i) {
    float bin = (top - x[i]) * scale, limit = static_cast<float>(kBins - 1);
    bins[i] = static_cast<uint16_t>(static_cast<int32_t>(bin < limit ? bin : limit));
  }
}

#undef TACO_LOAD
#undef TACO_INLINE
