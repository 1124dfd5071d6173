// Copies between host memory and a backend's memory beside its ops, and the points in time that tie both
// together.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace taco {

// A point in the order of the ops, or of a copy stream. Any thread may ask.
class Fence {
 public:
  virtual ~Fence() = default;
  virtual bool reached() = 0;
  // Between two timed fences of one copy stream that were reached.
  virtual double seconds_since(const Fence& earlier) const = 0;
};

struct PlacePair {
  char *device, *host;
};

// Of each place `rows` rows of `bytes` bytes, which stand `device_pitch` and `host_pitch` bytes apart: a KV
// block's part in several layers.
struct RowCopies {
  std::span<const PlacePair> places;
  int rows;
  size_t bytes, device_pitch, host_pitch;
};

enum class CopyDirection { kToDevice, kToHost };

// Copies in an order of their own. One thread uses it, which need not be that of the ops. Calls may return
// before the copies have run; the destructor waits for them. Host memory is of Backend::pin_host or
// allocate_host.
class CopyStream {
 public:
  virtual ~CopyStream() = default;
  // What follows begins after `fence`, one of the ops.
  virtual void wait_for(const Fence& fence) = 0;
  virtual void copy(CopyDirection direction, const RowCopies& copies) = 0;
  // After all copies so far.
  virtual std::shared_ptr<Fence> fence(bool timed) = 0;
};

// memcpy: every copy has run when its call returns.
void copy_rows(CopyDirection direction, const RowCopies& copies);
std::unique_ptr<CopyStream> make_host_copy_stream();
std::shared_ptr<Fence> make_host_fence();

}  // namespace taco
