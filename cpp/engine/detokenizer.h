// From a sequence's tokens to text, token by token: UTF-8 assembly and stop strings at byte level.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/vocabulary.h"
#include "sched/sampling_params.h"

namespace taco {

// Text leaves only in whole code points, and only what can no longer become part of a stop string: the
// longest suffix that is a proper prefix of some stop string is held back, nothing more. Invalid UTF-8
// becomes U+FFFD (one per maximal ill-formed subpart, as Python's errors="replace"), but an incomplete tail
// waits for its rest.
//
// The stop string that counts is the one whose last byte comes first, and the longest of those that end
// there: so the text does not depend on how the bytes are cut into tokens.
class Detokenizer {
 public:
  // at_text_start: nothing but special tokens comes before, so that the vocabulary's strip_leading_space
  // applies. What follows a prompt keeps its space.
  Detokenizer(std::shared_ptr<const Vocabulary> vocabulary, std::shared_ptr<const SamplingParams> params,
              bool at_text_start = false);

  // Appends the text that `token` releases to `text`. Returns the stop string that it completed, if any; the
  // text then ends before it (or after it under include_stop_str_in_output), and nothing may be added any
  // more. stops_active is false while min_tokens is not reached: stop strings are then not looked for.
  std::optional<std::string> add(int32_t token, bool stops_active, std::string& text);

  // The end of the sequence: appends what was held back.
  void finish(std::string& text);

 private:
  struct Matcher {  // Knuth, Morris and Pratt, over bytes
    std::vector<uint16_t>
        retry;           // retry[i]: longest proper prefix of stop that is a suffix of its first i bytes
    size_t matched = 0;  // bytes of stop that the stream ends with
  };

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::shared_ptr<const SamplingParams> params_;
  std::vector<Matcher> matchers_;  // one per stop string
  std::string pending_;            // bytes not yet released
  bool strip_space_;
};

}  // namespace taco
