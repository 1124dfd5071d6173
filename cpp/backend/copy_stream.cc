#include "backend/copy_stream.h"

#include <chrono>
#include <cstring>

namespace taco {
namespace {

using Clock = std::chrono::steady_clock;

struct HostFence final : Fence {
  Clock::time_point when = Clock::now();
  bool reached() override { return true; }
  double seconds_since(const Fence& earlier) const override {
    return std::chrono::duration<double>(when - static_cast<const HostFence&>(earlier).when).count();
  }
};

struct HostCopyStream final : CopyStream {
  void wait_for(const Fence&) override {}
  void copy(CopyDirection direction, const RowCopies& copies) override { copy_rows(direction, copies); }
  std::shared_ptr<Fence> fence(bool) override { return make_host_fence(); }
};

}  // namespace

void copy_rows(CopyDirection direction, const RowCopies& copies) {
  for (const PlacePair& place : copies.places) {
    for (int row = 0; row < copies.rows; ++row) {
      char* device = place.device + static_cast<size_t>(row) * copies.device_pitch;
      char* host = place.host + static_cast<size_t>(row) * copies.host_pitch;
      if (direction == CopyDirection::kToDevice) {
        std::memcpy(device, host, copies.bytes);
      } else {
        std::memcpy(host, device, copies.bytes);
      }
    }
  }
}

std::unique_ptr<CopyStream> make_host_copy_stream() { return std::make_unique<HostCopyStream>(); }
std::shared_ptr<Fence> make_host_fence() { return std::make_shared<HostFence>(); }

}  // namespace taco
