// After a reset nothing that was on disk before is found, in this process or in a later one.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/checksum.h"
#include "cache/disk_folder.h"
#include "disk_store_case.h"

namespace taco {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

class DiskResetTest : public FullDiskStoreTest {
 protected:
  static DiskRecord record_after(int number, uint64_t resets) {
    DiskRecord made = record(number);
    made.resets = resets;
    return made;
  }
  static bool write(DiskStore& store, int64_t slot, int number, uint64_t resets) {
    return store.write(slot, record_after(number, resets), payload(number, 4096));
  }
};

TEST_F(DiskResetTest, NothingOfBeforeIsFound) {
  EXPECT_EQ(store_->reset(), 1u);
  for (int slot = 0; slot < kSlots; ++slot) EXPECT_FALSE(reads_right(*store_, slot, record(slot)));
  EXPECT_EQ(store_->stats().used_slots, 0);
  EXPECT_TRUE(store_->settle());
  ASSERT_TRUE(write(*store_, 3, 103, 1));
  EXPECT_TRUE(reads_right(*store_, 3, record(103)));
  for (int round = 0; round < 2; ++round) {
    reopen();
    ASSERT_EQ(found_.size(), 1u);
    EXPECT_EQ(found_[0].first, 3);
    EXPECT_TRUE(reads_right(*store_, 3, record(103)));
    EXPECT_FALSE(reads_right(*store_, 4, record(4)));
  }
  // Of a new process the resets count from nought; on disk they go on.
  ASSERT_TRUE(write(*store_, 4, 104, 0));
  EXPECT_EQ(store_->reset(), 1u);
  EXPECT_EQ(store_->reset(), 2u);
  ASSERT_TRUE(write(*store_, 5, 105, 2));
  reopen();
  ASSERT_EQ(found_.size(), 1u);
  EXPECT_EQ(found_[0].first, 5);
  EXPECT_TRUE(lines_.empty());
}

TEST_F(DiskResetTest, WithoutAWriteClosingIsEnough) {
  store_->reset();
  reopen();
  EXPECT_TRUE(found_.empty());
}

TEST_F(DiskResetTest, WhatWasToBeWrittenBeforeIsNot) {
  store_->reset();
  EXPECT_FALSE(write(*store_, 3, 103, 0));
  EXPECT_FALSE(reads_right(*store_, 3, record(103)));
  EXPECT_TRUE(store_->can_write());
  reopen();
  EXPECT_TRUE(found_.empty());
}

TEST_F(DiskResetTest, AmidWrites) {
  for (int round = 0; round < 20; ++round) {
    std::atomic<uint64_t> resets{0};
    std::atomic<int> written{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> writers;
    for (int slot = 0; slot < 2; ++slot) {
      writers.emplace_back([&, slot] {
        for (int i = 0; !stop; ++i) {
          const uint64_t before = resets;
          written += write(*store_, slot, static_cast<int>(before) * 10000 + slot * 5000 + i % 5000, before);
        }
      });
    }
    for (int reset = 0; reset < 3; ++reset) {
      const int seen = written;
      for (int i = 0; i < 1000 && written < seen + 4; ++i) std::this_thread::sleep_for(100us);
      resets = store_->reset();
    }
    EXPECT_TRUE(store_->settle());
    stop = true;
    for (std::thread& writer : writers) writer.join();
    reopen();
    for (auto& [slot, found] : found_) {
      EXPECT_GE(found.tokens[0] / 31, 30000) << "slot " << slot << " of before the last reset";
      EXPECT_TRUE(reads_right(*store_, slot, found));
    }
  }
}

// Killed as soon as the reset is settled, or at any time when blocks are written after it.
TEST_F(DiskResetTest, KillNineDoesNotBringItBack) {
  for (const bool writes : {false, true}) {
    for (int slot = 0; slot < kSlots; ++slot) ASSERT_TRUE(write(*store_, slot, slot, 0));
    store_.reset();
    options_.log = nullptr;
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::vector<std::pair<int64_t, DiskRecord>> found;
      auto store = DiskStore::open(options_, found);
      if (found.size() != kSlots) ::_exit(1);
      store->reset();
      if (writes ? !write(*store, 6, 106, 1) : !store->settle()) ::_exit(2);
      if (::write(ends[1], "x", 1) != 1) ::_exit(3);
      for (;;) ::pause();
    }
    ::close(ends[1]);
    char settled = 0;
    ASSERT_EQ(::read(ends[0], &settled, 1), 1);
    ::close(ends[0]);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    store_ = open(options_);
    ASSERT_EQ(found_.size(), writes ? 1u : 0u);
    if (writes) {
      EXPECT_EQ(found_[0].second.key, record(106).key);
    }
  }
}

TEST_F(DiskResetTest, AnIndexThatCannotBeWrittenIsRemoved) {
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    if (!fs::read_symlink(entry.path(), error).string().ends_with("/index")) continue;
    const int fd = ::open("/dev/full", O_RDWR);
    ASSERT_EQ(::dup2(fd, std::stoi(entry.path().filename())), std::stoi(entry.path().filename()));
    ::close(fd);
    break;
  }
  store_->reset();
  EXPECT_TRUE(store_->settle());
  EXPECT_FALSE(fs::exists(path_ + "/index"));
  EXPECT_FALSE(store_->can_write());
  EXPECT_FALSE(write(*store_, 1, 101, 1));
  ASSERT_EQ(lines_.size(), 1u);
  EXPECT_NE(lines_[0].find("resetting"), std::string::npos) << lines_[0];
  reopen();
  EXPECT_TRUE(found_.empty());
}

// Of a program that knew no resets: its folder is not read, and goes.
TEST_F(DiskResetTest, AFolderOfVersionOne) {
  disk_format::Header header;
  header.identity = options_.identity;
  header.block_size = kBlockSize;
  header.block_bytes = 4096;
  header.num_slots = kSlots;
  header.segment_slots = (int64_t{16} << 30) / 4096;
  header.segment_slots = std::min(header.segment_slots, disk_format::kMaxSlots);
  ASSERT_EQ(directory_ + "/" + folder_name(header), path_);
  auto page = disk_format::encode(header);
  const uint32_t version = 1;
  std::memcpy(page.data() + 8, &version, 4);
  const uint32_t crc = crc32c({page.data(), 72});
  std::memcpy(page.data() + 72, &crc, 4);
  std::memset(page.data() + 76, 0, 4);
  EXPECT_FALSE(disk_format::decode_header(page));
  EXPECT_EQ(disk_format::decode_header(page, 1), header);
  const std::string old = directory_ + "/" + folder_name(header, 1);
  // This model's goes at the next start; another model's is one of those that give way.
  fs::create_directory(old);
  write_file(old + "/index", {page.begin(), page.end()});
  write_file(old + "/blocks.00000", std::vector<uint8_t>(4096));
  header.identity.bytes[0] ^= 1;
  const std::string others = directory_ + "/" + folder_name(header, 1);
  fs::create_directory(others);
  write_file(others + "/index", {page.begin(), page.end()});
  reopen();
  EXPECT_EQ(found_.size(), size_t{kSlots});
  EXPECT_FALSE(fs::exists(old));
  ASSERT_GE(lines_.size(), 1u);
  EXPECT_NE(lines_[0].find("an earlier version"), std::string::npos) << lines_[0];
  EXPECT_FALSE(fs::exists(others));
}

}  // namespace
}  // namespace taco
