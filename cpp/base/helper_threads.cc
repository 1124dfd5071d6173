#include "base/helper_threads.h"

#include <pthread.h>
#include <sched.h>

#include <string>
#include <utility>

#include "base/error.h"

namespace taco {
namespace {

constexpr uint64_t word(uint32_t number, int count) {
  return uint64_t{number} << 32 | static_cast<uint64_t>(count) << 16;
}
int count_of(uint64_t word) { return static_cast<int>(word >> 16 & 0xffff); }
int next_of(uint64_t word) { return static_cast<int>(word & 0xffff); }

}  // namespace

HelperThreads::HelperThreads(int helpers) {
  TACO_REQUIRE(helpers >= 0, "a number of helping threads must be at least 0, not ", helpers);
  for (int i = 1; i <= helpers; ++i) {
    threads_.emplace_back([this, i] { work(i); });
    pthread_setname_np(threads_.back().native_handle(), ("taco-help-" + std::to_string(i)).c_str());
  }
}

HelperThreads::~HelperThreads() {
  stop_ = true;
  calls_.fetch_add(1);
  calls_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool HelperThreads::take_one(int thread) {
  uint64_t word = next_.load(std::memory_order_acquire);
  do {
    if (next_of(word) >= count_of(word)) return false;
  } while (!next_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel));
  try {
    job_(context_, next_of(word), thread);
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void HelperThreads::run(Job job, void* context, int count) {
  TACO_CHECK(count >= 0 && count <= kMostItems, count, " items");
  job_ = job;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  const auto number = static_cast<uint32_t>(next_.load(std::memory_order_relaxed) >> 32) + 1;
  next_.store(word(number, count), std::memory_order_release);
  if (count > 1 && !threads_.empty()) {
    calls_.fetch_add(1);
    calls_.notify_all();
  }
  while (take_one(0)) {
  }
  // What helpers have begun; one that was preempted gets this core.
  for (int polls = 0; done_.load(std::memory_order_acquire) < count; ++polls)
    if (polls > 2000) sched_yield();
  std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void HelperThreads::work(int thread) {
  for (uint32_t seen = 0;;) {
    calls_.wait(seen);
    seen = calls_.load();
    if (stop_) return;
    while (take_one(thread)) {
    }
  }
}

}  // namespace taco
