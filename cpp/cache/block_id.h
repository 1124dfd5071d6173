// The number of a KV block in its pool.
#pragma once

#include <cstdint>

namespace taco {

using BlockId = int32_t;

struct BlockCopy {
  BlockId from, to;
};

// Between the device's pool and the host's (swap space).
struct BlockMove {
  BlockId device, host;
};

}  // namespace taco
