// The entries of the prefix cache: a slab, found by their tokens. Knows nothing of when a tier gets or loses
// a block.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "base/error.h"
#include "cache/block_id.h"
#include "cache/huge_pages.h"

namespace taco {

using EntryId = int32_t;
constexpr EntryId kNoEntry = -1;

// Whether a tier holds an entry's block.
enum class Presence : uint8_t {
  kNone,
  kComing,  // it has the room; a transfer into it is under way
  kReady,
};

// One full block of tokens after those of its parent; or a root, which has none and no tier.
struct alignas(64) Entry {
  uint64_t hash = 0;  // of all tokens from the root on
  EntryId parent = kNoEntry;
  uint32_t generation = 0;  // told apart from what had this id before
  BlockId device = -1;
  int32_t host = -1, slot = -1;  // numbers in their tiers; -1 where presence is kNone
  int32_t depth = 0;             // blocks from the root, this one included; a root: 0
  EntryId root = kNoEntry;
  uint32_t accesses = 0;
  Presence on_device = Presence::kNone, on_host = Presence::kNone, on_disk = Presence::kNone;
  bool alive = false;
  bool idle = false;       // in the list of idle blocks
  bool dirty = false;      // in the list of idle blocks that are worth a copy below and have none
  bool unstepped = false;  // the host's copy is made by a step that was not collected yet
  bool queued = false;     // stands in the queue of what is to be written to disk
  bool in_host_heap = false, in_disk_heap = false;
  uint8_t fetched_from = 0;  // the lower tier (CacheTier) that it came from, until that is counted as a hit

  uint64_t used = 0;  // when it was last used: a count, not a time
  EntryId first_child = kNoEntry, next = kNoEntry, previous = kNoEntry;  // siblings, the newest first
  int32_t num_children = 0, device_children = 0, disk_children = 0;      // by presence that is not kNone
  EntryId idle_next = kNoEntry, idle_previous = kNoEntry;
  EntryId dirty_next = kNoEntry, dirty_previous = kNoEntry;

  bool is_root() const { return depth == 0; }
  bool nowhere() const {
    return on_device == Presence::kNone && on_host == Presence::kNone && on_disk == Presence::kNone;
  }
};

// What matching reads of an entry besides its tokens, where it is close together: a copy.
struct Look {
  EntryId parent = kNoEntry;
  Presence on_device = Presence::kNone;
  bool idle = false;
};

// An entry that may be gone by now.
struct EntryRef {
  EntryId id = kNoEntry;
  uint32_t generation = 0;
};

// Children are found by a hash table over all entries: the hash of a block is chained over all tokens from
// the root on, so that the places of all blocks of a prompt are known before any of them is looked at, and
// their cache misses overlap. The hash only finds; a block matches if its tokens and its parent do. It is
// keyed with a random number of the process: nobody outside can make tokens that collide.
//
// Ids are stable; the memory of an entry never moves.
class PrefixTree {
 public:
  struct Options {
    int block_size = 16;
    int64_t expected_entries = 0;       // the table's first size
    uint64_t seed = 0;                  // 0: random
    uint64_t hash_mask = ~uint64_t{0};  // for tests: fewer bits, more collisions
  };
  explicit PrefixTree(const Options& options);

  int block_size() const { return block_size_; }
  int64_t size() const { return num_entries_; }  // without roots
  EntryId end() const { return num_ids_; }       // ids are below; not all are alive
  Entry& operator[](EntryId id) {
    return chunks_[static_cast<size_t>(id >> kChunkBits)].entries.data()[id & kChunkMask];
  }
  const Entry& operator[](EntryId id) const {
    return chunks_[static_cast<size_t>(id >> kChunkBits)].entries.data()[id & kChunkMask];
  }
  const Look& look(EntryId id) const { return look_at(id); }
  // After a change of on_device or idle.
  void sync(EntryId id) {
    const Entry& entry = (*this)[id];
    look_at(id) = {entry.parent, entry.on_device, entry.idle};
  }
  std::span<const int32_t> tokens(EntryId id) const {
    return {token_pointer(id), static_cast<size_t>(block_size_)};
  }
  EntryRef ref(EntryId id) const { return {id, (*this)[id].generation}; }
  bool alive(EntryRef ref) const {
    if (ref.id < 0 || ref.id >= num_ids_) return false;
    const Entry& entry = (*this)[ref.id];
    return entry.alive && entry.generation == ref.generation;
  }

  EntryId find_root(const Digest& digest) const;  // kNoEntry: nothing begins there
  EntryId make_root(const Digest& digest);        // finds it, too
  const Digest& root_digest(EntryId id) const { return root_digests_.at((*this)[id].root); }

  EntryId find_child(EntryId parent, std::span<const int32_t> tokens) const;
  // There must be no such child. A new entry is in no tier.
  EntryId make_child(EntryId parent, std::span<const int32_t> tokens);
  // Has no children and is in no list. A root goes with its last child.
  void erase(EntryId id);

