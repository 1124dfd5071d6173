// Transfers of the null executor: made as early or as late as an executor may make them, at random.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "base/digest.h"
#include "cache/transfer.h"

namespace taco {

// Each transfer is copied when it begins or when it is reported, whichever the dice say, or when a step waits
// for it; a user who does not keep the rules of Executor::begin thus reads or loses the wrong values. All is
// copied in the caller's thread. Functions belong to it, but for hold and release.
class NullTransfers {
 public:
  // device and host: block_size values for each block; they must live on.
  NullTransfers(int block_size, std::span<uint64_t> device, std::span<uint64_t> host);
  ~NullTransfers();

  void begin(const Transfer& transfer);
  void wait_for(uint64_t id);  // makes its copies, and those that it comes after, if they were not made
  void finished(std::vector<TransferResult>& results);
  bool busy() const { return !open_.empty(); }
  void on_finished(std::function<void()> wake) { wake_ = std::move(wake); }

  // Each takes up to so long, at random; while nothing is begun.
  void set_delay(double seconds);
  // Besides, each waits for up to so many calls of finished(), of which an engine makes one for each step.
  void set_delay_calls(int calls) { delay_calls_ = calls; }
  // Reads from disk fail, each with this probability.
  void set_read_failures(double probability) { read_failures_ = probability; }
  // While held, nothing is reported. Any thread.
  void hold();
  void release();

 private:
  using Clock = std::chrono::steady_clock;
  struct Open {
    Transfer transfer;
    TransferResult result;
    bool copied = false;
    int calls = 0;  // of finished() still to wait for
    Clock::time_point ready;
  };
  struct Slot {
    Digest key;
    std::vector<uint64_t> values;
  };
  std::span<uint64_t> block(std::span<uint64_t> values, BlockId block) const;
  Open* find(uint64_t id);
  void copy(Open& open);
  void run_timer();

  const int block_size_;
  const std::span<uint64_t> device_, host_;
  std::deque<Open> open_;  // in the order of begin
  std::map<int64_t, Slot> disk_;
  std::mt19937 random_{1};
  double delay_ = 0, read_failures_ = 0;
  uint64_t last_begun_ = 0;
  int delay_calls_ = 0;
  std::function<void()> wake_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false, stopped_ = false;
  std::multimap<Clock::time_point, int> alarms_;
  std::thread timer_;
};

}  // namespace taco
