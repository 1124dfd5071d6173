#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"

namespace taco {
namespace {

using Clock = std::chrono::steady_clock;

// How long an idle worker polls for the next job before it sleeps. A decode step leaves gaps of a few
// microseconds between jobs; a wake-up from sleep costs some 50 us.
constexpr auto kSpinLong = std::chrono::microseconds(100);
constexpr auto kSpinShort = std::chrono::microseconds(10);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The processors this process may run on, grouped by physical core: hyper-threads of one core share its
// vector units, so a second one adds little to matrix products.
std::vector<cpu_set_t> allowed_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return {};
  std::vector<cpu_set_t> cores;
  std::set<std::string> seen;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings) || siblings.empty()) siblings = std::to_string(cpu);
    if (!seen.insert(siblings).second) continue;
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(cpu, &core);
    cores.push_back(core);
  }
  return cores;
}

// The cgroup's CPU quota in whole cores, rounded up; 0 when there is none.
int cgroup_cores() {
  std::vector<std::string> folders = {"/sys/fs/cgroup"};
  std::ifstream self("/proc/self/cgroup");
  for (std::string line; std::getline(self, line);) {
    if (line.rfind("0::/", 0) == 0 && line.size() > 4) folders.push_back("/sys/fs/cgroup" + line.substr(3));
  }
  int cores = 0;
  auto bound = [&](double quota, double period) {
    if (quota <= 0 || period <= 0) return;
    int n = std::max(1, static_cast<int>(quota / period + 0.999));
    cores = cores ? std::min(cores, n) : n;
  };
  for (const std::string& folder : folders) {
    std::ifstream file(folder + "/cpu.max");
    std::string quota;
    double period = 0;
    if (file >> quota >> period && quota != "max") bound(std::atof(quota.c_str()), period);
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (quota_file >> quota && period_file >> period) bound(quota, period);
  return cores;
}

}  // namespace

// Protocol: `run` publishes the job, then raises `epoch`; a worker that sees a new epoch runs the job and
// lowers `remaining`. A worker about to sleep first counts itself in `sleepers`, then looks at `epoch` once
// more; `run` raises `epoch`, then looks at `sleepers`. Both are sequentially consistent, so one of them sees
// the other.
struct ThreadPool::State {
  alignas(64) std::atomic<uint64_t> epoch{0};
  std::atomic<bool> parked{false};
  Job job = nullptr;
  void* context = nullptr;
  alignas(64) std::atomic<int> remaining{0};
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> running{false};
  bool spin = true;
  std::mutex mutex;
  std::condition_variable wake;
  std::exception_ptr error;  // the first thrown by a job; under `mutex`
  std::vector<std::thread> workers;

  void call(Job fn, void* ctx, int thread, int threads) {
    try {
      fn(ctx, thread, threads);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  // Returns once `epoch` differs from `seen`; true when it had to sleep for it.
  bool wait_for_job(uint64_t seen, Clock::duration budget) {
    if (spin) {
      auto deadline = Clock::now() + budget;
      while (!parked.load(std::memory_order_relaxed)) {
        for (int i = 0; i < 32; ++i) {
          if (epoch.load(std::memory_order_acquire) != seen) return false;
          relax();
        }
        if (Clock::now() > deadline) break;
      }
    }
    std::unique_lock lock(mutex);
    sleepers.fetch_add(1);
    wake.wait(lock, [&] { return epoch.load() != seen; });
    sleepers.fetch_sub(1);
    return true;
  }

  void work(int thread, int threads) {
    uint64_t seen = 0;
    Clock::duration budget = kSpinLong;
    for (;;) {
      bool slept = wait_for_job(seen, budget);
      // Jobs that come far apart are not worth polling for; ones that follow each other are.
      budget = slept ? std::max<Clock::duration>(budget / 2, kSpinShort) : kSpinLong;
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      call(job, context, thread, threads);
      remaining.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), state_(std::make_unique<State>()) {
  TACO_REQUIRE(num_threads >= 0 && num_threads <= 4096,
               "num_threads must be between 0 (one for each core) and 4096, got ", num_threads);
  std::vector<cpu_set_t> cores = allowed_cores();
  int available = std::max<int>(1, static_cast<int>(cores.size()));
  if (num_threads_ == 0) {
    num_threads_ = available;
    if (int quota = cgroup_cores(); quota > 0) num_threads_ = std::min(num_threads_, quota);
  }
  // Polling on cores that others need makes both slow.
  state_->spin = num_threads_ <= available;
  // Workers are pinned only when the pool takes every core it may use: two processes that each pin a part of
  // the machine would choose the same part. The caller is never pinned: it may be a thread of Python, whose
  // later threads would inherit the mask. The first core is left free of workers, so that the scheduler puts
  // it there.
  const char* env = std::getenv("TACO_CPU_PIN");
  bool pin = num_threads_ == available && available > 1 && !(env && std::string_view(env) == "0");
  state_->workers.reserve(num_threads_ - 1);
  for (int t = 1; t < num_threads_; ++t) {
    State* state = state_.get();
    int threads = num_threads_;
    state_->workers.emplace_back([state, t, threads] { state->work(t, threads); });
    pthread_t handle = state_->workers.back().native_handle();
    pthread_setname_np(handle, ("taco-cpu-" + std::to_string(t)).c_str());
    if (pin) pthread_setaffinity_np(handle, sizeof(cpu_set_t), &cores[t]);
  }
}

ThreadPool::~ThreadPool() {
  state_->stop = true;
  {
    std::lock_guard lock(state_->mutex);
    state_->epoch.fetch_add(1);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::run(Job job, void* context) {
  if (num_threads_ == 1) {
    job(context, 0, 1);
    return;
  }
  State& s = *state_;
  TACO_CHECK(!s.running.exchange(true, std::memory_order_acquire), "a job of this pool is running already");
  s.job = job;
  s.context = context;
  s.parked.store(false, std::memory_order_relaxed);
  s.remaining.store(num_threads_ - 1, std::memory_order_relaxed);
  s.epoch.fetch_add(1);
  if (s.sleepers.load() > 0) {
    { std::lock_guard lock(s.mutex); }
    s.wake.notify_all();
  }
  s.call(job, context, 0, num_threads_);
  // The others finish about now. One that was preempted takes longer: let it have this core.
  for (int polls = 0; s.remaining.load(std::memory_order_acquire) != 0; ++polls) {
    if (s.spin && polls < 20000) {
      relax();
    } else {
      sched_yield();
    }
  }
  std::exception_ptr error;
  {
    // Uncontended: every worker has left its job.
    std::lock_guard lock(s.mutex);
    error = std::exchange(s.error, nullptr);
  }
  s.running.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

void ThreadPool::park() { state_->parked.store(true, std::memory_order_relaxed); }

}  // namespace taco