  // The entries of the first `max_blocks` blocks of `tokens`, up to the first that is missing.
  void walk(const Digest& root, std::span<const int32_t> tokens, int64_t max_blocks,
            std::vector<EntryId>& path) const;
  // Among the newest children on the device, the one that has the most tokens in common with `tokens` from
  // its first on; `common` says how many. kNoEntry if none has any. Looks at no more than kMaxTailChildren.
  static constexpr int kMaxTailChildren = 16;
  EntryId longest_tail(EntryId parent, std::span<const int32_t> tokens, int32_t& common) const;

  // Calls fn(id) for all entries of the subtree, `top` first, each before its children.
  template <typename Fn>
  void for_subtree(EntryId top, Fn&& fn) const {
    for (EntryId at = top;;) {
      fn(at);
      if ((*this)[at].first_child != kNoEntry) {
        at = (*this)[at].first_child;
        continue;
      }
      while (at != top && (*this)[at].next == kNoEntry) at = (*this)[at].parent;
      if (at == top) return;
      at = (*this)[at].next;
    }
  }
  const std::unordered_map<Digest, EntryId>& roots() const { return roots_; }
  void check() const;  // links, counts of children and roots, the table

 private:
  static constexpr int kChunkBits = 14;  // entries of a chunk fill a huge page
  static constexpr int kChunkMask = (1 << kChunkBits) - 1;
  // Raw memory, made into entries one by one as they are needed: a new chunk costs no more than its address.
  template <typename T>
  class Array {
   public:
    explicit Array(size_t count) : count_(count), data_(HugePageAllocator<T>().allocate(count)) {}
    Array(Array&& other) noexcept : count_(other.count_), data_(std::exchange(other.data_, nullptr)) {}
    ~Array() {
      if (data_) HugePageAllocator<T>().deallocate(data_, count_);
    }
    T* data() const { return data_; }

   private:
    size_t count_;
    T* data_;
  };
  struct Chunk {
    Array<Entry> entries;
    Array<int32_t> tokens;
    Array<Look> looks;
  };
  struct Place {
    uint32_t tag = 0;  // the lower half of the hash: where the search for it begins, too
    EntryId id = kNoEntry;
  };

  int32_t* token_pointer(EntryId id) const {
    return chunks_[static_cast<size_t>(id >> kChunkBits)].tokens.data() +
           int64_t{id & kChunkMask} * block_size_;
  }
  Look& look_at(EntryId id) const {
    return chunks_[static_cast<size_t>(id >> kChunkBits)].looks.data()[id & kChunkMask];
  }
  EntryId new_id();
  void free_id(EntryId id);
  void link(EntryId id, EntryId parent);
  void unlink(EntryId id);
  uint64_t block_hash(const int32_t* tokens) const;
  uint64_t chain(uint64_t parent_hash, uint64_t block_hash) const;
  template <int kSize>
  EntryId lookup(EntryId parent, uint64_t hash, const int32_t* tokens) const;
  template <int kSize>
  void walk_from(EntryId top, const int32_t* tokens, int64_t num_blocks, std::vector<EntryId>& path) const;
  void insert_place(uint64_t hash, EntryId id);
  void erase_place(uint64_t hash, EntryId id);
  void grow_table();

  int block_size_;
  uint64_t hash_mask_;
  std::vector<uint64_t> secrets_;
  std::vector<Chunk> chunks_;
  EntryId num_ids_ = 0;
  std::vector<EntryId> free_ids_;
  int64_t num_entries_ = 0;
  std::vector<Place, HugePageAllocator<Place>> table_;
  size_t table_mask_ = 0;
  std::unordered_map<Digest, EntryId> roots_;
  std::unordered_map<EntryId, Digest> root_digests_;
};

// A list through the entries, in the order of insertion at its end.
template <EntryId Entry::*Next, EntryId Entry::*Previous, bool Entry::*Member>
class EntryList {
 public:
  EntryId front() const { return head_; }
  EntryId next(const PrefixTree& tree, EntryId id) const { return tree[id].*Next; }
  int64_t size() const { return size_; }
  void push_back(PrefixTree& tree, EntryId id) {
    Entry& entry = tree[id];
    TACO_CHECK(!(entry.*Member), "entry ", id, " is in the list");
    entry.*Member = true;
    entry.*Next = kNoEntry;
    entry.*Previous = tail_;
    (tail_ == kNoEntry ? head_ : tree[tail_].*Next) = id;
    tail_ = id;
    ++size_;
  }
  void erase(PrefixTree& tree, EntryId id) {
    Entry& entry = tree[id];
    TACO_CHECK(entry.*Member, "entry ", id, " is not in the list");
    entry.*Member = false;
    (entry.*Previous == kNoEntry ? head_ : tree[entry.*Previous].*Next) = entry.*Next;
    (entry.*Next == kNoEntry ? tail_ : tree[entry.*Next].*Previous) = entry.*Previous;
    --size_;
  }

 private:
  EntryId head_ = kNoEntry, tail_ = kNoEntry;
  int64_t size_ = 0;
};
using IdleList = EntryList<&Entry::idle_next, &Entry::idle_previous, &Entry::idle>;
using DirtyList = EntryList<&Entry::dirty_next, &Entry::dirty_previous, &Entry::dirty>;

}  // namespace taco
