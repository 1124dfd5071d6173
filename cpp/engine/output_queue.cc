#include "engine/output_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "base/error.h"

namespace taco {

OutputQueue::OutputQueue() : event_fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (event_fd_ < 0) fail(ErrorCode::kResourceExhausted, "eventfd: ", std::strerror(errno));
}

OutputQueue::~OutputQueue() { ::close(event_fd_); }

void OutputQueue::append(Output& to, Output&& delta) {
  to.text += delta.text;
  to.token_ids.insert(to.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  std::move(delta.logprobs.begin(), delta.logprobs.end(), std::back_inserter(to.logprobs));
  std::move(delta.prompt_logprobs.begin(), delta.prompt_logprobs.end(),
            std::back_inserter(to.prompt_logprobs));
  to.finish_reason = delta.finish_reason;
  to.stop_reason = std::move(delta.stop_reason);
  to.error = std::move(delta.error);
  to.cumulative_logprob = delta.cumulative_logprob;
  to.request_finished = delta.request_finished;
  to.num_output_tokens = delta.num_output_tokens;
  to.num_cached_tokens = delta.num_cached_tokens;
  to.times = delta.times;
  to.speculation = std::move(delta.speculation);
}

void OutputQueue::publish(std::vector<Item>& items) {
  if (items.empty()) return;
  bool wake;
  {
    std::lock_guard lock(mutex_);
    if (queue_.empty()) {  // else the reader has been told already
      uint64_t one = 1;
      // Cannot fail: the counter is at most 1.
      [[maybe_unused]] ssize_t written = ::write(event_fd_, &one, sizeof one);
    }
    for (Item& item : items) {
      if (item.slot->epoch == epoch_) {
        size_t at = item.slot->index;
        append(queue_[at], std::move(item.output));
        if (queue_[at].request_finished && at + 1 < queue_.size()) {
          // The last output of a request must come after those of its other sequences.
          Output last = std::move(queue_[at]);
          queue_[at].request = 0;  // a hole, which poll leaves out
          queue_.push_back(std::move(last));
        }
      } else {
        *item.slot = {epoch_, queue_.size()};
        queue_.push_back(std::move(item.output));
      }
    }
    wake = num_pollers_ > 0;
  }
  items.clear();
  if (wake) arrived_.notify_all();
}

void OutputQueue::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  arrived_.notify_all();
}

std::vector<Output> OutputQueue::poll(std::chrono::duration<double> timeout) {
  std::vector<Output> out;
  {
    std::unique_lock lock(mutex_);
    if (queue_.empty() && !closed_ && timeout.count() > 0) {
      constexpr double kLongest = 1e8;  // seconds; what a time point can hold
      auto until = std::chrono::steady_clock::now() +
                   std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                       std::chrono::duration<double>(std::min(timeout.count(), kLongest)));
      ++num_pollers_;
      arrived_.wait_until(lock, until, [&] { return !queue_.empty() || closed_; });
      --num_pollers_;
    }
    if (queue_.empty()) return out;
    uint64_t count;
    [[maybe_unused]] ssize_t read = ::read(event_fd_, &count, sizeof count);
    out.swap(queue_);
    ++epoch_;
  }
  std::erase_if(out, [](const Output& output) { return output.request == 0; });
  return out;
}

}  // namespace taco
