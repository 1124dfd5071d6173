#include "cache/block_table.h"

#include <algorithm>

#include "base/error.h"

namespace taco {

bool grow_table(BlockPool& pool, BlockTable& table, int64_t num_blocks) {
  int64_t missing = num_blocks - static_cast<int64_t>(table.size());
  if (missing <= 0) return true;
  if (missing > pool.num_available()) return false;
  for (; missing > 0; --missing) table.push_back(pool.allocate());
  return true;
}

void shrink_table(BlockPool& pool, BlockTable& table, int64_t num_blocks) {
  TACO_CHECK(num_blocks >= 0);
  while (static_cast<int64_t>(table.size()) > num_blocks) {
    pool.release(table.back());
    table.pop_back();
  }
}

BlockTable fork_table(BlockPool& pool, const BlockTable& table, int64_t num_blocks) {
  TACO_CHECK(num_blocks >= 0 && num_blocks <= static_cast<int64_t>(table.size()));
  BlockTable fork(table.begin(), table.begin() + num_blocks);
  for (BlockId block : fork) pool.retain(block);
  return fork;
}

int64_t num_shared(const BlockPool& pool, const BlockTable& table, int64_t first, int64_t last) {
  int64_t shared = 0;
  last = std::min(last, static_cast<int64_t>(table.size()));
  for (int64_t i = first; i < last; ++i) shared += pool.is_shared(table[static_cast<size_t>(i)]);
  return shared;
}

void make_writable(BlockPool& pool, BlockTable& table, int64_t first, int64_t last,
                   std::vector<BlockCopy>& copies) {
  last = std::min(last, static_cast<int64_t>(table.size()));
  for (int64_t i = first; i < last; ++i) {
    BlockId& block = table[static_cast<size_t>(i)];
    BlockId writable = pool.make_writable(block);
    if (writable == block) continue;
    copies.push_back({block, writable});
    block = writable;
  }
}

}  // namespace taco
