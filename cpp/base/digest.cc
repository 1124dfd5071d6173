#include "base/digest.h"

#include <algorithm>
#include <bit>

#include "base/digest_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace taco {
namespace {

uint32_t load_big_endian(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]};
}

bool has_shani() {
#if defined(__x86_64__)
  unsigned a, b, c, d, b7;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  bool sse41 = (c >> 19 & 1) && (c >> 9 & 1);  // with SSSE3
  return sse41 && __get_cpuid_count(7, 0, &a, &b7, &c, &d) && (b7 >> 29 & 1);
#else
  return false;
#endif
}

void compress(uint32_t* state, const uint8_t* blocks, size_t count) {
  static const sha256_kernels::Compress best = sha256_kernels::available().back();
  best(state, blocks, count);
}

}  // namespace

namespace sha256_kernels {

const uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

void compress_portable(uint32_t* state, const uint8_t* blocks, size_t count) {
  for (; count; --count, blocks += 64) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = load_big_endian(blocks + 4 * i);
    for (int i = 16; i < 64; ++i) {
      uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (size_t i = 0; i < 64; ++i) {
      uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
  }
}

std::vector<Compress> available() {
  std::vector<Compress> all = {compress_portable};
  if (compress_shani && has_shani()) all.push_back(compress_shani);
  return all;
}

}  // namespace sha256_kernels

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {
}

Sha256& Sha256::update(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return *this;
  size_t have = length_ % block_.size();
  length_ += bytes.size();
  if (have) {
    size_t take = std::min(bytes.size(), block_.size() - have);
    std::memcpy(block_.data() + have, bytes.data(), take);
    bytes = bytes.subspan(take);
    if (have + take < block_.size()) return *this;
    compress(state_.data(), block_.data(), 1);
  }
  size_t whole = bytes.size() / block_.size();
  if (whole) compress(state_.data(), bytes.data(), whole);
  bytes = bytes.subspan(whole * block_.size());
  if (!bytes.empty()) std::memcpy(block_.data(), bytes.data(), bytes.size());
  return *this;
}

Sha256& Sha256::update(std::span<const int32_t> values) {
  if constexpr (std::endian::native == std::endian::little) {
    return update({reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()});
  }
  for (int32_t value : values) {
    uint32_t u = static_cast<uint32_t>(value);
    std::array<uint8_t, 4> bytes = {static_cast<uint8_t>(u), static_cast<uint8_t>(u >> 8),
                                    static_cast<uint8_t>(u >> 16), static_cast<uint8_t>(u >> 24)};
    update(std::span<const uint8_t>(bytes));
  }
  return *this;
}

Digest Sha256::finish() {
  uint64_t bits = length_ * 8;
  // A one bit, zeros up to eight bytes before the end of a block, the length.
  std::array<uint8_t, 72> pad{};
  size_t have = length_ % 64, zeros_to = (have < 56 ? 56 : 120) - have;
  pad[0] = 0x80;
  for (size_t i = 0; i < 8; ++i) pad[zeros_to + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(std::span<const uint8_t>(pad.data(), zeros_to + 8));
  Digest digest;
  for (size_t i = 0; i < 32; ++i) {
    digest.bytes[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  }
  return digest;
}

Digest sha256(std::span<const uint8_t> bytes) { return Sha256().update(bytes).finish(); }

std::string hex(const Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(64);
  for (uint8_t byte : digest.bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::optional<Digest> digest_from_hex(std::string_view text) {
  Digest digest;
  if (text.size() != 2 * digest.bytes.size()) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0) return std::nullopt;
    digest.bytes[i / 2] = static_cast<uint8_t>(digest.bytes[i / 2] << 4 | value);
  }
  return digest;
}

}  // namespace taco
