// The rooms of a lower tier, and the order in which entries leave it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "cache/prefix_tree.h"

namespace taco {

// Rooms [0, size). A room is owned (by an entry), pinned (by transfers and others who need its content to
// stay), both or neither: then it is free. What lost its owner is free once the last pin is gone.
class TierSlots {
 public:
  explicit TierSlots(int64_t size) : size_(size) {}
  int64_t size() const { return size_; }
  int64_t num_owned() const { return num_owned_; }
  // Neither owned nor pinned.
  int64_t num_free() const { return static_cast<int64_t>(free_.size()) + size_ - num_touched(); }
  int32_t pins(int32_t slot) const { return slot < num_touched() ? at(slot).pins : 0; }
  bool owned(int32_t slot) const { return slot < num_touched() && at(slot).owned; }

  // An owned room; -1 if none is free.
  int32_t take() {
    int32_t slot;
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else {
      if (num_touched() == size_) return -1;
      slot = static_cast<int32_t>(num_touched());
      slots_.emplace_back();
    }
    own(slots_[static_cast<size_t>(slot)]);
    return slot;
  }
  // That very one, if nobody had it yet.
  bool take(int64_t slot) {
    if (slot < 0 || slot >= size_) return false;
    for (; num_touched() <= slot; slots_.emplace_back()) free_.push_back(static_cast<int32_t>(num_touched()));
    Slot& found = slots_[static_cast<size_t>(slot)];
    if (found.owned || found.pins > 0) return false;
    own(found);
    free_is_stale_ = true;
    return true;
  }
  // After take(slot): the free list again without those.
  void settle() {
    if (!free_is_stale_) return;
    std::erase_if(free_, [this](int32_t slot) { return at(slot).owned; });
    std::reverse(free_.begin(), free_.end());
    free_is_stale_ = false;
  }
  void disown(int32_t slot) {
    Slot& found = at(slot);
    TACO_CHECK(found.owned, "slot ", slot, " belongs to nobody");
    found.owned = false;
    --num_owned_;
    if (found.pins == 0) free_.push_back(slot);
  }
  void pin(int32_t slot) { ++at(slot).pins; }
  void unpin(int32_t slot) {
    Slot& found = at(slot);
    TACO_CHECK(found.pins > 0, "slot ", slot, " is not pinned");
    if (--found.pins == 0 && !found.owned) free_.push_back(slot);
  }

 private:
  struct Slot {
    int32_t pins = 0;
    bool owned = false;
  };
  int64_t num_touched() const { return static_cast<int64_t>(slots_.size()); }
  Slot& at(int32_t slot) { return slots_.at(static_cast<size_t>(slot)); }
  const Slot& at(int32_t slot) const { return slots_.at(static_cast<size_t>(slot)); }
  void own(Slot& slot) {
    slot.owned = true;
    ++num_owned_;
  }
  int64_t size_;
  int64_t num_owned_ = 0;
  std::vector<Slot> slots_;  // grows as rooms are used for the first time
  std::vector<int32_t> free_;
  bool free_is_stale_ = false;
};

// Entries by when they were last used, the longest ago first. A use costs nothing: the order is put right
// when an entry comes to the front.
template <bool Entry::*Member>
class LruHeap {
 public:
  void push(PrefixTree& tree, EntryId id) {
    if (tree[id].*Member) return;
    tree[id].*Member = true;
    if (heap_.size() > 64 && heap_.size() > 2 * static_cast<size_t>(tree.size())) {  // mostly of what is gone
      std::erase_if(heap_, [&](const Record& record) { return !tree.alive(record.ref); });
      std::make_heap(heap_.begin(), heap_.end());
    }
    put({tree[id].used, tree.ref(id)});
  }
  // Takes out the first that `may_leave`, if it was last used before `limit`; kNoEntry if there is none. What
  // may not leave is forgotten: push it again when it may.
  template <typename MayLeave>
  EntryId pop(PrefixTree& tree, uint64_t limit, MayLeave&& may_leave) {
    while (!heap_.empty()) {
      Record first = heap_.front();
      bool alive = tree.alive(first.ref);
      if (alive && first.used == tree[first.ref.id].used && first.used >= limit && may_leave(first.ref.id)) {
        return kNoEntry;
      }
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.pop_back();
      if (!alive) continue;
      Entry& entry = tree[first.ref.id];
      entry.*Member = false;
      if (!may_leave(first.ref.id)) continue;
      if (entry.used == first.used) return first.ref.id;
      entry.*Member = true;
      put({entry.used, first.ref});
    }
    return kNoEntry;
  }
  void clear() { heap_.clear(); }

 private:
  struct Record {
    uint64_t used;
    EntryRef ref;
    bool operator<(const Record& other) const {
      return used > other.used;
    }  // the heap's front is its largest
  };
  void put(const Record& record) {
    heap_.push_back(record);
    std::push_heap(heap_.begin(), heap_.end());
  }
  std::vector<Record> heap_;
};

}  // namespace taco
