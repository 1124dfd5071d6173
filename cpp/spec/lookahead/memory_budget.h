// Counts the bytes that a cache holds against a bound.
#pragma once

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
    if (bytes > limit_ - used_ || (parent_ && !parent_->charge(bytes))) return false;
    used_ += bytes;
    if (used_ > peak_) peak_ = used_;
    return true;
  }
  void release(size_t bytes) {
    TACO_CHECK(bytes <= used_);
    used_ -= bytes;
    if (parent_) parent_->release(bytes);
  }
  size_t limit() const { return limit_; }
  size_t used() const { return used_; }
  size_t peak() const { return peak_; }

 private:
  size_t limit_, used_ = 0, peak_ = 0;
  MemoryBudget* parent_;
};

}  // namespace taco
