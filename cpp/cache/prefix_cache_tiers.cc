// Who leaves which tier, and when an entry is gone.
//
// An entry leaves the device when it is the first of the idle list, which has nothing on the device below it.
// It leaves the host and the disk when it is the longest unused of those that may: another tier holds it, or
// nothing is below it. Room for a copy is only made by what was used before the entry itself, so that copies
// do not push each other out in circles.
#include <algorithm>
#include <iterator>

#include "cache/prefix_cache.h"

namespace taco {

bool PrefixCache::may_leave_host(EntryId id) const {
  const Entry& entry = tree_[id];
  return entry.on_host == Presence::kReady && !entry.unstepped && host_.pins(entry.host) == 0 &&
         (entry.on_device == Presence::kReady || entry.on_disk == Presence::kReady ||
          entry.num_children == 0);
}

bool PrefixCache::may_leave_disk(EntryId id) const {
  const Entry& entry = tree_[id];
  return entry.on_disk == Presence::kReady && disk_.pins(entry.slot) == 0 && entry.disk_children == 0 &&
         (entry.on_device == Presence::kReady || entry.on_host == Presence::kReady ||
          entry.num_children == 0);
}

void PrefixCache::refresh(EntryId id) {
  const Entry& entry = tree_[id];
  if (entry.is_root()) return;
  const bool dirty = entry.idle && has_host() && entry.on_host == Presence::kNone && worth_a_copy(entry);
  if (dirty && !entry.dirty) dirty_.push_back(tree_, id);
  if (!dirty && entry.dirty) dirty_.erase(tree_, id);
  if (entry.on_host != Presence::kNone && may_leave_host(id)) host_lru_.push(tree_, id);
  if (entry.on_disk != Presence::kNone && may_leave_disk(id)) disk_lru_.push(tree_, id);
}

// A room of the host tier; -1 if none is free and nothing that was used before `older_than` may leave.
int32_t PrefixCache::take_host(uint64_t older_than) {
  if (int32_t host = host_.take(); host >= 0) return host;
  EntryId victim = host_lru_.pop(tree_, older_than, [this](EntryId id) { return may_leave_host(id); });
  if (victim == kNoEntry) return -1;
  ++stats_.evicted[1];
  clear_host(victim);
  if (!drop_if_nowhere(victim)) refresh(victim);
  return host_.take();
}

int32_t PrefixCache::take_slot(uint64_t older_than) {
  if (int32_t slot = disk_.take(); slot >= 0) return slot;
  EntryId victim = disk_lru_.pop(tree_, older_than, [this](EntryId id) { return may_leave_disk(id); });
  if (victim == kNoEntry) return -1;
  ++stats_.evicted[2];
  EntryId parent = tree_[victim].parent;
  clear_slot(victim);
  if (!drop_if_nowhere(victim)) {
    refresh(victim);
    refresh(parent);
  }
  return disk_.take();
}

void PrefixCache::clear_host(EntryId id) {
  Entry& entry = tree_[id];
  host_.disown(entry.host);
  entry.host = -1;
  entry.on_host = Presence::kNone;
  entry.unstepped = false;
  --stats_.blocks[1];
}

void PrefixCache::clear_slot(EntryId id) {
  Entry& entry = tree_[id];
  num_writing_ -= entry.on_disk == Presence::kComing;
  disk_.disown(entry.slot);
  entry.slot = -1;
  entry.on_disk = Presence::kNone;
  --tree_[entry.parent].disk_children;
  --stats_.blocks[2];
}

void PrefixCache::evict_device(EntryId id, bool by_step) {
  Entry& entry = tree_[id];
  const BlockId block = entry.device;
  TACO_CHECK(entry.idle && entry.device_children == 0, "entry ", id, " cannot leave the device");
  if (by_step && entry.dirty) {
    const int32_t host =
        take_host(entry.used);  // takes none of what holds this entry alone: this one is below it
    if (host >= 0) {
      entry.host = host;
      entry.on_host = Presence::kReady;
      entry.unstepped = true;
      ++stats_.blocks[1];
      host_.pin(host);
      evicted_.push_back({tree_.ref(id), block, host, -1, false});
      ++stats_.stored_by_steps;
    }
  }
  if (uint64_t store = in_transfer_[static_cast<size_t>(block)]; store != 0) {
    if (std::find(overtaken_.begin(), overtaken_.end(), store) == overtaken_.end())
      overtaken_.push_back(store);
  }
  clear_device(id);
  ++stats_.evicted[0];
  pool_.unkeep(block);
  if (!drop_if_nowhere(id)) refresh(id);
}

bool PrefixCache::drop_if_nowhere(EntryId id) {
  if (!tree_[id].nowhere()) return false;
  drop(id);
  return true;
}

void PrefixCache::drop(EntryId top) {
  const EntryId parent = tree_[top].parent;
  const bool last_of_root = tree_[parent].is_root() && tree_[parent].num_children == 1;
  // From the leaves up: down to a first child that has none, which goes, until it is the top's turn.
  for (EntryId at = top;;) {
    while (tree_[at].first_child != kNoEntry) at = tree_[at].first_child;
    const Entry& entry = tree_[at];
    const EntryId above = entry.parent;
    if (entry.on_device != Presence::kNone) {
      const BlockId block = entry.device;
      // A store that reads it now becomes its user: nobody may have it before that is done. A load is one
      // already.
      auto it = running_.find(in_transfer_[static_cast<size_t>(block)]);
      if (entry.idle && it != running_.end() && it->second.kind == TransferKind::kStore) {
        std::vector<Move>& moves = it->second.moves;
        auto move =
            std::find_if(moves.begin(), moves.end(), [&](const Move& m) { return m.device == block; });
        move->holds_device = true;
        pool_.retain(block);
      }
      clear_device(at);
      pool_.unkeep(block);
    }
    if (entry.on_host != Presence::kNone) clear_host(at);
    if (entry.on_disk != Presence::kNone) clear_slot(at);
    tree_.erase(at);
    ++stats_.dropped;
    if (at == top) break;
    at = above;
  }
  if (!last_of_root) refresh(parent);
}

void PrefixCache::drop_disk_below(EntryId top) {
  const EntryRef parent = tree_.ref(tree_[top].parent);
  std::vector<EntryId> below;
  tree_.for_subtree(top, [&](EntryId id) { below.push_back(id); });
  for (EntryId id : below) {
    if (tree_[id].on_disk != Presence::kNone) clear_slot(id);
  }
  std::vector<EntryRef> refs;
  std::transform(below.begin(), below.end(), std::back_inserter(refs),
                 [this](EntryId id) { return tree_.ref(id); });
  for (EntryRef ref : refs) {
    if (tree_.alive(ref) && !drop_if_nowhere(ref.id)) refresh(ref.id);
  }
  if (tree_.alive(parent)) refresh(parent.id);
}

}  // namespace taco
