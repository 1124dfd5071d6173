#include "base/checksum.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <string_view>

namespace taco {
namespace {

// RFC 3720, B.4, and the check value of CRC-32/ISCSI.
TEST(Crc32cTest, PublishedVectors) {
  std::string_view digits = "123456789";
  EXPECT_EQ(crc32c({reinterpret_cast<const uint8_t*>(digits.data()), digits.size()}), 0xe3069283u);
  std::vector<uint8_t> bytes(32, 0);
  EXPECT_EQ(crc32c(bytes), 0x8a9136aau);
  bytes.assign(32, 0xff);
  EXPECT_EQ(crc32c(bytes), 0x62a8ab43u);
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  EXPECT_EQ(crc32c(bytes), 0x46dd794eu);
  std::reverse(bytes.begin(), bytes.end());
  EXPECT_EQ(crc32c(bytes), 0x113fdb5cu);
  EXPECT_EQ(crc32c({}), 0u);
}

// Bit by bit, straight from the definition.
uint32_t by_bits(std::span<const uint8_t> bytes) {
  uint32_t state = 0xffffffff;
  for (uint8_t byte : bytes) {
    state ^= byte;
    for (int i = 0; i < 8; ++i) state = state >> 1 ^ (state & 1 ? 0x82f63b78u : 0);
  }
  return ~state;
}

TEST(Crc32cTest, KernelsAgreeAtAllLengthsAndOffsets) {
  std::mt19937 random(3);
  std::vector<uint8_t> bytes(3 * 12288 + 3 * 768 + 64);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  // Around each length at which the fast one changes its ways.
  std::vector<size_t> lengths = {0, 1, 7, 8, 9, 15, 16, 17, 100, 4096, 20000, bytes.size() - 9};
  for (size_t turn : {768u, 1536u, 12288u, 12288u + 768u, 2 * 12288u}) {
    for (size_t length = turn - 9; length <= turn + 9; ++length) lengths.push_back(length);
  }
  for (size_t length : lengths) {
    for (size_t offset : {0, 1, 5, 8}) {
      std::span<const uint8_t> part(bytes.data() + offset, length);
      uint32_t expected = by_bits(part);
      for (auto kernel : crc32c_kernels::available()) {
        ASSERT_EQ(~kernel(0xffffffff, part.data(), part.size()), expected) << length << " at " << offset;
      }
    }
  }
}

TEST(Crc32cTest, PiecesGiveTheSame) {
  std::mt19937 random(5);
  std::vector<uint8_t> bytes(40000);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  uint32_t expected = crc32c(bytes);
  for (int repeat = 0; repeat < 50; ++repeat) {
    uint32_t crc = 0;
    for (size_t at = 0; at < bytes.size();) {
      size_t take = std::min<size_t>(random() % 20000, bytes.size() - at);
      crc = crc32c({bytes.data() + at, take}, crc);
      at += take;
    }
    ASSERT_EQ(crc, expected);
  }
}

TEST(Crc32cTest, FindsEveryFlippedBit) {
  std::vector<uint8_t> bytes(1536, 0x5a);
  uint32_t expected = crc32c(bytes);
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    ASSERT_NE(crc32c(bytes), expected) << bit;
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
}

}  // namespace
}  // namespace taco
