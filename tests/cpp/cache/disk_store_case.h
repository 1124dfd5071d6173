// What the tests of the disk tier share: a folder of its own for each, and blocks whose bytes follow from
// their number.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cache/block_key.h"
#include "cache/disk_store.h"

namespace taco {

inline std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

class DiskStoreTest : public testing::Test {
 protected:
  static constexpr int kBlockSize = 16;

  virtual std::string parent() { return testing::TempDir(); }

  void SetUp() override {
    std::string name = parent() + "taco-disk-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override {
    std::error_code error;
    std::filesystem::permissions(directory_, std::filesystem::perms::owner_all, error);
    std::filesystem::remove_all(directory_, error);
  }

  // With room for exactly so many slots.
  DiskStoreOptions small(size_t block_bytes, int64_t slots) {
    DiskStoreOptions options;
    options.directory = directory_;
    options.block_bytes = block_bytes;
    options.block_size = kBlockSize;
    options.capacity_bytes = static_cast<int64_t>(disk_format::kPage) +
                             slots * static_cast<int64_t>(disk_format::stride(block_bytes) +
                                                          disk_format::record_bytes(kBlockSize));
    options.log = [this](const std::string& line) {
      std::lock_guard lock(lines_mutex_);
      lines_.push_back(line);
    };
    return options;
  }

  std::unique_ptr<DiskStore> open(const DiskStoreOptions& options) {
    return DiskStore::open(options, found_);
  }

  void expect_unavailable(const DiskStoreOptions& options, const std::string& part) {
    try {
      open(options);
      ADD_FAILURE() << "opened";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnavailable) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  static DiskRecord record(int number) {
    DiskRecord record;
    record.root = sha256("root");
    record.parent = sha256(std::to_string(number / 2));
    for (int i = 0; i < kBlockSize; ++i) record.tokens.push_back(number * 31 + i);
    record.key = block_key(record.parent, record.tokens);
    return record;
  }

  static std::vector<uint8_t> payload_of(const DiskRecord& record, size_t block_bytes) {
    std::seed_seq seed(record.key.bytes.begin(), record.key.bytes.end());
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(block_bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
  }
  static std::vector<uint8_t> payload(int number, size_t block_bytes) {
    return payload_of(record(number), block_bytes);
  }

  static bool read(DiskStore& store, int64_t slot, const Digest& key, std::span<uint8_t> payload) {
    BlockRead block{slot, key, payload, false};
    store.read({&block, 1});
    return block.done;
  }
  // False: the store says that it does not have it. Wrong bytes are a failure, always.
  static bool reads_right(DiskStore& store, int64_t slot, const DiskRecord& record) {
    std::vector<uint8_t> bytes(store.block_bytes());
    if (!read(store, slot, record.key, bytes)) return false;
    EXPECT_EQ(bytes, payload_of(record, store.block_bytes())) << "slot " << slot;
    return true;
  }

  std::string directory_;
  std::vector<std::pair<int64_t, DiskRecord>> found_;
  std::mutex lines_mutex_;
  std::vector<std::string> lines_;
};

// A store whose slots hold the blocks of their numbers.
class FullDiskStoreTest : public DiskStoreTest {
 protected:
  static constexpr int kSlots = 8;
  void SetUp() override {
    DiskStoreTest::SetUp();
    options_ = small(4096, kSlots);
    store_ = open(options_);
    path_ = store_->path();
    for (int slot = 0; slot < kSlots; ++slot)
      ASSERT_TRUE(store_->write(slot, record(slot), payload(slot, 4096)));
  }
  void reopen() {
    store_.reset();
    store_ = open(options_);
  }

  DiskStoreOptions options_;
  std::unique_ptr<DiskStore> store_;
  std::string path_;
};

}  // namespace taco
