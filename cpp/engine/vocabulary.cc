#include "engine/vocabulary.h"

#include <utility>

#include "base/error.h"

namespace taco {

Vocabulary::Vocabulary(std::vector<std::string> pieces, const std::vector<int32_t>& special,
                       bool strip_leading_space)
    : pieces_(std::move(pieces)), special_(pieces_.size(), false), strip_leading_space_(strip_leading_space) {
  for (int32_t id : special) {
    TACO_REQUIRE(id >= 0 && id < size(), "special token id ", id, " is not in the vocabulary of ", size(),
                 " pieces.");
    special_[static_cast<size_t>(id)] = true;
  }
}

}  // namespace taco
