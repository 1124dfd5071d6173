#include "cache/block_pool.h"

#include <limits>

namespace taco {

BlockPool::BlockPool(int64_t num_blocks) {
  TACO_REQUIRE(num_blocks >= 1 && num_blocks <= std::numeric_limits<BlockId>::max(),
               "the KV cache needs at least 1 block and at most 2^31 - 1, not ", num_blocks);
  refs_.assign(static_cast<size_t>(num_blocks), 0);
  kept_.assign(static_cast<size_t>(num_blocks), 0);
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
  if (free_.empty()) {
    if (num_idle_ == 0) fail(ErrorCode::kResourceExhausted, "all ", size(), " KV blocks are in use");
    keeper_->give_up_one();
    TACO_CHECK(!free_.empty(), "the keeper gave up none of its ", num_idle_, " idle blocks");
  }
  BlockId block = free_.back();
  free_.pop_back();
  int32_t& refs = refs_[static_cast<size_t>(block)];
  TACO_CHECK(refs == 0, "block ", block, " was in the free list with ", refs, " holders");
  refs = 1;
  return block;
}

void BlockPool::retain(BlockId block) {
  if (++held(block) == 2 && kept_[static_cast<size_t>(block)]) {
    --num_idle_;
    keeper_->taken(block);
  }
}

bool BlockPool::release(BlockId block) {
  int32_t& refs = held(block);
  bool kept = kept_[static_cast<size_t>(block)] != 0;
  TACO_CHECK(!kept || refs > 1, "block ", block, " is the keeper's alone");
  if (--refs == 0) {
    free_.push_back(block);
    return true;
  }
  if (kept && refs == 1) {
    ++num_idle_;
    keeper_->let_go(block);
  }
  return false;
}

BlockId BlockPool::make_writable(BlockId block) {
  if (held(block) == 1) return block;
  BlockId copy = allocate();
  release(block);
  return copy;
}

void BlockPool::set_keeper(BlockKeeper* keeper) {
  TACO_CHECK(keeper_ == nullptr || keeper == nullptr, "the pool has a keeper already");
  keeper_ = keeper;
}

void BlockPool::keep(BlockId block) {
  int32_t& refs = held(block);
  uint8_t& kept = kept_[static_cast<size_t>(block)];
  TACO_CHECK(keeper_ != nullptr && !kept, "block ", block, " cannot be kept");
  kept = 1;
  ++refs;
}

void BlockPool::unkeep(BlockId block) {
  int32_t& refs = held(block);
  uint8_t& kept = kept_[static_cast<size_t>(block)];
  TACO_CHECK(kept, "block ", block, " is not kept");
  kept = 0;
  if (--refs > 0) return;
  --num_idle_;
  free_.push_back(block);
}

}  // namespace taco
