#include "engine/detokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/utf8.h"

namespace taco {

Detokenizer::Detokenizer(std::shared_ptr<const Vocabulary> vocabulary,
                         std::shared_ptr<const SamplingParams> params, bool at_text_start)
    : vocabulary_(std::move(vocabulary)),
      params_(std::move(params)),
      strip_space_(at_text_start && vocabulary_->strip_leading_space()) {
  matchers_.reserve(params_->stop.size());
  for (const std::string& stop : params_->stop) {
    Matcher& m = matchers_.emplace_back();
    m.retry.assign(stop.size() + 1, 0);
    for (size_t i = 1, k = 0; i < stop.size(); ++i) {
      while (k > 0 && stop[i] != stop[k]) k = m.retry[k];
      if (stop[i] == stop[k]) ++k;
      m.retry[i + 1] = static_cast<uint16_t>(k);
    }
  }
}

std::optional<std::string> Detokenizer::add(int32_t token, bool stops_active, std::string& text) {
  if (params_->skip_special_tokens && vocabulary_->is_special(token)) return std::nullopt;
  std::string_view piece = vocabulary_->piece(token);
  if (strip_space_ && !piece.empty()) {
    strip_space_ = false;
    if (piece.front() == ' ') piece.remove_prefix(1);
  }
  if (matchers_.empty() && pending_.empty()) {  // nearly always: no copy of the bytes
    pending_.append(piece.substr(append_utf8(piece, false, text)));
    return std::nullopt;
  }

  const size_t before = pending_.size();
  pending_.append(piece);
  size_t held = 0;
  if (!matchers_.empty()) {
    for (size_t i = before; i < pending_.size(); ++i) {
      const std::string* found = nullptr;
      for (size_t s = 0; s < matchers_.size(); ++s) {
        const std::string& stop = params_->stop[s];
        Matcher& m = matchers_[s];
        if (m.matched == stop.size()) m.matched = m.retry[m.matched];
        while (m.matched > 0 && pending_[i] != stop[m.matched]) m.matched = m.retry[m.matched];
        if (pending_[i] == stop[m.matched]) ++m.matched;
        if (stops_active && m.matched == stop.size() && (!found || stop.size() > found->size()))
          found = &stop;
      }
      if (found) {
        size_t end = i + 1 - (params_->include_stop_str_in_output ? 0 : found->size());
        append_utf8(std::string_view(pending_).substr(0, end), true, text);
        pending_.clear();
        return *found;
      }
    }
    for (size_t s = 0; s < matchers_.size(); ++s) {
      const Matcher& m = matchers_[s];
      held = std::max<size_t>(held, m.matched == params_->stop[s].size() ? m.retry[m.matched] : m.matched);
    }
  }
  std::string_view free = std::string_view(pending_).substr(0, pending_.size() - held);
  pending_.erase(0, append_utf8(free, false, text));
  return std::nullopt;
}

void Detokenizer::finish(std::string& text) {
  append_utf8(pending_, true, text);
  pending_.clear();
}

}  // namespace taco
