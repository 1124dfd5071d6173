#include "cache/block_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/error.h"

namespace taco {
namespace {

template <typename Fn>
ErrorCode code_of(Fn&& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorCode::kUnimplemented;
}

TEST(BlockPool, HandsOutInOrderAndTheLastFreedFirst) {
  BlockPool pool(4);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), 1);
  EXPECT_EQ(pool.allocate(), 2);
  EXPECT_TRUE(pool.release(0));
  EXPECT_TRUE(pool.release(2));
  EXPECT_EQ(pool.allocate(), 2);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), 3);
  EXPECT_EQ(pool.num_free(), 0);
}

TEST(BlockPool, ExhaustionChangesNothing) {
  BlockPool pool(2);
  pool.allocate();
  BlockId shared = pool.allocate();
  pool.retain(shared);
  EXPECT_EQ(code_of([&] { pool.allocate(); }), ErrorCode::kResourceExhausted);
  EXPECT_EQ(code_of([&] { pool.make_writable(shared); }), ErrorCode::kResourceExhausted);
  EXPECT_EQ(pool.ref_count(shared), 2);
  EXPECT_EQ(pool.num_free(), 0);
}

TEST(BlockPool, MisuseIsDetected) {
  BlockPool pool(2);
  BlockId block = pool.allocate();
  pool.release(block);
  EXPECT_EQ(code_of([&] { pool.release(block); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.retain(block); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.make_writable(block); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.retain(1); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.release(2); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.release(-1); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.ref_count(2); }), ErrorCode::kInternal);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(code_of([&] { BlockPool(0); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { BlockPool(int64_t{1} << 31); }), ErrorCode::kInvalidArgument);
}

TEST(BlockPool, CopyOnWrite) {
  BlockPool pool(3);
  BlockId block = pool.allocate();
  EXPECT_EQ(pool.make_writable(block), block);
  pool.retain(block);
  BlockId copy = pool.make_writable(block);
  EXPECT_NE(copy, block);
  EXPECT_EQ(pool.ref_count(block), 1);
  EXPECT_EQ(pool.ref_count(copy), 1);
  EXPECT_EQ(pool.make_writable(block), block);
}

// Keeps what it is told to, and gives up what became idle first.
struct OldestFirst : BlockKeeper {
  explicit OldestFirst(BlockPool& pool) : pool(pool) { pool.set_keeper(this); }
  ~OldestFirst() override { pool.set_keeper(nullptr); }
  void let_go(BlockId block) override { idle.push_back(block); }
  void taken(BlockId block) override { std::erase(idle, block); }
  void give_up_one() override {
    BlockId block = idle.front();
    idle.erase(idle.begin());
    pool.unkeep(block);
  }
  BlockPool& pool;
  std::vector<BlockId> idle;
};

TEST(BlockPool, KeptBlocksAreIdleUntilTakenOrGivenUp) {
  BlockPool pool(3);
  OldestFirst keeper(pool);
  for (BlockId block = 0; block < 3; ++block) EXPECT_EQ(pool.allocate(), block);
  pool.keep(0);
  pool.keep(1);
  EXPECT_EQ(pool.ref_count(1), 2);
  EXPECT_EQ(pool.num_users(1), 1);
  EXPECT_EQ(code_of([&] { pool.keep(1); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.unkeep(2); }), ErrorCode::kInternal);
  EXPECT_EQ(code_of([&] { pool.allocate(); }), ErrorCode::kResourceExhausted);

  EXPECT_FALSE(pool.release(1));
  EXPECT_FALSE(pool.release(0));
  EXPECT_TRUE(pool.is_idle(0) && pool.is_kept(0));
  EXPECT_EQ(code_of([&] { pool.release(0); }), ErrorCode::kInternal);  // the keeper's hold is not ours to end
  EXPECT_EQ(keeper.idle, (std::vector<BlockId>{1, 0}));
  EXPECT_EQ(pool.num_idle(), 2);
  EXPECT_EQ(pool.num_used(), 1);

  pool.retain(0);
  EXPECT_EQ(keeper.idle, (std::vector<BlockId>{1}));
  EXPECT_EQ(pool.num_available(), 1);
  EXPECT_TRUE(pool.release(2));
  EXPECT_EQ(pool.allocate(), 2);  // free ones first
  EXPECT_EQ(pool.allocate(), 1);
  EXPECT_FALSE(pool.is_kept(1));
  pool.unkeep(0);  // its user stays
  EXPECT_EQ(pool.num_users(0), 1);
  EXPECT_TRUE(pool.release(0));
  EXPECT_TRUE(keeper.idle.empty());
}

TEST(BlockPool, AWriterOfAKeptBlockGetsACopy) {
  BlockPool pool(2);
  OldestFirst keeper(pool);
  BlockId block = pool.allocate();
  pool.keep(block);
  EXPECT_TRUE(pool.is_shared(block));
  EXPECT_EQ(pool.make_writable(block), 1);
  EXPECT_EQ(keeper.idle, (std::vector<BlockId>{block}));
  EXPECT_EQ(pool.num_idle(), 1);
  pool.unkeep(block);
  EXPECT_EQ(pool.num_free(), 1);
}

// The pool against a map of reference counts and a stack, written down as plainly as can be.
class RandomOperations : public testing::TestWithParam<int> {};

TEST_P(RandomOperations, AgreeWithANaiveModel) {
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  int size = 1 + static_cast<int>(random() % 40);
  BlockPool pool(size);
  std::map<BlockId, int> refs;
  std::vector<BlockId> stack;
  for (int i = size; i-- > 0;) stack.push_back(i);
  std::vector<BlockId> holds;  // one entry per hold

  auto naive_allocate = [&] {
    BlockId block = stack.back();
    stack.pop_back();
    refs[block] = 1;
    return block;
  };
  for (int op = 0; op < 100000; ++op) {
    size_t pick = holds.empty() ? 0 : random() % holds.size();
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
        if (stack.empty()) {
          ASSERT_EQ(code_of([&] { pool.allocate(); }), ErrorCode::kResourceExhausted);
        } else {
          BlockId expected = naive_allocate();
          ASSERT_EQ(pool.allocate(), expected);
          holds.push_back(expected);
        }
        break;
      case 3:
        if (holds.empty()) break;
        pool.retain(holds[pick]);
        ++refs[holds[pick]];
        holds.push_back(holds[pick]);
        break;
      case 4:
      case 5:
      case 6: {
        if (holds.empty()) break;
        BlockId block = holds[pick];
        holds.erase(holds.begin() + static_cast<long>(pick));
        bool last = --refs[block] == 0;
        if (last) {
          refs.erase(block);
          stack.push_back(block);
        }
        ASSERT_EQ(pool.release(block), last);
        break;
      }
      case 7: {
        if (holds.empty()) break;
        BlockId block = holds[pick];
        if (refs[block] == 1) {
          ASSERT_EQ(pool.make_writable(block), block);
        } else if (!stack.empty()) {
          --refs[block];
          BlockId copy = naive_allocate();
          ASSERT_EQ(pool.make_writable(block), copy);
          holds[pick] = copy;
        } else {
          ASSERT_EQ(code_of([&] { pool.make_writable(block); }), ErrorCode::kResourceExhausted);
        }
        break;
      }
    }
    ASSERT_EQ(pool.num_free(), static_cast<int64_t>(stack.size()));
    auto block = static_cast<BlockId>(random() % static_cast<unsigned>(size));
    ASSERT_EQ(pool.ref_count(block), refs.contains(block) ? refs[block] : 0);
  }
  EXPECT_EQ(pool.free_list(), stack);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomOperations, testing::Range(0, 5));

}  // namespace
}  // namespace taco
