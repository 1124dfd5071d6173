// When the blocks on disk were last used, so that a restart knows which are to go first.
//
// A file of one number for each slot, the larger the later, written in place now and then and never synced.
// It decides an order and nothing else: what is lost, torn or made up costs a good choice, never a block.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "cache/disk_file.h"

namespace taco {

inline constexpr const char* kUsesName = "uses";

// Any thread may call any method.
class DiskUses {
 public:
  // Larger ones are not believed: there is room above for all that come.
  static constexpr uint64_t kMost = uint64_t{1} << 61;

  // What is in the folder, for so many slots; `fresh`: nothing is. The folder must stay open.
  void open(const File& folder, int64_t slots, bool fresh);
  uint64_t of(int64_t slot) const;
  uint64_t latest() const;
  void set(int64_t slot, uint64_t use);
  bool dirty() const;
  // Writes what was set since the last time. What cannot be written is given up.
  void flush();

 private:
  const File* folder_ = nullptr;
  File file_;
  mutable std::mutex mutex_;  // of all below
  std::vector<uint64_t> uses_;
  std::vector<bool> dirty_;  // pages
  bool any_dirty_ = false;
  std::mutex flushing_;
};

}  // namespace taco
