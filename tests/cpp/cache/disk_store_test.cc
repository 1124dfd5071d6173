#include "cache/disk_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "cache/disk_folder.h"
#include "disk_store_case.h"

namespace taco {
namespace {

namespace fs = std::filesystem;

TEST_F(DiskStoreTest, FindsWhatWasWrittenAfterReopening) {
  for (size_t block_bytes : {size_t{100}, size_t{4096}, size_t{3 * 4096}, size_t{5000}}) {
    for (DiskIo io : {DiskIo::kDirect, DiskIo::kDropping, DiskIo::kCached}) {
      SCOPED_TRACE(block_bytes);
      DiskStoreOptions options = small(block_bytes, 20);
      options.directory +=
          "/made/" + std::to_string(block_bytes) + "-" + std::to_string(static_cast<int>(io));
      options.io = io;
      {
        auto store = open(options);
        EXPECT_TRUE(found_.empty());
        ASSERT_EQ(store->num_slots(), 20);
        for (int i = 0; i < 20; i += 2) ASSERT_TRUE(store->write(i, record(i), payload(i, block_bytes)));
        for (int i = 0; i < 20; ++i) EXPECT_EQ(reads_right(*store, i, record(i)), i % 2 == 0) << i;
        EXPECT_EQ(store->stats().used_slots, 10);
      }
      auto store = open(options);
      ASSERT_EQ(found_.size(), 10u);
      for (size_t i = 0; i < found_.size(); ++i) {
        EXPECT_EQ(found_[i].first, static_cast<int64_t>(2 * i)) << "the oldest first";
        EXPECT_EQ(found_[i].second.tokens, record(static_cast<int>(2 * i)).tokens);
        EXPECT_EQ(found_[i].second.parent, record(static_cast<int>(2 * i)).parent);
        EXPECT_EQ(found_[i].second.root, record(static_cast<int>(2 * i)).root);
        EXPECT_TRUE(reads_right(*store, found_[i].first, found_[i].second));
      }
      EXPECT_EQ(store->stats().used_slots, 10);
      EXPECT_EQ(store->stats().blocks_damaged, 0);
    }
  }
  EXPECT_TRUE(lines_.empty()) << lines_.front();
}

TEST_F(DiskStoreTest, ASlotWrittenAgainHoldsTheNewBlockOnly) {
  DiskStoreOptions options = small(4096, 8);
  auto store = open(options);
  ASSERT_TRUE(store->write(3, record(1), payload(1, 4096)));
  ASSERT_TRUE(store->write(3, record(2), payload(2, 4096)));
  EXPECT_FALSE(reads_right(*store, 3, record(1)));
  EXPECT_TRUE(reads_right(*store, 3, record(2)));
  ASSERT_TRUE(store->write(4, record(3), payload(3, 4096)));
  store->erase(4);
  store->erase(4);
  EXPECT_FALSE(reads_right(*store, 4, record(3)));
  store.reset();
  store = open(options);
  ASSERT_EQ(found_.size(), 1u);
  EXPECT_EQ(found_[0].second.key, record(2).key);
  EXPECT_EQ(store->stats().used_slots, 1);
}

// The order of writing survives, whatever slots it went to.
TEST_F(DiskStoreTest, OldestFirst) {
  DiskStoreOptions options = small(4096, 8);
  auto store = open(options);
  for (int slot : {5, 1, 7, 0}) ASSERT_TRUE(store->write(slot, record(slot), payload(slot, 4096)));
  store.reset();
  store = open(options);
  ASSERT_TRUE(store->write(2, record(2), payload(2, 4096)));
  store.reset();
  store = open(options);
  std::vector<int64_t> slots;
  for (auto& [slot, record] : found_) slots.push_back(slot);
  EXPECT_EQ(slots, (std::vector<int64_t>{5, 1, 7, 0, 2}));
}

TEST_F(DiskStoreTest, UnalignedMemory) {
  DiskStoreOptions options = small(8192, 4);
  options.io = DiskIo::kDirect;
  auto store = open(options);
  std::vector<uint8_t> memory(8192 + 1);
  auto bytes = payload(9, 8192);
  std::copy(bytes.begin(), bytes.end(), memory.begin() + 1);
  ASSERT_TRUE(store->write(1, record(9), {memory.data() + 1, 8192}));
  std::fill(memory.begin(), memory.end(), uint8_t{0});
  ASSERT_TRUE(read(*store, 1, record(9).key, {memory.data() + 1, 8192}));
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), memory.begin() + 1));
}

