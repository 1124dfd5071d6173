// The number of a KV block in its pool.
#pragma once

#include <cstdint>

namespace taco {

using BlockId = int32_t;

struct BlockCopy {
  BlockId from, to;
};

}  // namespace taco
