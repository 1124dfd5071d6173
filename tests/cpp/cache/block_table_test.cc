#include "cache/block_table.h"

#include <gtest/gtest.h>

namespace taco {
namespace {

TEST(BlockTable, BlocksFor) {
  EXPECT_EQ(blocks_for(0, 16), 0);
  EXPECT_EQ(blocks_for(1, 16), 1);
  EXPECT_EQ(blocks_for(16, 16), 1);
  EXPECT_EQ(blocks_for(17, 16), 2);
}

TEST(BlockTable, GrowsAllOrNothingAndShrinksInReverse) {
  BlockPool pool(4);
  BlockTable table;
  EXPECT_TRUE(grow_table(pool, table, 3));
  EXPECT_EQ(table, (BlockTable{0, 1, 2}));
  EXPECT_FALSE(grow_table(pool, table, 5));
  EXPECT_EQ(table.size(), 3u);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_TRUE(grow_table(pool, table, 2));  // has more already
  EXPECT_EQ(table.size(), 3u);
  shrink_table(pool, table, 1);
  EXPECT_TRUE(grow_table(pool, table, 3));
  EXPECT_EQ(table, (BlockTable{0, 1, 2}));
  release_table(pool, table);
  EXPECT_TRUE(table.empty());
  EXPECT_EQ(pool.num_free(), 4);
}

TEST(BlockTable, ForksShareUntilWritten) {
  BlockPool pool(8);
  BlockTable table;
  grow_table(pool, table, 3);
  BlockTable fork = fork_table(pool, table, 2);
  EXPECT_EQ(fork, (BlockTable{0, 1}));
  EXPECT_EQ(num_shared(pool, table, 0, 3), 2);
  EXPECT_EQ(num_shared(pool, table, 2, 9), 0);

  std::vector<BlockCopy> copies;
  make_writable(pool, fork, 1, 4, copies);
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].from, 1);
  EXPECT_EQ(copies[0].to, 3);
  EXPECT_EQ(fork, (BlockTable{0, 3}));
  // The other one is now alone with its block.
  make_writable(pool, table, 1, 3, copies);
  EXPECT_EQ(copies.size(), 1u);
  release_table(pool, table);
  release_table(pool, fork);
  EXPECT_EQ(pool.num_free(), 8);
}

}  // namespace
}  // namespace taco