// Many blocks asked for at once, in any order: neighbours, gaps, ends of data files, the same block twice,
// what is not there and what is damaged.
TEST_F(DiskStoreTest, ReadsManyAtOnce) {
  constexpr int kSlots = 40;
  std::mt19937 random(5);
  for (size_t block_bytes : {size_t{8192}, size_t{8192 + 64}}) {
    for (DiskIo io : {DiskIo::kDropping, DiskIo::kCached, DiskIo::kDirect}) {
      DiskStoreOptions options = small(block_bytes, kSlots);
      options.io = io;
      options.segment_bytes = 16 * static_cast<int64_t>(disk_format::stride(block_bytes));
      std::set<int> damaged, gone;
      auto store = open(options);
      for (int slot = 0; slot < kSlots; ++slot)
        ASSERT_TRUE(store->write(slot, record(slot), payload(slot, block_bytes)));
      for (int slot : {5, 17, 18, 33}) store->erase(slot), gone.insert(slot);
      for (int slot : {7, 15, 16, 39}) {
        const int segment = slot / 16;
        const std::string path = store->path() + "/blocks.0000" + std::to_string(segment);
        std::vector<uint8_t> bytes = read_file(path);
        bytes[static_cast<size_t>(slot % 16) * disk_format::stride(block_bytes) + 100] ^= 1;
        write_file(path, bytes);
        damaged.insert(slot);
      }
      for (int round = 0; round < 50; ++round) {
        std::vector<int> slots;
        for (int at = static_cast<int>(random() % kSlots); slots.size() < 30; at = (at + 1) % kSlots)
          slots.push_back(random() % 4 == 0 ? static_cast<int>(random() % kSlots) : at);
        // Page by page: what direct reads want, and one that they do not want.
        std::vector<uint8_t> memory((slots.size() + 1) * 12288 + 4096);
        size_t base = 4096 - reinterpret_cast<uintptr_t>(memory.data()) % 4096;
        std::vector<BlockRead> reads;
        for (size_t i = 0; i < slots.size(); ++i) {
          uint8_t* to = memory.data() + base + i * 12288 + (i == 9);
          reads.push_back(
              {slots[i], record(round == 0 ? slots[i] + 1 : slots[i]).key, {to, block_bytes}, true});
        }
        store->read(reads);
        for (size_t i = 0; i < slots.size(); ++i) {
          const bool expected = round > 0 && gone.count(slots[i]) + damaged.count(slots[i]) == 0;
          ASSERT_EQ(reads[i].done, expected) << "slot " << slots[i];
          if (!expected) continue;
          ASSERT_TRUE(std::ranges::equal(reads[i].payload, payload(slots[i], block_bytes))) << slots[i];
        }
      }
      EXPECT_EQ(store->stats().blocks_damaged, static_cast<int64_t>(damaged.size()));
      EXPECT_TRUE(store->can_read() && store->can_write());
      const std::string path = store->path();
      store.reset();
      std::filesystem::remove_all(path);
    }
  }
}

// The end of a data file is gone: what stood there is, and no other.
TEST_F(DiskStoreTest, ReadsWhatIsLeftOfAFile) {
  DiskStoreOptions options = small(4096, 8);
  auto store = open(options);
  for (int slot = 0; slot < 8; ++slot) ASSERT_TRUE(store->write(slot, record(slot), payload(slot, 4096)));
  std::filesystem::resize_file(store->path() + "/blocks.00000", 5 * 4096 + 100);
  std::vector<std::vector<uint8_t>> memory(8, std::vector<uint8_t>(4096));
  std::vector<BlockRead> reads;
  for (size_t i = 0; i < 8; ++i)
    reads.push_back({static_cast<int64_t>(i), record(static_cast<int>(i)).key, memory[i], false});
  store->read(reads);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(reads[i].done, i < 5) << i;
    if (reads[i].done) {
      EXPECT_EQ(memory[i], payload(static_cast<int>(i), 4096)) << i;
    }
  }
  EXPECT_EQ(store->stats().blocks_damaged, 3);
  EXPECT_TRUE(store->can_read());
}

TEST_F(DiskStoreTest, NothingIsSharedBetweenIdentitiesOrShapes) {
  DiskStoreOptions options = small(4096, 8);
  std::set<std::string> folders;
  {
    auto store = open(options);
    ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
    folders.insert(store->path());
  }
  for (int change = 0; change < 3; ++change) {
    DiskStoreOptions other = options;
    other.capacity_bytes *= 10;
    if (change == 0) other.identity.bytes[31] ^= 1;
    if (change == 1) other.block_bytes = 8192;
    if (change == 2) other.block_size = 8;
    auto store = open(other);
    EXPECT_TRUE(found_.empty());
    EXPECT_TRUE(folders.insert(store->path()).second);
  }
}

