#pragma once

#include <string>
#include <string_view>

namespace taco {

// Appends `text` (UTF-8) to `out`, escaped for the inside of a JSON string, without the quotes around it:
// quote, backslash and the control characters below U+0020. Everything else passes as it is.
void append_json_escaped(std::string_view text, std::string& out);

inline std::string json_escape(std::string_view text) {
  std::string out;
  append_json_escaped(text, out);
  return out;
}

}  // namespace taco
