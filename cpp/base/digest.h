// SHA-256 (FIPS 180-4): what is told apart by content alone (prefix cache keys, model weights) is named by
// it.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace taco {

struct Digest {
  std::array<uint8_t, 32> bytes{};
  friend auto operator<=>(const Digest&, const Digest&) = default;
};

// 64 lower case hexadecimal digits, and back; nothing for any other text.
std::string hex(const Digest& digest);
std::optional<Digest> digest_from_hex(std::string_view text);

// Takes a message in pieces of any length. One object makes one digest.
class Sha256 {
 public:
  Sha256();
  Sha256& update(std::span<const uint8_t> bytes);
  Sha256& update(std::string_view text) {
    return update({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  Sha256& update(const Digest& digest) { return update(std::span<const uint8_t>(digest.bytes)); }
  Sha256& update(std::span<const int32_t> values);  // each as four bytes, the lowest first
  Digest finish();

 private:
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> block_;
  uint64_t length_ = 0;  // bytes so far
};

Digest sha256(std::span<const uint8_t> bytes);
inline Digest sha256(std::string_view text) { return Sha256().update(text).finish(); }

}  // namespace taco

template <>
struct std::hash<taco::Digest> {
  // A digest's bytes are as good as random already.
  size_t operator()(const taco::Digest& digest) const noexcept {
    size_t value;
    std::memcpy(&value, digest.bytes.data(), sizeof value);
    return value;
  }
};