// An index copied to where another identity's should be.
TEST_F(DiskStoreTest, RecordsOfAnotherIdentityDoNotCount) {
  DiskStoreOptions options = small(4096, 8), other = options;
  other.identity.bytes[0] ^= 1;
  std::string from, to;
  {
    auto store = open(options);
    ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
    from = store->path();
  }
  to = open(other)->path();
  fs::copy_file(from + "/index", to + "/index", fs::copy_options::overwrite_existing);
  fs::copy_file(from + "/blocks.00000", to + "/blocks.00000", fs::copy_options::overwrite_existing);
  {
    auto store = open(other);
    EXPECT_TRUE(found_.empty());
    EXPECT_EQ(lines_.size(), 1u);  // a damaged index
  }
  // The records alone, under a header that is right.
  auto store = open(other);
  store.reset();
  auto bytes = read_file(from + "/index"), own = read_file(to + "/index");
  std::copy(own.begin(), own.begin() + 4096, bytes.begin());
  write_file(to + "/index", bytes);
  store = open(other);
  EXPECT_TRUE(found_.empty());
}

TEST_F(DiskStoreTest, TheCapacityIsNeverExceeded) {
  DiskStoreOptions options = small(4096, 50);
  options.segment_bytes = 8 * 4096;
  auto store = open(options);
  for (int i = 49; i >= 0; --i) ASSERT_TRUE(store->write(i, record(i), payload(i, 4096)));
  EXPECT_THROW(store->write(50, record(50), payload(50, 4096)), Error);
  int64_t total = 0;
  int segments = 0;
  for (const auto& entry : fs::directory_iterator(store->path())) {
    total += static_cast<int64_t>(entry.file_size());
    segments += entry.path().filename().string().starts_with("blocks.");
    EXPECT_LE(entry.file_size(), std::max<uint64_t>(8 * 4096, 4096 + 50 * 192));
  }
  EXPECT_EQ(segments, 7);
  EXPECT_LE(total - 4096 /* the lock, where it was used to try direct I/O */, options.capacity_bytes);
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(reads_right(*store, i, record(i)));
}

TEST_F(DiskStoreTest, ASmallerCapacityKeepsTheFirstSlots) {
  DiskStoreOptions options = small(4096, 50);
  options.segment_bytes = 8 * 4096;
  {
    auto store = open(options);
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(store->write(i, record(i), payload(i, 4096)));
  }
  options.capacity_bytes = small(4096, 19).capacity_bytes;
  auto store = open(options);
  EXPECT_EQ(store->num_slots(), 19);
  ASSERT_EQ(found_.size(), 19u);
  for (auto& [slot, record] : found_) EXPECT_TRUE(reads_right(*store, slot, record));
  EXPECT_FALSE(fs::exists(store->path() + "/blocks.00003"));
  EXPECT_EQ(fs::file_size(store->path() + "/blocks.00002"), 3u * 4096);
  store.reset();
  options.capacity_bytes = small(4096, 50).capacity_bytes;
  store = open(options);
  EXPECT_EQ(store->num_slots(), 50);
  EXPECT_EQ(found_.size(), 19u) << "a slot that was cut off does not come back";
}

TEST_F(DiskStoreTest, OtherIdentitiesMakeRoomTheLeastRecentlyUsedFirst) {
  DiskStoreOptions options = small(4096, 40);
  std::vector<std::string> paths;
  for (int model = 0; model < 3; ++model) {
    options.identity.bytes[0] = static_cast<uint8_t>(model);
    auto store = open(options);
    for (int i = 0; i < 8; ++i) ASSERT_TRUE(store->write(i, record(i), payload(i, 4096)));
    paths.push_back(store->path());
    store.reset();
    // Used model + 1 hours ago: the last is the oldest.
    timespec then{::time(nullptr) - 3600 * (model + 1), 0}, times[2] = {then, then};
    ::utimensat(AT_FDCWD, (paths.back() + "/index").c_str(), times, 0);
  }
  fs::create_directory(directory_ + "/mine");
  fs::create_directory(directory_ + "/taco-kv-00000000000000000000000000000000");  // without our header
  write_file(directory_ + "/taco-kv-00000000000000000000000000000000/index", std::vector<uint8_t>(9000, 7));
  options.identity.bytes[0] = 9;
  auto store = open(options);
  EXPECT_TRUE(fs::exists(paths[2])) << "nothing is removed before room is needed";
  std::vector<int> gone_at(3, -1);
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(store->write(i, record(i), payload(i, 4096)));
    for (size_t model = 0; model < 3; ++model) {
      if (gone_at[model] < 0 && !fs::exists(paths[model])) gone_at[model] = i;
    }
    int64_t total = 0;
    for (const auto& entry : fs::recursive_directory_iterator(directory_)) {
      struct stat status;
      bool ours = entry.path().filename().string().starts_with("blocks.");
      if (ours && ::stat(entry.path().c_str(), &status) == 0) total += status.st_blocks * 512;
    }
    ASSERT_LE(total, options.capacity_bytes);
  }
  EXPECT_GT(gone_at[2], 0);
  EXPECT_GT(gone_at[1], gone_at[2]);
  EXPECT_GT(gone_at[0], gone_at[1]);
  EXPECT_EQ(store->stats().folders_removed, 3);
  EXPECT_TRUE(fs::exists(directory_ + "/mine"));
  EXPECT_TRUE(fs::exists(directory_ + "/taco-kv-00000000000000000000000000000000/index"));
}

