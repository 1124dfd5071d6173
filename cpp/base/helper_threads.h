// Threads that help a caller with independent items of a millisecond or so in all.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace taco {

// Unlike a ThreadPool's, these threads sleep between jobs and take items as they come: the caller begins at
// once, and waits for items that a helper has begun, never for a helper that is still on its way. On a busy
// machine it does everything itself.
class HelperThreads {
 public:
  static constexpr int kMostItems = 65535;

  explicit HelperThreads(int helpers);  // beside the caller
  ~HelperThreads();
  HelperThreads(const HelperThreads&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }  // with the caller

  // fn(item, thread) for items [0, count), count at most kMostItems, thread < size(); the caller is thread 0.
  // One caller at a time. Throws, after all items, what the first one that failed has thrown.
  template <typename Fn>
  void run(int count, Fn&& fn) {
    run([](void* c, int item, int thread) { (*static_cast<std::remove_reference_t<Fn>*>(c))(item, thread); },
        const_cast<void*>(static_cast<const void*>(&fn)), count);
  }

 private:
  using Job = void (*)(void* context, int item, int thread);

  void run(Job job, void* context, int count);
  bool take_one(int thread);
  void work(int thread);

  // The job's number (32 bits), its items (16) and the next of them (16) in one word: who takes an item of
  // it knows that the job is still there.
  alignas(64) std::atomic<uint64_t> next_{0};
  alignas(64) std::atomic<int> done_{0};
  Job job_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> calls_{0};  // what sleeping helpers wait for to change
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr error_;  // under mutex_
  std::vector<std::thread> threads_;
};

}  // namespace taco
