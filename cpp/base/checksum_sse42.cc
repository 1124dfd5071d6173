// Compiled with -msse4.2: called only where checksum.cc found the instruction.
#include "base/checksum.h"

#if defined(__x86_64__)
#include <nmmintrin.h>

#include <cstring>

namespace taco::crc32c_kernels {
namespace {

uint64_t word(const uint8_t* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// What `kBytes` zero bytes make of a register: linear in its bits, hence a table for each of its bytes.
template <size_t kBytes>
struct Zeros {
  uint32_t table[4][256];
  Zeros() {
    for (int byte = 0; byte < 4; ++byte) {
      table[byte][0] = 0;
      for (int bit = 0; bit < 8; ++bit) {
        uint64_t image = uint64_t{1} << (8 * byte + bit);
        for (size_t i = 0; i < kBytes / 8; ++i) image = _mm_crc32_u64(image, 0);
        for (int low = 0; low < 1 << bit; ++low) {
          table[byte][1 << bit | low] = static_cast<uint32_t>(image) ^ table[byte][low];
        }
      }
    }
  }
  uint32_t operator()(uint32_t state) const {
    return table[0][state & 0xff] ^ table[1][state >> 8 & 0xff] ^ table[2][state >> 16 & 0xff] ^
           table[3][state >> 24];
  }
};

// The instruction takes three cycles and may start in each: three stretches of kBytes at once.
template <size_t kBytes>
uint32_t three_stretches(uint32_t state, const uint8_t*& p, size_t& count) {
  static const Zeros<kBytes> zeros;
  for (; count >= 3 * kBytes; count -= 3 * kBytes, p += 3 * kBytes) {
    uint64_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kBytes; i += 8) {
      a = _mm_crc32_u64(a, word(p + i));
      b = _mm_crc32_u64(b, word(p + kBytes + i));
      c = _mm_crc32_u64(c, word(p + 2 * kBytes + i));
    }
    uint32_t two = zeros(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b);
    state = zeros(two) ^ static_cast<uint32_t>(c);
  }
  return state;
}

uint32_t extend(uint32_t state, const uint8_t* p, size_t count) {
  state = three_stretches<4096>(state, p, count);
  state = three_stretches<256>(state, p, count);
  uint64_t one = state;
  for (; count >= 8; count -= 8, p += 8) one = _mm_crc32_u64(one, word(p));
  state = static_cast<uint32_t>(one);
  for (; count; --count, ++p) state = _mm_crc32_u8(state, *p);
  return state;
}

}  // namespace

const Extend extend_sse42 = extend;

}  // namespace taco::crc32c_kernels
#else
namespace taco::crc32c_kernels {
const Extend extend_sse42 = nullptr;
}  // namespace taco::crc32c_kernels
#endif
