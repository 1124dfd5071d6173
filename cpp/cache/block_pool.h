// Which KV blocks are in use, and by how many holders. Knows nothing of what they hold.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "cache/block_id.h"

namespace taco {

// A holder that keeps blocks for their content after their last user left, and gives them up when others need
// room: the prefix cache. The pool calls it in the middle of its own operations: of the pool it may call no
// more than is said here.
class BlockKeeper {
 public:
  virtual ~BlockKeeper() = default;
  // The keeper is the block's only holder now: the block is idle. Calls unkeep() at most.
  virtual void let_go(BlockId block) = 0;
  // Somebody holds the idle block again. Calls nothing of the pool.
  virtual void taken(BlockId block) = 0;
  // Nothing is free, but num_idle() > 0: must unkeep() at least one idle block.
  virtual void give_up_one() = 0;
};

// A holder is whatever keeps a block's number: a sequence's block table, the prefix cache (the keeper).
// Every operation is O(1), but for what the keeper does. Not thread-safe: the engine thread owns it.
//
// The free list is a stack, so that the same calls always give the same blocks, and a block that was just
// freed (and may still be in the CPU's cache) is the next to be used. A fresh pool hands out 0, 1, 2, ...
//
// Each block is free (no holder), idle (the keeper alone holds it) or used. Free and idle blocks are
// available: allocate() takes the free ones first.
//
// A block that has one holder may be written by it; a block with several may only be read (see
// make_writable). Releasing or retaining a free block, or one that does not exist, is a bug of ours and
// throws kInternal.
class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  int64_t size() const { return static_cast<int64_t>(refs_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_idle() const { return num_idle_; }
  int64_t num_available() const { return num_free() + num_idle(); }
  int64_t num_used() const { return size() - num_available(); }

  // A block with one holder. Throws kResourceExhausted when none is available; state is then unchanged.
  BlockId allocate();
  void retain(BlockId block);
  // True if that was the last holder: the block is free now. (Not when it is idle now.)
  bool release(BlockId block);

  int32_t ref_count(BlockId block) const {  // 0: free; the keeper counts
    TACO_CHECK(block >= 0 && block < size(), "block ", block, " of ", size());
    return refs_[static_cast<size_t>(block)];
  }
  bool is_kept(BlockId block) const { return ref_count(block) > 0 && kept_[static_cast<size_t>(block)]; }
  bool is_idle(BlockId block) const { return ref_count(block) == 1 && kept_[static_cast<size_t>(block)]; }
  int32_t num_users(BlockId block) const { return ref_count(block) - is_kept(block); }
  bool is_shared(BlockId block) const { return ref_count(block) > 1; }

  // Copy on write: `block` itself when the caller is its only holder; else a new block, to which the caller
  // copies the content, in exchange for its hold on `block`. Throws kResourceExhausted, state then unchanged.
  // A block that only the keeper holds besides becomes idle: it must not be given up before the copy is made.
  BlockId make_writable(BlockId block);

  // At most one keeper, which outlives its last block here; null: none.
  void set_keeper(BlockKeeper* keeper);
  // The keeper's own hold on a block that somebody holds. keep() makes it one holder more; unkeep() ends
  // that, and the block is free if nobody else holds it. Neither calls the keeper.
  void keep(BlockId block);
  void unkeep(BlockId block);

  // The free stack, next to be used last. For the checks and for tests.
  const std::vector<BlockId>& free_list() const { return free_; }

 private:
  int32_t& held(BlockId block);
  std::vector<int32_t> refs_;
  std::vector<uint8_t> kept_;
  std::vector<BlockId> free_;
  int64_t num_idle_ = 0;
  BlockKeeper* keeper_ = nullptr;
};

}  // namespace taco