TEST_F(DiskStoreTest, WhatARunningServerMayFillIsNotGivenAway) {
  DiskStoreOptions options = small(4096, 10), other = options;
  auto store = open(options);
  ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
  other.identity.bytes[0] ^= 1;
  expect_unavailable(other, "raise --prefix-cache-disk-gb");
  other.capacity_bytes = small(4096, 10).capacity_bytes + small(4096, 6).capacity_bytes;
  auto second = open(other);
  EXPECT_EQ(second->num_slots(), 6);
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(second->write(i, record(i), payload(i, 4096)));
  EXPECT_TRUE(reads_right(*store, 0, record(0)));
}

TEST_F(DiskStoreTest, TwoAtOnceDoNotShare) {
  DiskStoreOptions options = small(4096, 10);
  auto store = open(options);
  expect_unavailable(options, "another server uses the disk cache");
  // Another process sees the same.
  pid_t child = ::fork();
  if (child == 0) {
    int status = 0;
    try {
      std::vector<std::pair<int64_t, DiskRecord>> found;
      DiskStore::open(options, found);
    } catch (const Error& error) {
      status = error.code() == ErrorCode::kUnavailable ? 7 : 8;
    }
    ::_exit(status);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
  store.reset();
  EXPECT_NO_THROW(open(options));
  EXPECT_EQ(found_.size(), 1u);
}

TEST_F(DiskStoreTest, AClosedStoreLeavesItsFolderToTheNext) {
  DiskStoreOptions options = small(4096, 10);
  auto store = open(options);
  ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
  store->close();
  auto next = open(options);
  ASSERT_EQ(found_.size(), 1u);
  EXPECT_FALSE(store->working());
  EXPECT_FALSE(store->write(0, record(1), payload(1, 4096)));
  EXPECT_FALSE(reads_right(*store, 0, record(0)));
  store->erase(0);
  store->close();
  EXPECT_TRUE(reads_right(*next, 0, record(0)));
  store.reset();
  expect_unavailable(options, "another server");
}

TEST_F(DiskStoreTest, OptionsThatMakeNoSense) {
  for (int change = 0; change < 5; ++change) {
    DiskStoreOptions options = small(4096, 10);
    if (change == 0) options.directory = "";
    if (change == 1) options.block_bytes = 0;
    if (change == 2) options.block_size = 0;
    if (change == 3) options.capacity_bytes = 4096;
    if (change == 4) options.block_size = 1 << 20;
    try {
      open(options);
      ADD_FAILURE() << change;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    }
  }
  auto store = open(small(4096, 10));
  DiskRecord wrong = record(0);
  wrong.tokens[0] ^= 1;
  EXPECT_THROW(store->write(0, wrong, payload(0, 4096)), Error) << "its key is not that of its tokens";
  EXPECT_THROW(store->write(-1, record(0), payload(0, 4096)), Error);
  EXPECT_THROW(store->write(0, record(0), payload(0, 4095)), Error);
}

TEST_F(DiskStoreTest, ThreadsOnDifferentSlots) {
  auto store = open(small(8192, 64));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < 200; ++i) {
        int slot = 16 * t + static_cast<int>(random() % 16), number = 1000 * t + i;
        if (!store->write(slot, record(number), payload(number, 8192))) ++wrong;
        if (!reads_right(*store, slot, record(number))) ++wrong;
        if (i % 7 == 0) store->erase(slot);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(store->stats().blocks_written, 800);
}

}  // namespace
}  // namespace taco
