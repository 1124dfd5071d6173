// Outputs on their way from the engine thread to whoever polls.
#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "engine/engine.h"

namespace taco {

// Where in the queue the last undelivered Output of one sequence lies, if it has not been polled yet.
struct OutputSlot {
  uint64_t epoch = 0;
  size_t index = 0;
};

// Deltas of one sequence that nobody has fetched yet become one: the queue never holds more Outputs than
// there are sequences, however slow its reader.
class OutputQueue {
 public:
  struct Item {
    Output output;
    OutputSlot* slot;  // of the sequence
  };

  OutputQueue();
  ~OutputQueue();
  OutputQueue(const OutputQueue&) = delete;

  // Takes the outputs out of `items` and empties it. One write to the eventfd at most, and none while an
  // earlier one has not been answered by a poll.
  void publish(std::vector<Item>& items);
  // No more will come: poll no longer waits.
  void close();
  std::vector<Output> poll(std::chrono::duration<double> timeout);
  int event_fd() const { return event_fd_; }

 private:
  static void append(Output& to, Output&& delta);

  int event_fd_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Output> queue_;
  uint64_t epoch_ = 1;  // grows with each poll
  int num_pollers_ = 0;
  bool closed_ = false;
};

}  // namespace taco
