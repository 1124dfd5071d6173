#include "exec/null_transfers.h"

#include <algorithm>

#include "base/error.h"

namespace taco {

NullTransfers::NullTransfers(int block_size, std::span<uint64_t> device, std::span<uint64_t> host)
    : block_size_(block_size), device_(device), host_(host) {}

NullTransfers::~NullTransfers() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  if (timer_.joinable()) timer_.join();
}

void NullTransfers::set_delay(double seconds) {
  delay_ = seconds;
  if (!timer_.joinable()) timer_ = std::thread([this] { run_timer(); });
}

void NullTransfers::run_timer() {
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    if (alarms_.empty()) {
      changed_.wait(lock);
    } else if (alarms_.begin()->first > Clock::now()) {
      changed_.wait_until(lock, alarms_.begin()->first);
    } else {
      alarms_.erase(alarms_.begin());
      lock.unlock();
      if (wake_) wake_();
      lock.lock();
    }
  }
}

void NullTransfers::hold() {
  std::lock_guard lock(mutex_);
  held_ = true;
}

void NullTransfers::release() {
  {
    std::lock_guard lock(mutex_);
    held_ = false;
  }
  if (wake_) wake_();
}

std::span<uint64_t> NullTransfers::block(std::span<uint64_t> values, BlockId block) const {
  const auto size = static_cast<size_t>(block_size_);
  TACO_CHECK(block >= 0 && (static_cast<size_t>(block) + 1) * size <= values.size(), "block ", block, " of ",
             values.size() / size);
  return values.subspan(static_cast<size_t>(block) * size, size);
}

NullTransfers::Open* NullTransfers::find(uint64_t id) {
  auto it =
      std::find_if(open_.begin(), open_.end(), [&](const Open& open) { return open.transfer.id == id; });
  return it == open_.end() ? nullptr : &*it;
}

void NullTransfers::begin(const Transfer& transfer) {
  TACO_CHECK(transfer.id != 0 && find(transfer.id) == nullptr, "transfer ", transfer.id, " is open already");
  TACO_CHECK(transfer.disk.size() == transfer.records.size());
  last_begun_ = std::max(last_begun_, transfer.id);
  Open& open = open_.emplace_back();
  open.transfer = transfer;
  open.result.id = transfer.id;
  open.ready = Clock::now();
  const Open* before = transfer.after == 0 ? nullptr : find(transfer.after);
  if (before) open.ready = std::max(open.ready, before->ready);
  if (delay_ > 0) {
    const double seconds = delay_ * std::uniform_real_distribution<double>()(random_);
    open.ready += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  if (delay_calls_ > 0) open.calls = static_cast<int>(random_() % static_cast<unsigned>(delay_calls_ + 1));
  if ((!before || before->copied) && random_() % 2 == 0) copy(open);
  if (delay_ > 0) {
    {
      std::lock_guard lock(mutex_);
      alarms_.emplace(open.ready, 0);
    }
    changed_.notify_all();
  } else if (wake_) {
    wake_();
  }
}

void NullTransfers::copy(Open& open) {
  if (open.copied) return;
  const Transfer& transfer = open.transfer;
  if (Open* before = transfer.after == 0 ? nullptr : find(transfer.after)) copy(*before);
  for (const BlockMove& move : transfer.moves) {
    std::span<uint64_t> device = block(device_, move.device), host = block(host_, move.host);
    const bool load = transfer.kind == TransferKind::kLoad;
    std::ranges::copy(load ? host : device, (load ? device : host).begin());
  }
  for (size_t i = 0; i < transfer.disk.size(); ++i) {
    const DiskMove& move = transfer.disk[i];
    std::span<uint64_t> host = block(host_, move.host);
    if (transfer.kind == TransferKind::kWrite) {
      disk_[move.slot] = {transfer.records[i].key, {host.begin(), host.end()}};
      continue;
    }
    auto slot = disk_.find(move.slot);
    const bool fails = read_failures_ > 0 && std::bernoulli_distribution(read_failures_)(random_);
    if (fails || slot == disk_.end() || slot->second.key != transfer.records[i].key) {
      open.result.failed.resize(transfer.disk.size());
      open.result.failed[i] = 1;
      std::ranges::fill(host, 0xdead);
    } else {
      std::ranges::copy(slot->second.values, host.begin());
    }
  }
  const size_t blocks = transfer.moves.size() + transfer.disk.size();
  open.result.seconds = 1e-6 * static_cast<double>(blocks);
  open.copied = true;
}

void NullTransfers::wait_for(uint64_t id) {
  TACO_CHECK(id <= last_begun_, "transfer ", id, " has not begun");
  if (Open* open = find(id)) copy(*open);
}

void NullTransfers::finished(std::vector<TransferResult>& results) {
  if (open_.empty()) return;
  {
    std::lock_guard lock(mutex_);
    if (held_) return;
  }
  const Clock::time_point now = Clock::now();
  for (auto it = open_.begin(); it != open_.end();) {
    const bool blocked = it->transfer.after != 0 && find(it->transfer.after) != nullptr;
    if (it->ready > now || it->calls-- > 0 || blocked) {
      ++it;
      continue;
    }
    copy(*it);
    results.push_back(std::move(it->result));
    it = open_.erase(it);
  }
  if (delay_calls_ > 0 && !open_.empty() && wake_) wake_();  // there is no clock that would
}

}  // namespace taco
