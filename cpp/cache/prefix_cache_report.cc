// What the cache tells of itself, and whether it is whole.
#include <algorithm>
#include <functional>

#include "cache/prefix_cache.h"

namespace taco {

PrefixCacheStats PrefixCache::stats() const {
  PrefixCacheStats stats = stats_;
  stats.entries = tree_.size();
  stats.blocks[2] -= num_writing_;
  stats.capacity = {pool_.size(), host_.size(), has_disk_ ? disk_.size() : 0};
  stats.idle_blocks = idle_.size();
  stats.clean_idle_blocks = idle_.size() - dirty_.size();
  stats.loading_blocks = num_loading_;
  stats.fetches = static_cast<int64_t>(fetches_.size());
  stats.transfers = static_cast<int64_t>(running_.size());
  stats.store_speed = speed_[static_cast<size_t>(TransferKind::kStore)];
  stats.load_speed = speed_[static_cast<size_t>(TransferKind::kLoad)];
  stats.write_speed = speed_[static_cast<size_t>(TransferKind::kWrite)];
  stats.read_speed = speed_[static_cast<size_t>(TransferKind::kRead)];
  stats.prefill_speed = prefill_seconds_ > 0.0 ? 1.0 / prefill_seconds_ : 0.0;
  return stats;
}

// A prefix ends where nothing below was used as often: its blocks before the end tell nothing more.
std::vector<HotPrefix> PrefixCache::hottest(int count) const {
  std::vector<std::pair<uint32_t, EntryId>> ends;
  for (EntryId id = 0; id < tree_.end(); ++id) {
    const Entry& entry = tree_[id];
    if (!entry.alive || entry.is_root()) continue;
    bool goes_on = false;
    for (EntryId child = entry.first_child; child != kNoEntry && !goes_on; child = tree_[child].next) {
      goes_on = tree_[child].accesses >= entry.accesses;
    }
    if (!goes_on) ends.emplace_back(entry.accesses, id);
  }
  const auto wanted = std::min(ends.size(), static_cast<size_t>(std::max(count, 0)));
  std::partial_sort(ends.begin(), ends.begin() + static_cast<std::ptrdiff_t>(wanted), ends.end(),
                    [this](const auto& a, const auto& b) {
                      return a.first != b.first ? a.first > b.first
                                                : tree_[a.second].used > tree_[b.second].used;
                    });
  std::vector<HotPrefix> hot;
  for (size_t i = 0; i < wanted; ++i) {
    const EntryId end = ends[i].second;
    std::vector<EntryId> path;
    for (EntryId id = end; !tree_[id].is_root(); id = tree_[id].parent) path.push_back(id);
    Digest key = tree_.root_digest(end);
    for (auto id = path.rbegin(); id != path.rend(); ++id) key = block_key(key, tree_.tokens(*id));
    const Entry& entry = tree_[end];
    const CacheTier tier = entry.on_device != Presence::kNone ? CacheTier::kDevice
                           : entry.on_host != Presence::kNone ? CacheTier::kHost
                                                              : CacheTier::kDisk;
    hot.push_back({hex(key), int64_t{entry.depth} * config_.block_size, int64_t{entry.accesses}, tier});
  }
  return hot;
}

void PrefixCache::check() const {
  tree_.check();
  std::array<int64_t, kNumCacheTiers> blocks{};
  int64_t loading = 0, writing = 0, idle = 0, dirty = 0;
  std::vector<int32_t> host_pins(static_cast<size_t>(host_.size())),
      disk_pins(static_cast<size_t>(disk_.size()));
  for (const auto& [id, running] : running_) {
    for (const Move& move : running.moves) {
      ++host_pins.at(static_cast<size_t>(move.host));
      if (move.slot >= 0) ++disk_pins.at(static_cast<size_t>(move.slot));
    }
  }
  for (const StepStores& step : unstepped_) {
    for (const Move& move : step.moves) ++host_pins.at(static_cast<size_t>(move.host));
  }
  for (const Move& move : evicted_) ++host_pins.at(static_cast<size_t>(move.host));
  for (const FetchState& fetch : fetches_) {
    for (const FetchStep& step : fetch.path) {
      if (step.pinned >= 0) ++host_pins.at(static_cast<size_t>(step.pinned));
      TACO_CHECK(step.held < 0 || pool_.num_users(step.held) > 0);
    }
  }
  // The order of the idle list: all below on the device comes before.
  std::vector<int64_t> position(static_cast<size_t>(tree_.end()), -1);
  for (EntryId id = idle_.front(); id != kNoEntry; id = idle_.next(tree_, id)) {
    TACO_CHECK(tree_[id].alive && tree_[id].idle);
    position[static_cast<size_t>(id)] = idle++;
  }
  for (EntryId id = dirty_.front(); id != kNoEntry; id = dirty_.next(tree_, id)) {
    TACO_CHECK(tree_[id].alive && tree_[id].dirty);
    ++dirty;
  }
  TACO_CHECK(idle == idle_.size() && idle == pool_.num_idle() && dirty == dirty_.size());

  for (EntryId id = 0; id < tree_.end(); ++id) {
    const Entry& entry = tree_[id];
    if (!entry.alive || entry.is_root()) continue;
    const Entry& parent = tree_[entry.parent];
    TACO_CHECK(!entry.nowhere(), "entry ", id, " is in no tier");
    if (entry.on_device != Presence::kNone) {
      ++blocks[0];
      TACO_CHECK(parent.is_root() || parent.on_device != Presence::kNone, "entry ", id,
                 " without its parent");
      TACO_CHECK(entry_on_[static_cast<size_t>(entry.device)] == id && pool_.is_kept(entry.device));
      TACO_CHECK(entry.idle == pool_.is_idle(entry.device));
      TACO_CHECK(!parent.idle || (entry.idle && position[static_cast<size_t>(id)] <
                                                    position[static_cast<size_t>(entry.parent)]),
                 "entry ", id, " would be given up after its parent");
    } else {
      TACO_CHECK(!entry.idle && entry.device == -1);
    }
    if (entry.on_device == Presence::kComing) {
      ++loading;
      auto load = running_.find(in_transfer_[static_cast<size_t>(entry.device)]);
      TACO_CHECK(load != running_.end() && load->second.kind == TransferKind::kLoad && !entry.idle);
    }
    const bool dirty_now =
        entry.idle && has_host() && entry.on_host == Presence::kNone && worth_a_copy(entry);
    TACO_CHECK(entry.dirty == dirty_now);
    TACO_CHECK((entry.on_host != Presence::kNone) == (entry.host >= 0));
    if (entry.host >= 0) {
      ++blocks[1];
      TACO_CHECK(host_.owned(entry.host));
      TACO_CHECK(entry.on_host == Presence::kReady || host_.pins(entry.host) > 0);
      TACO_CHECK(!may_leave_host(id) || entry.in_host_heap, "entry ", id, " would never leave the host");
    }
    TACO_CHECK((entry.on_disk != Presence::kNone) == (entry.slot >= 0));
    writing += entry.on_disk == Presence::kComing;
    if (entry.slot >= 0) {
      ++blocks[2];
      TACO_CHECK(parent.is_root() || parent.on_disk != Presence::kNone, "entry ", id,
                 " would not be restored");
      TACO_CHECK(disk_.owned(entry.slot));
      TACO_CHECK(!may_leave_disk(id) || entry.in_disk_heap, "entry ", id, " would never leave the disk");
    }
  }
  TACO_CHECK(blocks == stats_.blocks && loading == num_loading_ && writing == num_writing_);
  TACO_CHECK(blocks[1] == host_.num_owned() && blocks[2] == disk_.num_owned());
  int64_t kept = 0;
  for (BlockId block = 0; block < pool_.size(); ++block) {
    const bool is_kept = pool_.is_kept(block);
    kept += is_kept;
    TACO_CHECK(is_kept == (entry_on_[static_cast<size_t>(block)] != kNoEntry), "device block ", block);
  }
  TACO_CHECK(kept == blocks[0]);
  auto check_slots = [](const TierSlots& slots, const std::vector<int32_t>& pins) {
    int64_t free = 0;
    for (int32_t slot = 0; slot < slots.size(); ++slot) {
      TACO_CHECK(slots.pins(slot) == pins[static_cast<size_t>(slot)], "slot ", slot, " has ",
                 slots.pins(slot), " pins");
      free += !slots.owned(slot) && slots.pins(slot) == 0;
    }
    TACO_CHECK(free == slots.num_free());
  };
  check_slots(host_, host_pins);
  check_slots(disk_, disk_pins);
}

}  // namespace taco
