// Vectors of 8 floats: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace taco::cpu {
namespace {

struct Simd {
  using F = __m256;
  static constexpr int W = 8;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float reduce_add(F v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float reduce_max(F v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Lanes [lo, hi) of v, the others -inf.
  static F keep_range(F v, int lo, int hi) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), lane),
                                        _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(hi - 1)));
    return _mm256_blendv_ps(v, set1(-__builtin_inff()), _mm256_castsi256_ps(out));
  }

  // 2^x, exactly 1 at 0 and exactly 0 below -126.5; relative error below 2e-7. A NaN stays one.
  static F exp2(F x) {
    x = _mm256_min_ps(set1(127.0f), _mm256_max_ps(set1(-127.0f), x));
    F n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    F r = sub(x, n);
    F p = set1(0x1.41fbbcp-13f);
    p = fma(p, r, set1(0x1.5f3e52p-10f));
    p = fma(p, r, set1(0x1.3b2d4cp-7f));
    p = fma(p, r, set1(0x1.c6aee8p-5f));
    p = fma(p, r, set1(0x1.ebfbdcp-3f));
    p = fma(p, r, set1(0x1.62e43p-1f));
    p = fma(p, r, set1(1.0f));
    __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return mul(p, _mm256_castsi256_ps(e));
  }

  // W pairs of bfloat16: the first ones and the second ones.
  static void load_bf16_pairs(const uint16_t* p, F& first, F& second) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    first = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    second = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static float bf16_to_float(uint16_t b) {
    uint32_t u = static_cast<uint32_t>(b) << 16;
    float f;
    __builtin_memcpy(&f, &u, sizeof f);
    return f;
  }
  static float f16_to_float(uint16_t b) { return _cvtsh_ss(b); }
  static uint16_t float_to_bf16(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  static uint16_t float_to_f16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

  // bfloat16 in the low half of each lane, rounded to nearest even; a NaN stays one.
  static __m256i round_bf16(F v) {
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_srli_epi32(
        _mm256_blendv_epi8(rounded, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan), 16);
  }
  static void store_bf16(uint16_t* p, F v) {
    __m256i r = round_bf16(v);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store_f16(uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  // p[2 * i] = v[i] and nothing else: the neighbours may be another thread's.
  static void store_bf16_every_other(uint16_t* p, F v) {
    alignas(16) uint16_t h[W];
    store_bf16(h, v);
    for (int i = 0; i < W; ++i) p[2 * i] = h[i];
  }
};

}  // namespace
}  // namespace taco::cpu
