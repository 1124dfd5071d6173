#include "base/checksum.h"

#include <array>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace taco {
namespace crc32c_kernels {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // 0x1edc6f41, lowest bit first

// tables[k][b]: what byte b, followed by k zero bytes, leaves in the register.
constexpr std::array<std::array<uint32_t, 256>, 8> make_tables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t value = b;
    for (int i = 0; i < 8; ++i) value = value >> 1 ^ (value & 1 ? kPolynomial : 0);
    tables[0][b] = value;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t b = 0; b < 256; ++b) {
      tables[k][b] = tables[k - 1][b] >> 8 ^ tables[0][tables[k - 1][b] & 0xff];
    }
  }
  return tables;
}
constexpr auto kTables = make_tables();

bool has_sse42() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 20 & 1);
#else
  return false;
#endif
}

}  // namespace

uint32_t extend_portable(uint32_t state, const uint8_t* p, size_t count) {
  for (; count >= 8; count -= 8, p += 8) {
    uint32_t low =
        state ^ (uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24);
    state = kTables[7][low & 0xff] ^ kTables[6][low >> 8 & 0xff] ^ kTables[5][low >> 16 & 0xff] ^
            kTables[4][low >> 24] ^ kTables[3][p[4]] ^ kTables[2][p[5]] ^ kTables[1][p[6]] ^ kTables[0][p[7]];
  }
  for (; count; --count, ++p) state = state >> 8 ^ kTables[0][(state ^ *p) & 0xff];
  return state;
}

std::vector<Extend> available() {
  std::vector<Extend> all = {extend_portable};
  if (extend_sse42 && has_sse42()) all.push_back(extend_sse42);
  return all;
}

}  // namespace crc32c_kernels

uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t crc) {
  static const crc32c_kernels::Extend best = crc32c_kernels::available().back();
  return ~best(~crc, bytes.data(), bytes.size());
}

}  // namespace taco
