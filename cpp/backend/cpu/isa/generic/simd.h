// Vectors of 4 floats in the compiler's own vector types: any processor.
#pragma once

#include <cstdint>
#include <cstring>

namespace taco::cpu {
namespace {

struct Simd {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  static constexpr int W = 4;

  static F zero() { return F{}; }
  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, F v) { memcpy(p, &v, sizeof v); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F div(F a, F b) { return a / b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static float reduce_add(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static float reduce_max(F v) {
    float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
  }
  // Lanes [lo, hi) of v, the others -inf.
  static F keep_range(F v, int lo, int hi) {
    I lane = {0, 1, 2, 3}, l = {lo, lo, lo, lo}, h = {hi, hi, hi, hi};
    return (lane >= l) & (lane < h) ? v : set1(-__builtin_inff());
  }

  // 2^x, exactly 1 at 0 and exactly 0 below -126.5; relative error below 2e-7.
  static F exp2(F x) {
    F lo = set1(-127.0f), hi = set1(127.0f);
    x = lo > x ? lo : x;  // a NaN stays
    x = hi < x ? hi : x;
    F magic = set1(12582912.0f);
    F n = (x + magic) - magic;
    F r = x - n;
    F p = set1(0x1.41fbbcp-13f);
    p = p * r + set1(0x1.5f3e52p-10f);
    p = p * r + set1(0x1.3b2d4cp-7f);
    p = p * r + set1(0x1.c6aee8p-5f);
    p = p * r + set1(0x1.ebfbdcp-3f);
    p = p * r + set1(0x1.62e43p-1f);
    p = p * r + set1(1.0f);
    I e = (__builtin_convertvector(n, I) + 127) << 23;
    F s;
    memcpy(&s, &e, sizeof s);
    return p * s;
  }

  static F from_bits(I v) {
    F f;
    memcpy(&f, &v, sizeof f);
    return f;
  }
  // W pairs of bfloat16: the first ones and the second ones.
  static void load_bf16_pairs(const uint16_t* p, F& first, F& second) {
    I v;
    memcpy(&v, p, sizeof v);
    first = from_bits(v << 16);
    second = from_bits(v & static_cast<int32_t>(0xffff0000));
  }
  static F load_f16(const uint16_t* p) {
    F v;
    for (int i = 0; i < W; ++i) v[i] = f16_to_float(p[i]);
    return v;
  }
  // Round to nearest even; a NaN stays a NaN.
  static uint16_t float_to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  static float bf16_to_float(uint16_t b) {
    uint32_t u = static_cast<uint32_t>(b) << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
  }
  static float f16_to_float(uint16_t b) {
    uint32_t sign = static_cast<uint32_t>(b & 0x8000u) << 16, exp = (b >> 10) & 0x1fu, mant = b & 0x3ffu, u;
    if (exp == 0) {
      float f = static_cast<float>(mant) * 0x1p-24f;
      return sign ? -f : f;
    }
    u = exp == 31 ? sign | 0x7f800000u | (mant << 13) : sign | ((exp + 112) << 23) | (mant << 13);
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
  }
  static uint16_t float_to_f16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (a < 0x38800000u) {  // subnormal in half: adding 0.5 rounds to a multiple of 2^-24
      float f;
      memcpy(&f, &a, sizeof f);
      f += 0.5f;
      memcpy(&a, &f, sizeof a);
      return static_cast<uint16_t>(sign | (a - 0x3f000000u));
    }
    uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  static void store_bf16(uint16_t* p, F v) {
    for (int i = 0; i < W; ++i) p[i] = float_to_bf16(v[i]);
  }
  static void store_f16(uint16_t* p, F v) {
    for (int i = 0; i < W; ++i) p[i] = float_to_f16(v[i]);
  }
  // p[2 * i] = v[i] and nothing else: the neighbours may be another thread's.
  static void store_bf16_every_other(uint16_t* p, F v) {
    for (int i = 0; i < W; ++i) p[2 * i] = float_to_bf16(v[i]);
  }
};

}  // namespace
}  // namespace taco::cpu
