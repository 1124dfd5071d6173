// Which KV blocks are in use, and by how many holders. Knows nothing of what they hold.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "cache/block_id.h"

namespace taco {

// A holder is whatever keeps a block's number: a sequence's block table, later a node of the prefix tree.
// Every operation is O(1). Not thread-safe: the engine thread owns it.
//
// The free list is a stack, so that the same calls always give the same blocks, and a block that was just
// freed (and may still be in the CPU's cache) is the next to be used. A fresh pool hands out 0, 1, 2, ...
//
// A block that has one holder may be written by it; a block with several may only be read (see
// make_writable). Releasing or retaining a free block, or one that does not exist, is a bug of ours and
// throws kInternal.
class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  int64_t size() const { return static_cast<int64_t>(refs_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_used() const { return size() - num_free(); }

  // A block with one holder. Throws kResourceExhausted when there is none; state is then unchanged.
  BlockId allocate();
  void retain(BlockId block);
  // True if that was the last holder: the block is free now.
  bool release(BlockId block);

  int32_t ref_count(BlockId block) const {  // 0: free
    TACO_CHECK(block >= 0 && block < size(), "block ", block, " of ", size());
    return refs_[static_cast<size_t>(block)];
  }
  bool is_shared(BlockId block) const { return ref_count(block) > 1; }

  // Copy on write: `block` itself when the caller is its only holder; else a new block, to which the caller
  // copies the content, in exchange for its hold on `block`. Throws kResourceExhausted, state then unchanged.
  BlockId make_writable(BlockId block);

  // The free stack, next to be used last. For the checks and for tests.
  const std::vector<BlockId>& free_list() const { return free_; }

 private:
  int32_t& held(BlockId block);
  std::vector<int32_t> refs_;
  std::vector<BlockId> free_;
};

}  // namespace taco
