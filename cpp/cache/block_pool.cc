#include "cache/block_pool.h"

#include <limits>

namespace taco {

BlockPool::BlockPool(int64_t num_blocks) {
  TACO_REQUIRE(num_blocks >= 1 && num_blocks <= std::numeric_limits<BlockId>::max(),
               "the KV cache needs at least 1 block and at most 2^31 - 1, not ", num_blocks);
  refs_.assign(static_cast<size_t>(num_blocks), 0);
  free_.reserve(static_cast<size_t>(num_blocks));
  for (int64_t i = num_blocks; i-- > 0;) free_.push_back(static_cast<BlockId>(i));
}

int32_t& BlockPool::held(BlockId block) {
  TACO_CHECK(block >= 0 && block < size(), "block ", block, " of ", size());
  int32_t& refs = refs_[static_cast<size_t>(block)];
  TACO_CHECK(refs > 0, "block ", block, " is free");
  return refs;
}

BlockId BlockPool::allocate() {
  if (free_.empty()) fail(ErrorCode::kResourceExhausted, "all ", size(), " KV blocks are in use");
  BlockId block = free_.back();
  free_.pop_back();
  int32_t& refs = refs_[static_cast<size_t>(block)];
  TACO_CHECK(refs == 0, "block ", block, " was in the free list with ", refs, " holders");
  refs = 1;
  return block;
}

void BlockPool::retain(BlockId block) { ++held(block); }

bool BlockPool::release(BlockId block) {
  if (--held(block) > 0) return false;
  free_.push_back(block);
  return true;
}

BlockId BlockPool::make_writable(BlockId block) {
  int32_t& refs = held(block);
  if (refs == 1) return block;
  BlockId copy = allocate();
  --refs;
  return copy;
}

}  // namespace taco
