// What the disk tier is asked and told beside transfers.
#pragma once

#include <cstdint>
#include <span>

namespace taco {

class DiskTier {
 public:
  virtual ~DiskTier() = default;
  // Whether reads and writes may still succeed.
  virtual bool can_read() const = 0;
  virtual bool can_write() const = 0;
  // The blocks of these slots were used, the last one last: after a restart those unused for longest leave
  // first. Does not wait for the disk.
  virtual void used(std::span<const int64_t> slots) = 0;
  // All slots are empty from now on. Does not wait for the disk. Returns how often it was called: records
  // made from then on carry that (DiskRecord::resets), and what was to be written of before is not.
  virtual uint64_t reset() = 0;
  // Waits until the resets so far hold for restarts, too. False: that could not be had, and what was there
  // before may come back.
  virtual bool settle() = 0;
};

}  // namespace taco
