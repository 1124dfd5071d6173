// The bytes of each token, for turning ids into text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace taco {

class Vocabulary {
 public:
  // pieces[id]: the bytes that the token stands for (a SentencePiece "▁" already made a space, <0x0A> already
  // the byte). special: ids left out of the text under skip_special_tokens.
  // strip_leading_space: one leading space of a text is dropped (SentencePiece's dummy prefix), for a text
  // that starts at the beginning of the sequence.
  Vocabulary(std::vector<std::string> pieces, const std::vector<int32_t>& special, bool strip_leading_space);

  int size() const { return static_cast<int>(pieces_.size()); }
  std::string_view piece(int32_t id) const {  // empty for an id out of range
    return id >= 0 && id < size() ? std::string_view(pieces_[static_cast<size_t>(id)]) : std::string_view();
  }
  bool is_special(int32_t id) const { return id >= 0 && id < size() && special_[static_cast<size_t>(id)]; }
  bool strip_leading_space() const { return strip_leading_space_; }

 private:
  std::vector<std::string> pieces_;
  std::vector<bool> special_;
  bool strip_leading_space_;
};

}  // namespace taco
