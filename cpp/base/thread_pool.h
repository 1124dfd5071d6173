// A pool of threads that spin for a short while between jobs and then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace taco {

// One job at a time, started by one caller thread, which takes part as thread 0.
// `run` returns when every thread has left `fn`. Threads are pinned to the cores that the process may use
// unless TACO_CPU_PIN=0.
class ThreadPool {
 public:
  // num_threads counts the caller; 0 means one for each core the process may use.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // A job is a plain function pointer and its context: no allocation per call.
  using Job = void (*)(void* context, int thread, int num_threads);
  void run(Job job, void* context);

  // fn(thread, num_threads) on every thread.
  template <typename Fn>
  void run(Fn&& fn) {
    run([](void* c, int t, int n) { (*static_cast<std::remove_reference_t<Fn>*>(c))(t, n); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // fn(begin, end) on a static split of [0, count); `grain` is the least worth a thread of its own.
  template <typename Fn>
  void parallel_for(int64_t count, int64_t grain, Fn&& fn) {
    if (count <= 0) return;
    if (num_threads_ == 1 || count <= grain) {
      fn(int64_t{0}, count);
      return;
    }
    run([&](int thread, int threads) {
      int64_t per = (count + threads - 1) / threads;
      int64_t begin = thread * per, end = begin + per < count ? begin + per : count;
      if (begin < end) fn(begin, end);
    });
  }

  // Lets the threads sleep at once instead of spinning: called when the engine goes idle.
  void park();

 private:
  struct State;
  int num_threads_;
  std::unique_ptr<State> state_;
};

}  // namespace taco
