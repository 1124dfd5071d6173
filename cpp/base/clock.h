#pragma once

#include <chrono>

namespace taco {

// Seconds of the monotonic clock (Python's time.monotonic()).
inline double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace taco
