#include "engine/utf8.h"

#include <algorithm>
#include <cstdint>

namespace taco {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// What may follow a lead byte: the length of the code point (0: not a lead) and the range of the second byte,
// which shuts out overlong forms, surrogates and what is beyond U+10FFFF.
struct Lead {
  size_t length;
  uint8_t low, high;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte < 0xF0)
    return {3, static_cast<uint8_t>(byte == 0xE0 ? 0xA0 : 0x80),
            static_cast<uint8_t>(byte == 0xED ? 0x9F : 0xBF)};
  if (byte < 0xF5)
    return {4, static_cast<uint8_t>(byte == 0xF0 ? 0x90 : 0x80),
            static_cast<uint8_t>(byte == 0xF4 ? 0x8F : 0xBF)};
  return {0, 0, 0};
}

}  // namespace

size_t append_utf8(std::string_view bytes, bool final, std::string& text) {
  size_t i = 0, valid_from = 0;  // [valid_from, i) is well-formed and not yet appended
  while (i < bytes.size()) {
    Lead lead = lead_of(static_cast<uint8_t>(bytes[i]));
    size_t good = lead.length == 0 ? 0 : 1;
    while (good > 0 && good < lead.length && i + good < bytes.size()) {
      uint8_t byte = static_cast<uint8_t>(bytes[i + good]);
      bool fits = good == 1 ? byte >= lead.low && byte <= lead.high : byte >= 0x80 && byte <= 0xBF;
      if (!fits) break;
      ++good;
    }
    if (good > 0 && good == lead.length) {
      i += good;
      continue;
    }
    text.append(bytes, valid_from, i - valid_from);
    if (good > 0 && i + good == bytes.size() && !final) return i;
    text.append(kReplacement);
    i += std::max<size_t>(good, 1);
    valid_from = i;
  }
  text.append(bytes, valid_from, i - valid_from);
  return i;
}

}  // namespace taco
