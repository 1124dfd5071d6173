// Vectors of 16 floats: AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace taco::cpu {
namespace {

struct Simd {
  using F = __m512;
  static constexpr int W = 16;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float reduce_add(F v) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float reduce_max(F v) {
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Lanes [lo, hi) of v, the others -inf.
  static F keep_range(F v, int lo, int hi) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 keep = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(lo)) &
                           _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(hi));
    return _mm512_mask_mov_ps(set1(-__builtin_inff()), keep, v);
  }

  // 2^x, exactly 1 at 0 and exactly 0 below -150; relative error below 2e-7. A NaN stays one.
  static F exp2(F x) {
    x = _mm512_min_ps(set1(127.0f), _mm512_max_ps(set1(-200.0f), x));
    F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    F r = sub(x, n);
    F p = set1(0x1.41fbbcp-13f);
    p = fma(p, r, set1(0x1.5f3e52p-10f));
    p = fma(p, r, set1(0x1.3b2d4cp-7f));
    p = fma(p, r, set1(0x1.c6aee8p-5f));
    p = fma(p, r, set1(0x1.ebfbdcp-3f));
    p = fma(p, r, set1(0x1.62e43p-1f));
    p = fma(p, r, set1(1.0f));
    return _mm512_scalef_ps(p, n);
  }
  // The same to 8e-5, where the result is rounded to bfloat16 next: 2^(x - floor x) * 2^floor x.
  static F exp2_coarse(F x) {
    F r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    F p = set1(0x1.3f96ap-4f);
    p = fma(p, r, set1(0x1.cefc4ep-3f));
    p = fma(p, r, set1(0x1.64444cp-1f));
    p = fma(p, r, set1(0x1.fff632p-1f));
    return _mm512_scalef_ps(p, x);
  }

  // W pairs of bfloat16: the first ones and the second ones.
  static void load_bf16_pairs(const uint16_t* p, F& first, F& second) {
    __m512i v = _mm512_loadu_si512(p);
    first = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    second = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
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

  // bfloat16 in the high half of each lane (the low half is not cleared), rounded to nearest even; a NaN
  // stays one.
  static __m512i round_bf16(F v) {
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  }
  static void store_bf16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16(v), 16)));
  }
  static void store_f16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  // p[2 * i] = v[i] and nothing else: the neighbours may be another thread's.
  static void store_bf16_every_other(uint16_t* p, F v) {
    _mm512_mask_storeu_epi16(p, 0x55555555u, _mm512_srli_epi32(round_bf16(v), 16));
  }
};

}  // namespace
}  // namespace taco::cpu
