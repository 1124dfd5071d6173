// Counts the bytes that a cache holds against a bound.
#pragma once

#include <atomic>
#include <cstddef>

#include "base/error.h"

namespace taco {

class MemoryBudget {
 public:
  // What is charged here counts at `parent`, too.
  explicit MemoryBudget(size_t limit, MemoryBudget* parent = nullptr) : limit_(limit), parent_(parent) {}
  MemoryBudget(const MemoryBudget&) = delete;

  // Takes `bytes` before they are allocated; false, and nothing taken, if they would pass the bound.
  bool charge(size_t bytes) {
    if (bytes > limit_ - used() || (parent_ && !parent_->charge(bytes))) return false;
    used_.store(used() + bytes, std::memory_order_relaxed);
    if (used() > peak_) peak_ = used();
    return true;
  }
  void release(size_t bytes) {
    TACO_CHECK(bytes <= used());
    used_.store(used() - bytes, std::memory_order_relaxed);
    if (parent_) parent_->release(bytes);
  }
  size_t limit() const { return limit_; }
  size_t used() const { return used_.load(std::memory_order_relaxed); }  // from any thread
  size_t peak() const { return peak_; }

 private:
  size_t limit_, peak_ = 0;
  std::atomic<size_t> used_{0};
  MemoryBudget* parent_;
};

}  // namespace taco
