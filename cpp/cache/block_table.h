// A sequence's block table: the blocks that hold its tokens' K and V, in order. Token t is in
// table[t / block_size] at offset t % block_size.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/block_pool.h"

namespace taco {

using BlockTable = std::vector<BlockId>;

inline int64_t blocks_for(int64_t num_tokens, int block_size) {
  return (num_tokens + block_size - 1) / block_size;
}

// Where the token at `position` has its K and V: block * block_size + offset in the block.
inline int64_t slot_of(const BlockTable& table, int64_t position, int block_size) {
  return int64_t{table[static_cast<size_t>(position / block_size)]} * block_size + position % block_size;
}

// Appends blocks until there are `num_blocks`. All or nothing: false, and nothing changed, if too few
// are available.
bool grow_table(BlockPool& pool, BlockTable& table, int64_t num_blocks);

// Gives back the blocks after the first `num_blocks`, the last first: taking as many again gives the same
// ones.
void shrink_table(BlockPool& pool, BlockTable& table, int64_t num_blocks);
inline void release_table(BlockPool& pool, BlockTable& table) { shrink_table(pool, table, 0); }

// A second table over the same blocks: one more holder for each of the first `num_blocks`.
BlockTable fork_table(BlockPool& pool, const BlockTable& table, int64_t num_blocks);

// How many blocks that would be written (those from index `first` up to `last`, not included) are shared.
int64_t num_shared(const BlockPool& pool, const BlockTable& table, int64_t first, int64_t last);

// Makes the blocks [first, last) of the table writable; what must be copied is appended to `copies`.
// As many as num_shared(...) must be available, besides shared
// ones that thereby become idle: the copies read those.
void make_writable(BlockPool& pool, BlockTable& table, int64_t first, int64_t last,
                   std::vector<BlockCopy>& copies);

}  // namespace taco
