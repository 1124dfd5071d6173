// The name of a cached block: a digest chained over all tokens up to its end.
#pragma once

#include <cstdint>
#include <span>

#include "base/digest.h"

namespace taco {

// `parent`: the key of the block before, or the root digest (model, LoRA, tenant, ...) for a first block.
// SHA-256(parent, token ids as little-endian int32), so that two blocks have one key only if all before them
// is the same, too.
inline Digest block_key(const Digest& parent, std::span<const int32_t> tokens) {
  return Sha256().update(parent).update(tokens).finish();
}

}  // namespace taco
