#include "base/digest.h"

#include <gtest/gtest.h>

#include <random>
#include <unordered_set>

#include "base/digest_kernels.h"

namespace taco {
namespace {

std::vector<uint8_t> bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

// FIPS 180-4's examples and those of NIST's "SHA256 example" sheet.
TEST(Sha256Test, NistVectors) {
  EXPECT_EQ(hex(sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex(sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(
      hex(sha256("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqr"
                 "lmnopqrsmnopqrstnopqrstu")),
      "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(hex(sha256(std::string(1'000'000, 'a'))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  // Whose padding just fits, and just does not.
  EXPECT_EQ(hex(sha256(std::string(55, '\0'))),
            "02779466cdec163811d078815c633f21901413081449002f24aa3e80f0b88ef7");
  EXPECT_EQ(hex(sha256(std::string(56, '\0'))),
            "d4817aa5497628e7c77e6b606107042bbba3130888c5f47a375e6179be789fbb");
  EXPECT_EQ(hex(sha256(std::string(64, '\0'))),
            "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b");
}

TEST(Sha256Test, PiecesOfAnyLengthGiveTheSameDigest) {
  std::mt19937 random(7);
  std::vector<uint8_t> message(1000);
  for (uint8_t& byte : message) byte = static_cast<uint8_t>(random());
  for (size_t length : {0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 999, 1000}) {
    std::span<const uint8_t> all(message.data(), length);
    Digest expected = sha256(all);
    for (int repeat = 0; repeat < 20; ++repeat) {
      Sha256 pieces;
      for (size_t at = 0; at < length;) {
        size_t take = std::min<size_t>(random() % 130, length - at);
        pieces.update(all.subspan(at, take));
        at += take;
      }
      ASSERT_EQ(pieces.finish(), expected) << length;
    }
  }
}

TEST(Sha256Test, KernelsAgree) {
  std::mt19937 random(11);
  std::vector<uint8_t> blocks(64 * 37 + 3);
  for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random());
  for (size_t count : {0, 1, 2, 3, 5, 37}) {
    for (size_t offset : {0, 1, 3}) {  // any alignment
      std::array<uint32_t, 8> expected, state;
      for (uint32_t& word : expected) word = static_cast<uint32_t>(random());
      std::array<uint32_t, 8> start = expected;
      sha256_kernels::compress_portable(expected.data(), blocks.data() + offset, count);
      for (auto kernel : sha256_kernels::available()) {
        state = start;
        kernel(state.data(), blocks.data() + offset, count);
        EXPECT_EQ(state, expected) << count << " blocks at offset " << offset;
      }
    }
  }
}

TEST(Sha256Test, IntegersAreLittleEndian) {
  std::vector<int32_t> values = {1, -2, 0x12345678};
  EXPECT_EQ(Sha256().update(values).finish(),
            sha256(bytes_of(std::string_view("\x01\0\0\0\xfe\xff\xff\xff\x78\x56\x34\x12", 12))));
}

TEST(DigestTest, HexRoundTripAndRefusals) {
  Digest digest = sha256("abc");
  EXPECT_EQ(digest_from_hex(hex(digest)), digest);
  EXPECT_FALSE(digest_from_hex(""));
  EXPECT_FALSE(digest_from_hex(hex(digest) + "0"));
  EXPECT_FALSE(digest_from_hex(hex(digest).substr(1)));
  std::string upper = hex(digest);
  upper[0] = 'B';
  EXPECT_FALSE(digest_from_hex(upper));
  upper[0] = 'g';
  EXPECT_FALSE(digest_from_hex(upper));
}

TEST(DigestTest, OrderAndHash) {
  Digest zero, one;
  one.bytes[31] = 1;
  EXPECT_LT(zero, one);
  EXPECT_NE(zero, one);
  std::unordered_set<Digest> set = {zero, one, zero};
  EXPECT_EQ(set.size(), 2u);
}

}  // namespace
}  // namespace taco
