// Fetches: from the lower tiers to the device, for requests that wait.
//
// A fetch holds the device blocks of its path (so that what is below them may come), pins what is on the
// host, and has a device block reserved for each entry that must be loaded. It goes on whenever a transfer
// has finished: what stands on the host behind what is on the device is loaded; what is on disk was asked for
// at the beginning.
#include <algorithm>

#include "cache/prefix_cache.h"

namespace taco {

namespace {

// Before anything was measured: what any machine does, rather too slow than too fast.
constexpr double kFirstSpeed[kNumTransferKinds] = {4e9, 4e9, 3e8, 5e8};  // bytes a second
constexpr double kTransferSeconds = 100e-6;  // to begin one and to hear of its end
// How far into the idle list a clean block is looked for.
constexpr int kMaxLooks = 256;

}  // namespace

double PrefixCache::speed_of(TransferKind kind) const {
  auto known = [&](TransferKind k) { return speed_[static_cast<size_t>(k)]; };
  double speed = known(kind);
  // The other direction tells what the link can do.
  if (speed == 0.0 && kind == TransferKind::kLoad) speed = known(TransferKind::kStore);
  if (speed == 0.0 && kind == TransferKind::kRead) speed = known(TransferKind::kWrite);
  return speed > 0.0 ? speed : kFirstSpeed[static_cast<size_t>(kind)];
}

double PrefixCache::seconds_for(TransferKind kind, int64_t blocks) const {
  return static_cast<double>(blocks) * static_cast<double>(config_.block_bytes) / speed_of(kind);
}

// How much of the path it is best to have on the device, given that its first `first` blocks are: where the
// time to compute what is fetched exceeds the time to fetch it by most. All of it, if it is not known what
// computing takes.
size_t PrefixCache::worth_fetching(std::span<const EntryId> path, size_t first, double now) const {
  if (prefill_seconds_ == 0.0) return path.size();
  const double compute = prefill_seconds_ * config_.block_size;
  const double load = seconds_for(TransferKind::kLoad, 1), read = seconds_for(TransferKind::kRead, 1);
  auto backlog = [&](TransferKind kind) {
    return kTransferSeconds + std::max(free_at_[static_cast<size_t>(kind)] - now, 0.0);
  };
  double gain = 0.0, best = 0.0;
  size_t length = first;
  bool loads = false, reads = false;
  for (size_t i = first; i < path.size(); ++i) {
    const Entry& entry = tree_[path[i]];
    gain += compute;
    if (entry.on_device == Presence::kNone) {
      gain -= load + (loads ? 0.0 : backlog(TransferKind::kLoad));
      loads = true;
      if (entry.on_host == Presence::kNone) {
        gain -= read + (reads ? 0.0 : backlog(TransferKind::kRead));
        reads = true;
      }
    }
    if (gain > best) {
      best = gain;
      length = i + 1;
    }
  }
  return length;
}

// A free device block, or one of an idle entry that loses nothing but its place there; -1 if there is none.
BlockId PrefixCache::take_clean_device_block() {
  if (pool_.num_free() == 0) {
    int looks = 0;
    EntryId id = idle_.front();
    for (; id != kNoEntry && looks < kMaxLooks; id = idle_.next(tree_, id), ++looks) {
      const Entry& entry = tree_[id];
      if (!entry.dirty && entry.device_children == 0 && in_transfer_[static_cast<size_t>(entry.device)] == 0)
        break;
    }
    if (id == kNoEntry || looks == kMaxLooks) return -1;
    evict_device(id, false);
  }
  const BlockId block = pool_.allocate();
  if (in_transfer_[static_cast<size_t>(block)] == 0) return block;
  pool_.release(block);  // a store still reads it
  return -1;
}

PrefixCache::Fetch PrefixCache::fetch(const Digest& root, std::span<const int32_t> tokens, int32_t max_tokens,
                                      int64_t spare, double now, uint64_t& id) {
  TACO_CHECK(evicted_.empty(), "fetch between a step's allocations and take_evictions");
  const int64_t usable = std::clamp<int64_t>(max_tokens, 0, static_cast<int64_t>(tokens.size()));
  tree_.walk(root, tokens, usable / config_.block_size, path_);
  size_t first = 0;
  while (first < path_.size() && tree_[path_[first]].on_device == Presence::kReady) ++first;
  if (first == path_.size()) return Fetch::kNone;
  path_.resize(worth_fetching(path_, first, now));
  if (path_.size() == first) {
    ++stats_.fetches_declined;
    // What was measured in a bad moment is not believed for ever: nothing else would measure it again.
    for (double& speed : speed_) speed *= 1.05;
    return Fetch::kNone;
  }
  int64_t wanted = 0, idle = 0;
  for (EntryId entry : path_) {
    wanted += tree_[entry].on_device == Presence::kNone;
    idle += tree_[entry].idle;
  }
  if (pool_.num_available() - idle - wanted < spare) return Fetch::kNoRoom;

  FetchState fetch;
  fetch.id = next_id_++;
  for (EntryId entry_id : path_) {
    const Entry& entry = tree_[entry_id];
    FetchStep step;
    step.entry = tree_.ref(entry_id);
    if (entry.on_device != Presence::kNone) pool_.retain(step.held = entry.device);
    if (entry.on_device == Presence::kNone && entry.on_host != Presence::kNone)
      host_.pin(step.pinned = entry.host);
    fetch.path.push_back(step);
  }
  for (FetchStep& step : fetch.path) {
    if (step.held >= 0) continue;
    step.reserved = take_clean_device_block();
    if (step.reserved < 0) {
      end_fetch(fetch);
      return Fetch::kNoRoom;
    }
  }
  read_path(fetch, now);
  if (fetch.path.size() <= first) {
    end_fetch(fetch);
    return Fetch::kNoRoom;
  }
  ++stats_.fetches_started;
  id = fetch.id;
  if (advance_fetch(fetch, now)) {
    end_fetch(fetch);
  } else {
    fetches_.push_back(std::move(fetch));
  }
  return Fetch::kStarted;
}

// Asks for what is on disk only. The path ends where the host has no room.
void PrefixCache::read_path(FetchState& fetch, double now) {
  std::vector<Move> moves;
  for (size_t i = 0; i < fetch.path.size(); ++i) {
    FetchStep& step = fetch.path[i];
    Entry& entry = tree_[step.entry.id];
    if (entry.on_device != Presence::kNone || entry.on_host != Presence::kNone) continue;
    const int32_t host = has_disk() && entry.on_disk == Presence::kReady ? take_host(kAnyAge) : -1;
    if (host < 0) {
      cut_fetch(fetch, i);
      break;
    }
    entry.host = host;
    entry.on_host = Presence::kComing;
    ++stats_.blocks[1];
    host_.pin(step.pinned = host);
    add_move(moves, {step.entry, -1, host, entry.slot, false});
    if (static_cast<int64_t>(moves.size()) == max_moves(TransferKind::kRead)) {
      begin(TransferKind::kRead, std::move(moves), now);
      moves.clear();
    }
  }
  if (!moves.empty()) begin(TransferKind::kRead, std::move(moves), now);
}

bool PrefixCache::advance_fetch(FetchState& fetch, double now) {
  std::vector<Move> loads;
  fetch.waits_for_reads = false;
  bool all_ready = true;
  for (size_t i = fetch.next; i < fetch.path.size(); ++i) {
    FetchStep& step = fetch.path[i];
    if (!tree_.alive(step.entry)) {
      cut_fetch(fetch, i);
      break;
    }
    Entry& entry = tree_[step.entry.id];
    if (entry.on_device == Presence::kNone) {
      if (entry.on_host == Presence::kComing) {
        fetch.waits_for_reads = true;
        all_ready = false;
        break;
      }
      if (step.reserved < 0 || entry.on_host == Presence::kNone) {
        cut_fetch(fetch, i);
        break;
      }
      if (entry.fetched_from == 0) entry.fetched_from = static_cast<uint8_t>(CacheTier::kHost);
      set_device(step.entry.id, step.reserved, Presence::kComing);
      pool_.keep(step.reserved);
      step.held = std::exchange(step.reserved, -1);
      add_move(loads, {step.entry, step.held, entry.host, -1, false});
    } else if (step.held < 0) {  // somebody else brought it, or computed it
      pool_.retain(step.held = entry.device);
      if (step.reserved >= 0) pool_.release(std::exchange(step.reserved, -1));
    }
    all_ready &= entry.on_device == Presence::kReady;
    if (all_ready) fetch.next = i + 1;
    if (static_cast<int64_t>(loads.size()) == max_moves(TransferKind::kLoad)) {
      begin(TransferKind::kLoad, std::move(loads), now);
      loads.clear();
    }
  }
  if (!loads.empty()) begin(TransferKind::kLoad, std::move(loads), now);
  return fetch.next == fetch.path.size();
}

// Whoever held a block of the path first lets go of it last, so that a block is idle only if all below are.
void PrefixCache::cut_fetch(FetchState& fetch, size_t length) {
  while (fetch.path.size() > length) {
    const FetchStep step = fetch.path.back();
    fetch.path.pop_back();
    if (step.pinned >= 0) {
      host_.unpin(step.pinned);
      if (tree_.alive(step.entry)) refresh(step.entry.id);
    }
    if (step.reserved >= 0) pool_.release(step.reserved);
    if (step.held >= 0) pool_.release(step.held);
  }
  fetch.next = std::min(fetch.next, length);
}

void PrefixCache::end_fetch(FetchState& fetch) { cut_fetch(fetch, 0); }

void PrefixCache::advance_fetches(double now) {
  for (size_t i = 0; i < fetches_.size();) {
    if (!advance_fetch(fetches_[i], now)) {
      ++i;
      continue;
    }
    end_fetch(fetches_[i]);
    fetches_.erase(fetches_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

double PrefixCache::remaining(uint64_t id, double now) const {
  auto fetch =
      std::find_if(fetches_.begin(), fetches_.end(), [id](const FetchState& f) { return f.id == id; });
  if (fetch == fetches_.end()) return 0.0;
  if (fetch->waits_for_reads) return std::numeric_limits<double>::infinity();
  double seconds = kTransferSeconds;
  for (size_t i = fetch->next; i < fetch->path.size(); ++i) {
    const BlockId block = fetch->path[i].held;
    auto running = block < 0 ? running_.end() : running_.find(in_transfer_[static_cast<size_t>(block)]);
    if (running != running_.end()) seconds = std::max(seconds, running->second.done_at - now);
  }
  return seconds;
}

void PrefixCache::cancel_fetch(uint64_t id) {
  auto fetch =
      std::find_if(fetches_.begin(), fetches_.end(), [id](const FetchState& f) { return f.id == id; });
  if (fetch == fetches_.end()) return;
  // What is being loaded keeps what is above it.
  size_t length = fetch->next;
  while (length < fetch->path.size() && fetch->path[length].held >= 0) ++length;
  cut_fetch(*fetch, length);
  fetch->waits_for_reads = false;
  if (fetch->next < fetch->path.size()) return;
  end_fetch(*fetch);
  fetches_.erase(fetch);
}

}  // namespace taco
