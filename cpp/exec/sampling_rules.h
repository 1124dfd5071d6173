// The rules of SamplingParams that forbid tokens because of what a sequence holds so far.
#pragma once

#include <algorithm>
#include <span>

#include "sched/sequence.h"

namespace taco {

// forbid(id) for each token that bad_words, no_repeat_ngram_size or min_tokens rule out for the next output
// token; ids may come twice, and may lie outside the vocabulary.
template <typename Forbid>
void for_each_forbidden(const Sequence& sequence, Forbid&& forbid) {
  const SamplingParams& p = *sequence.params;
  // The last token of a bad word is forbidden where the output ends with the rest of it.
  std::span<const int32_t> output = sequence.output();
  for (const auto& word : p.bad_words) {
    if (word.empty() || word.size() - 1 > output.size()) continue;
    if (std::equal(word.begin(), word.end() - 1, output.end() - static_cast<ptrdiff_t>(word.size() - 1)))
      forbid(word.back());
  }
  // Every n-gram of prompt and output may occur once: what followed an earlier occurrence of the last n - 1
  // tokens is forbidden.
  std::span<const int32_t> tokens = sequence.tokens;
  const size_t n = static_cast<size_t>(std::max(p.no_repeat_ngram_size, 0));
  if (n > 0 && tokens.size() >= n) {
    auto last = tokens.last(n - 1);
    for (size_t i = 0; i + n <= tokens.size(); ++i) {
      if (std::equal(last.begin(), last.end(), tokens.begin() + static_cast<ptrdiff_t>(i)))
        forbid(tokens[i + n - 1]);
    }
  }
  if (sequence.output_len() < p.min_tokens) {
    if (!p.ignore_eos)
      for (int32_t id : p.eos_token_ids) forbid(id);
    for (int32_t id : p.stop_token_ids) forbid(id);
  }
}

}  // namespace taco
