#include "engine/inbox.h"

#include <algorithm>

#include "base/error.h"

namespace taco {

void Inbox::check_open() const {
  if (dead_) fail(ErrorCode::kUnavailable, "the engine is dead: ", death_reason_);
  if (stopped_) fail(ErrorCode::kUnavailable, "the engine has been shut down");
  if (draining_) fail(ErrorCode::kUnavailable, "the engine is draining: it accepts no new requests");
  if (max_waiting_ >= 0 && num_waiting_ >= max_waiting_) {
    fail(ErrorCode::kUnavailable, "the queue is full: ", num_waiting_, " requests are waiting");
  }
}

void Inbox::abort(RequestId request) {
  {
    std::lock_guard lock(mutex_);
    if (dead_ || stopped_) return;
    mail_.aborts.push_back(request);
  }
  arrived_.notify_one();
}

void Inbox::abort_all() {
  {
    std::lock_guard lock(mutex_);
    if (dead_ || stopped_) return;
    mail_.abort_before = next_request_;
  }
  arrived_.notify_one();
}

void Inbox::ask(EngineTask task) {
  {
    std::lock_guard lock(mutex_);
    if (dead_) fail(ErrorCode::kUnavailable, "the engine is dead: ", death_reason_);
    if (stopped_ || closed_) fail(ErrorCode::kUnavailable, "the engine has been shut down");
    mail_.tasks.push_back(std::move(task));
  }
  arrived_.notify_one();
}

void Inbox::wake() {
  {
    std::lock_guard lock(mutex_);
    woken_ = true;
  }
  arrived_.notify_one();
}

void Inbox::stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    mail_.stop = true;
  }
  arrived_.notify_one();
}

void Inbox::fetch(Mail& mail) {
  mail = Mail{};
  std::lock_guard lock(mutex_);
  if (!mail_.empty()) std::swap(mail, mail_);
}

void Inbox::wait(std::chrono::duration<double> at_most) {
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return !mail_.empty() || woken_; };
  if (at_most == std::chrono::duration<double>::max()) {
    arrived_.wait(lock, ready);
  } else {
    arrived_.wait_for(lock, at_most, ready);
  }
  woken_ = false;
}

void Inbox::close() {
  std::vector<EngineTask> tasks;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    tasks.swap(mail_.tasks);
  }
  for (EngineTask& task : tasks) task(nullptr);
}

void Inbox::account(int64_t scheduled, int64_t finished) {
  if (scheduled == 0 && finished == 0) return;
  std::lock_guard lock(mutex_);
  num_waiting_ -= scheduled;
  num_unfinished_ -= finished;
  if (num_unfinished_ == 0) all_finished_.notify_all();
}

void Inbox::die(const std::string& reason, Mail& mail) {
  std::lock_guard lock(mutex_);
  dead_ = true;
  death_reason_ = reason;
  mail = std::move(mail_);
  mail_ = Mail{};
}

bool Inbox::drain(std::chrono::duration<double> timeout) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  constexpr double kLongest = 1e8;  // seconds; what a time point can hold
  auto until = std::chrono::steady_clock::now() +
               std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                   std::chrono::duration<double>(std::clamp(timeout.count(), 0.0, kLongest)));
  return all_finished_.wait_until(lock, until, [&] { return num_unfinished_ == 0; });
}

int64_t Inbox::num_unfetched() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(mail_.submissions.size());
}

}  // namespace taco
