// What other threads want of the engine thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/engine_request.h"

namespace taco {

class EngineLoop;

// Something for the engine thread to do between two steps; null: it will never run again.
using EngineTask = std::function<void(EngineLoop*)>;

struct Mail {
  std::vector<std::unique_ptr<EngineRequest>> submissions;
  std::vector<RequestId> aborts;
  RequestId abort_before = 0;  // all requests with a smaller number
  std::vector<EngineTask> tasks;
  bool stop = false;
  bool empty() const {
    return submissions.empty() && aborts.empty() && abort_before == 0 && tasks.empty() && !stop;
  }
};

class Inbox {
 public:
  explicit Inbox(int64_t max_waiting) : max_waiting_(max_waiting) {}

  // Throws kUnavailable (draining, dead, stopped, queue full). The number of the request is what
  // `make(number)` gets to make it.
  template <typename Make>
  RequestId submit(Make&& make);
  void abort(RequestId request);
  void abort_all();
  // Throws kUnavailable where no thread would do it.
  void ask(EngineTask task);
  void stop();
  // Ends a wait, this one or the next. Any thread.
  void wake();

  // For the engine thread. fetch never waits; wait returns when there is something, somebody says wake, or
  // the time is over.
  void fetch(Mail& mail);
  void wait(std::chrono::duration<double> at_most = std::chrono::duration<double>::max());
  // `scheduled` requests left the queue, `finished` are done (their last output is published).
  void account(int64_t scheduled, int64_t finished);
  // The engine thread ends here: what it was still asked to do is told so.
  void close();
  // Nothing is accepted any more; what had been submitted and not yet fetched is in `mail`.
  void die(const std::string& reason, Mail& mail);

  bool drain(std::chrono::duration<double> timeout);
  int64_t num_unfetched() const;

 private:
  void check_open() const;  // under the lock

  const int64_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_, all_finished_;
  Mail mail_;
  RequestId next_request_ = 1;
  int64_t num_waiting_ = 0;  // submitted and never scheduled
  int64_t num_unfinished_ = 0;
  bool draining_ = false, stopped_ = false, dead_ = false, closed_ = false, woken_ = false;
  std::string death_reason_;
};

template <typename Make>
RequestId Inbox::submit(Make&& make) {
  RequestId number;
  {
    std::lock_guard lock(mutex_);
    check_open();
    number = next_request_++;
  }
  // Made outside the lock: it copies the prompt and allocates.
  std::unique_ptr<EngineRequest> request = make(number);
  {
    std::lock_guard lock(mutex_);
    check_open();
    mail_.submissions.push_back(std::move(request));
    ++num_waiting_;
    ++num_unfinished_;
  }
  arrived_.notify_one();
  return number;
}

}  // namespace taco
