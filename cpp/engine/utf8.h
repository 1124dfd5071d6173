// Whole code points out of a stream of bytes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace taco {

// Appends the text of `bytes` to `text`. Each maximal ill-formed subpart (Unicode, table 3-7; Python's
// errors="replace") becomes U+FFFD. An incomplete code point at the end is left: the number of bytes consumed
// is returned. With `final` it becomes U+FFFD too, and everything is consumed.
size_t append_utf8(std::string_view bytes, bool final, std::string& text);

}  // namespace taco
