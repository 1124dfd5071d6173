// Compiled with -msha: called only where digest.cc found the instructions.
#include "base/digest_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace taco::sha256_kernels {
namespace {

__m128i load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

// sha256rnds2 makes two rounds on (a, b, e, f) and (c, d, g, h), highest lane first: what it returns are the
// new (a, b, e, f), and the old ones are the new (c, d, g, h).
void compress(uint32_t* state, const uint8_t* blocks, size_t count) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i abcd = _mm_shuffle_epi32(load(state), 0x1b), efgh = _mm_shuffle_epi32(load(state + 4), 0x1b);
  __m128i abef = _mm_unpackhi_epi64(efgh, abcd), cdgh = _mm_unpacklo_epi64(efgh, abcd);
  for (; count; --count, blocks += 64) {
    __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];  // the last sixteen words of the schedule, in a ring
    for (int i = 0; i < 4; ++i) w[i] = _mm_shuffle_epi8(load(blocks + 16 * i), big_endian);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      __m128i& now = w[i % 4];
      if (i >= 4) {  // words t .. t+3 out of t-16, t-15, t-7 and t-2
        __m128i before = w[(i + 3) % 4];
        __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) % 4]),
                                    _mm_alignr_epi8(before, w[(i + 2) % 4], 4));
        now = _mm_sha256msg2_epu32(sum, before);
      }
      __m128i keyed = _mm_add_epi32(now, load(kRound + 4 * i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  abcd = _mm_unpackhi_epi64(cdgh, abef), efgh = _mm_unpacklo_epi64(cdgh, abef);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_shuffle_epi32(abcd, 0x1b));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_shuffle_epi32(efgh, 0x1b));
}

}  // namespace

const Compress compress_shani = compress;

}  // namespace taco::sha256_kernels
#else
namespace taco::sha256_kernels {
const Compress compress_shani = nullptr;
}  // namespace taco::sha256_kernels
#endif
