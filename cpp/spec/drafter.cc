#include "spec/drafter.h"

#include <algorithm>

namespace taco {

int64_t tokens_to_learn(int rows, double step_seconds, bool beside_device) {
  constexpr int64_t kLeast = 256;
  constexpr double kShare = 0.01, kDeviceShare = 0.15, kTokenSeconds = 1e-6;
  const double seconds = (beside_device ? kDeviceShare : kShare) * step_seconds;
  return std::max({kLeast, int64_t{rows}, static_cast<int64_t>(seconds / kTokenSeconds)});
}

}  // namespace taco
