#include "cache/disk_uses.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "cache/disk_format.h"

namespace taco {
namespace {

constexpr size_t kPageUses = disk_format::kPage / sizeof(uint64_t);

std::span<uint8_t> bytes_of(uint64_t* uses, size_t count) {
  return {reinterpret_cast<uint8_t*>(uses), count * sizeof(uint64_t)};
}

}  // namespace

void DiskUses::open(const File& folder, int64_t slots, bool fresh) {
  folder_ = &folder;
  uses_.assign(static_cast<size_t>(slots), 0);
  dirty_.assign((uses_.size() + kPageUses - 1) / kPageUses, false);
  file_ = open_file(folder, kUsesName, fresh ? O_RDWR | O_TRUNC : O_RDWR);
  if (!file_ || fresh) return;
  const auto size = size_of(file_);
  const size_t there = size ? static_cast<size_t>(size->bytes) / sizeof(uint64_t) : 0;
  if (!read_fully(file_, bytes_of(uses_.data(), std::min(there, uses_.size())), 0))
    std::fill(uses_.begin(), uses_.end(), uint64_t{0});
  for (uint64_t& use : uses_)
    if (use > kMost) use = 0;
}

uint64_t DiskUses::of(int64_t slot) const {
  std::lock_guard lock(mutex_);
  return uses_[static_cast<size_t>(slot)];
}

uint64_t DiskUses::latest() const {
  std::lock_guard lock(mutex_);
  return uses_.empty() ? 0 : *std::max_element(uses_.begin(), uses_.end());
}

void DiskUses::set(int64_t slot, uint64_t use) {
  std::lock_guard lock(mutex_);
  uses_[static_cast<size_t>(slot)] = use;
  dirty_[static_cast<size_t>(slot) / kPageUses] = true;
  any_dirty_ = true;
}

bool DiskUses::dirty() const {
  std::lock_guard lock(mutex_);
  return any_dirty_;
}

void DiskUses::flush() {
  std::lock_guard flushing(flushing_);
  std::vector<uint64_t> page(kPageUses);
  for (size_t i = 0; i < dirty_.size(); ++i) {
    size_t count;
    {
      std::lock_guard lock(mutex_);
      if (i == 0 && !std::exchange(any_dirty_, false)) return;
      if (!dirty_[i]) continue;
      dirty_[i] = false;
      count = std::min(kPageUses, uses_.size() - i * kPageUses);
      std::copy_n(uses_.begin() + static_cast<std::ptrdiff_t>(i * kPageUses), count, page.begin());
    }
    if (!file_) file_ = open_file(*folder_, kUsesName, O_RDWR | O_CREAT);
    if (!file_ ||
        !write_fully(file_, bytes_of(page.data(), count), static_cast<int64_t>(i * disk_format::kPage)))
      return;
  }
}

}  // namespace taco
