// Which blocks on disk were used last, over restarts of any kind.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "disk_store_case.h"

namespace taco {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

class DiskUsesTest : public FullDiskStoreTest {
 protected:
  void use(std::vector<int64_t> slots) { store_->used(slots); }
  // As they would leave.
  std::vector<int64_t> order_after_reopening() {
    reopen();
    std::vector<int64_t> slots;
    for (auto& [slot, record] : found_) slots.push_back(slot);
    return slots;
  }
  std::string uses() const { return path_ + "/uses"; }
};

TEST_F(DiskUsesTest, TheOrderOfUseSurvivesARestart) {
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  use({3, 1});
  use({0});
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{2, 4, 5, 6, 7, 3, 1, 0}));
  use({3});
  ASSERT_TRUE(store_->write(4, record(40), payload(40, 4096)));
  use({2});
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{5, 6, 7, 1, 0, 3, 4, 2}));
  // Nothing happened: nothing changes.
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{5, 6, 7, 1, 0, 3, 4, 2}));
  // What is written anew is the newest, whatever was known of its slot.
  ASSERT_TRUE(store_->write(5, record(50), payload(50, 4096)));
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{6, 7, 1, 0, 3, 4, 2, 5}));
}

TEST_F(DiskUsesTest, KillNineLosesTheLastUsesAtMost) {
  store_.reset();
  options_.log = nullptr;
  options_.uses_every = 0.01;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::vector<std::pair<int64_t, DiskRecord>> found;
    auto store = DiskStore::open(options_, found);
    const std::vector<int64_t> slots{1, 0};
    store->used(slots);
    for (;;) ::pause();
  }
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (!fs::exists(uses()) || fs::file_size(uses()) < kSlots * 8) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(5ms);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{2, 3, 4, 5, 6, 7, 1, 0}));
}

TEST_F(DiskUsesTest, WhatTheFileSaysDecidesNothingButTheOrder) {
  std::mt19937_64 random(8);
  for (int round = 0; round < 300; ++round) {
    store_.reset();
    std::vector<uint8_t> bytes(random() % 3 == 0 ? random() % 100 : kSlots * 8);
    for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
      const uint64_t value = random() >> random() % 64;
      std::memcpy(bytes.data() + at, &value, 8);
    }
    write_file(uses(), bytes);
    store_ = open(options_);
    ASSERT_EQ(found_.size(), size_t{kSlots});
    for (auto& [slot, record] : found_) ASSERT_TRUE(reads_right(*store_, slot, record));
    use({static_cast<int64_t>(random() % kSlots)});
    const auto slot = static_cast<int>(random() % kSlots);
    ASSERT_TRUE(store_->write(slot, record(1000 + round), payload(1000 + round, 4096)));
  }
  EXPECT_EQ(order_after_reopening().size(), size_t{kSlots});
}

TEST_F(DiskUsesTest, WithoutTheFileItIsTheOrderOfWriting) {
  const std::vector<int64_t> written{0, 1, 2, 3, 4, 5, 6, 7};
  use({2, 1, 0});
  EXPECT_NE(order_after_reopening(), written);
  store_.reset();
  fs::remove(uses());
  EXPECT_EQ(order_after_reopening(), written);
  // Nothing of another kind is opened or written in its place.
  store_.reset();
  fs::remove(uses());
  write_file(directory_ + "/victim", {1, 2, 3});
  fs::create_symlink(directory_ + "/victim", uses());
  EXPECT_EQ(order_after_reopening(), written);
  use({0});
  EXPECT_EQ(order_after_reopening(), written);
  EXPECT_EQ(fs::file_size(directory_ + "/victim"), 3u);
  store_.reset();
  fs::remove(uses());
  ASSERT_EQ(::mkfifo(uses().c_str(), 0600), 0);
  EXPECT_EQ(order_after_reopening(), written);
  use({0});
  EXPECT_EQ(order_after_reopening(), written);
}

// An index that begins empty has no uses of another one's slots.
TEST_F(DiskUsesTest, ADamagedIndexTakesThemAlong) {
  use({7, 6, 5, 4, 3, 2, 1, 0});
  store_.reset();
  std::vector<uint8_t> index = read_file(path_ + "/index");
  index[20] ^= 1;
  write_file(path_ + "/index", index);
  EXPECT_TRUE(order_after_reopening().empty());
  for (int slot = 0; slot < 3; ++slot) ASSERT_TRUE(store_->write(slot, record(slot), payload(slot, 4096)));
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{0, 1, 2}));
}

TEST_F(DiskUsesTest, MoreSlotsAndFewer) {
  use({3, 1});
  options_ = small(4096, 2000);  // more than a page of them
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{0, 2, 4, 5, 6, 7, 3, 1}));
  ASSERT_TRUE(store_->write(1999, record(1999), payload(1999, 4096)));
  ASSERT_TRUE(store_->write(1000, record(1000), payload(1000, 4096)));
  use({1999, 0});
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{2, 4, 5, 6, 7, 3, 1, 1000, 1999, 0}));
  options_ = small(4096, 4);
  EXPECT_EQ(order_after_reopening(), (std::vector<int64_t>{2, 3, 1, 0}));
}

}  // namespace
}  // namespace taco
