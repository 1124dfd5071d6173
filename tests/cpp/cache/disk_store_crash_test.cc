// The disk tier against everything that happens to files: processes killed while they write, flipped bits,
// cut files, indexes that somebody made up, full and broken disks, folders that vanish.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "base/checksum.h"
#include "cache/disk_folder.h"
#include "disk_store_case.h"

namespace taco {
namespace {

namespace fs = std::filesystem;
using disk_format::kPage;
using disk_format::record_bytes;

// Descriptors of this process that name a file whose path has this end.
std::vector<int> descriptors_of(const std::string& end) {
  std::vector<int> out;
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    if (fs::read_symlink(entry.path(), error).string().ends_with(end))
      out.push_back(std::stoi(entry.path().filename()));
  }
  return out;
}

void put_in_place_of(const std::string& end, const char* device, int flags) {
  std::vector<int> all = descriptors_of(end);
  ASSERT_EQ(all.size(), 1u) << end;
  int fd = ::open(device, flags);
  ASSERT_GE(fd, 0) << device;
  ASSERT_EQ(::dup2(fd, all[0]), all[0]);
  ::close(fd);
}

int exit_status(pid_t child) {
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// What it changes of the process (limits, mounts) ends with it. True if `body` says so and nothing failed.
bool in_child(const std::function<bool()>& body) {
  pid_t child = ::fork();
  if (child == 0) {
    bool ok = false;
    try {
      ok = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    ::_exit(ok && !testing::Test::HasFailure() ? 0 : 1);
  }
  return exit_status(child) == 0;
}

// A namespace in which this process may mount.
bool own_mounts() {
  std::string uid = "0 " + std::to_string(::getuid()) + " 1", gid = "0 " + std::to_string(::getgid()) + " 1";
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  bool ok = true;
  for (auto [name, text] :
       {std::pair("setgroups", std::string("deny")), {"uid_map", uid}, {"gid_map", gid}}) {
    int fd = ::open((std::string("/proc/self/") + name).c_str(), O_WRONLY);
    ok &= ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::close(fd);
  }
  return ok;
}

// A child writes, overwrites and erases at random and says of each block that it was written; it is killed at
// a random moment. What it said of the last state of a slot must be found again, all of it, but for the block
// it was at.
TEST_F(DiskStoreTest, KillNineLosesTheBlockBeingWrittenAtMost) {
  constexpr size_t kBytes = 16 * 4096;
  constexpr int kSlots = 24;
  DiskStoreOptions options = small(kBytes, kSlots);
  options.log = nullptr;
  options.segment_bytes = 10 * kBytes;
  std::mt19937 random(2026);
  std::map<int64_t, int> expected;  // slot -> number of its block; -1: empty
  int killed_amid = 0;
  for (int round = 0; round < 60; ++round) {
    options.io = round % 2 ? DiskIo::kDropping : DiskIo::kDirect;
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    unsigned seed = random();
    pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::vector<std::pair<int64_t, DiskRecord>> found;
      auto store = DiskStore::open(options, found);
      std::mt19937 own(seed);
      for (int count = 0;;) {
        int message[3] = {0, static_cast<int>(own() % kSlots), 100'000 * round + count++};  // "begun"
        if (own() % 8 == 0) message[2] = -1;
        if (::write(pipe_ends[1], message, sizeof message) != sizeof message) ::_exit(1);
        if (message[2] < 0) {
          store->erase(message[1]);
        } else if (!store->write(message[1], record(message[2]), payload(message[2], kBytes))) {
          ::_exit(2);
        }
        message[0] = 1;  // "done"
        if (::write(pipe_ends[1], message, sizeof message) != sizeof message) ::_exit(1);
      }
    }
    ::close(pipe_ends[1]);
    // Counted in messages: on a busy machine any moment might come before it has done anything.
    int message[3], open_slot = -1, open_number = -1, left = 20 + static_cast<int>(random() % 400);
    while (::read(pipe_ends[0], message, sizeof message) == sizeof message) {
      if (--left == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
        ::kill(child, SIGKILL);
      }
      if (message[0] == 0) {
        open_slot = message[1], open_number = message[2];
      } else {
        expected[message[1]] = message[2];
        open_slot = -1;
      }
    }
    ::close(pipe_ends[0]);
    ASSERT_EQ(exit_status(child), -1) << "it ended by itself";
    killed_amid += open_slot >= 0;

    auto store = open(options);
    std::map<int64_t, Digest> there;
    for (auto& [slot, record] : found_) {
      there[slot] = record.key;
      ASSERT_TRUE(reads_right(*store, slot, record))
          << "found, but not whole: slot " << slot << " in round " << round;
    }
    for (auto [slot, number] : expected) {
      if (slot == open_slot) continue;
      ASSERT_EQ(there.contains(slot), number >= 0) << "slot " << slot << " in round " << round;
      if (number >= 0) {
        ASSERT_EQ(there[slot], record(number).key);
      }
    }
    if (open_slot >= 0) {  // empty, as it was, or as it was to be
      int before = expected.contains(open_slot) ? expected[open_slot] : -1, now = -1;
      if (there.contains(open_slot)) {
        now = before >= 0 && there[open_slot] == record(before).key ? before : open_number;
        ASSERT_GE(now, 0) << "a slot that was empty and is to be";
        ASSERT_EQ(there[open_slot], record(now).key);
      }
      expected[open_slot] = now;
    }
  }
  EXPECT_GT(killed_amid, 10);
}

class DiskStoreDamageTest : public DiskStoreTest {
 protected:
  static constexpr size_t kBytes = 4096;
  static constexpr int kSlots = 12;

  // In memory where there is such a folder: these open the store thousands of times.
  std::string parent() override {
    return fs::is_directory("/dev/shm") ? "/dev/shm/" : DiskStoreTest::parent();
  }

  void SetUp() override {
    DiskStoreTest::SetUp();
    options_ = small(kBytes, kSlots);
    options_.segment_bytes = 5 * 4096;
    auto store = open(options_);
    path_ = store->path();
    for (int i = 0; i < kSlots; ++i) {
      ASSERT_TRUE(store->write(i, record(i), payload(i, kBytes)));
      keys_.insert(record(i).key);
    }
    store.reset();
    index_ = read_file(path_ + "/index");
    ASSERT_EQ(index_.size(), kPage + kSlots * record_bytes(kBlockSize));
  }

  // Everything that is found is one of ours, and is read back right or not at all. How many are.
  int check() {
    auto store = open(options_);
    int right = 0;
    for (auto& [slot, record] : found_) {
      EXPECT_TRUE(keys_.contains(record.key));
      right += reads_right(*store, slot, record);
    }
    return right;
  }

  DiskStoreOptions options_;
  std::string path_;
  std::vector<uint8_t> index_;
  std::set<Digest> keys_;
};

TEST_F(DiskStoreDamageTest, FlippedBitsInTheIndex) {
  std::mt19937 random(1);
  ASSERT_EQ(check(), kSlots);
  for (int i = 0; i < 400; ++i) {
    std::vector<uint8_t> bytes = index_;
    size_t at = i < 100 ? random() % 76 : kPage + random() % (bytes.size() - kPage);
    bytes[at] ^= static_cast<uint8_t>(1u << random() % 8);
    write_file(path_ + "/index", bytes);
    lines_.clear();
    bool in_header = at < kPage;
    ASSERT_EQ(check(), in_header ? 0 : kSlots - 1) << "byte " << at;
    ASSERT_EQ(lines_.size(), in_header ? 1u : 0u);
  }
}

TEST_F(DiskStoreDamageTest, FlippedBitsInTheBlocks) {
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    std::string name = path_ + "/" + data_name(static_cast<int64_t>(random() % 3));
    std::vector<uint8_t> before = read_file(name), bytes = before;
    bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1u << random() % 8);
    write_file(name, bytes);
    lines_.clear();
    ASSERT_EQ(check(), kSlots - 1);
    ASSERT_EQ(lines_.size(), 1u);
    EXPECT_NE(lines_[0].find("damaged"), std::string::npos);
    ASSERT_EQ(check(), kSlots - 1) << "a damaged block is emptied for good";
    ASSERT_EQ(found_.size(), static_cast<size_t>(kSlots - 1));
    write_file(name, before);
    write_file(path_ + "/index", index_);
  }
}

TEST_F(DiskStoreDamageTest, OneLineForManyDamagedBlocks) {
  for (int i = 0; i < 3; ++i) {
    std::string name = path_ + "/" + data_name(i);
    write_file(name, std::vector<uint8_t>(fs::file_size(name), 0));
  }
  auto store = open(options_);
  ASSERT_EQ(found_.size(), static_cast<size_t>(kSlots));
  for (auto& [slot, record] : found_) EXPECT_FALSE(reads_right(*store, slot, record));
  EXPECT_EQ(lines_.size(), 1u);
  EXPECT_EQ(store->stats().blocks_damaged, kSlots);
  EXPECT_EQ(store->stats().used_slots, 0);
  EXPECT_TRUE(store->working());
  ASSERT_TRUE(store->write(0, record(5), payload(5, kBytes)));
  EXPECT_TRUE(reads_right(*store, 0, record(5)));
}

TEST_F(DiskStoreDamageTest, CutFiles) {
  for (size_t length : {size_t{0}, size_t{1}, size_t{75}, size_t{4095}, kPage, kPage + 100, kPage + 5 * 192,
                        index_.size() - 4}) {
    write_file(path_ + "/index", {index_.begin(), index_.begin() + static_cast<std::ptrdiff_t>(length)});
    int whole = length < kPage ? 0 : static_cast<int>((length - kPage) / record_bytes(kBlockSize));
    ASSERT_EQ(check(), whole) << length;
    write_file(path_ + "/index", index_);
  }
  std::vector<uint8_t> longer = index_;
  longer.resize(3 * index_.size(), 0xff);
  write_file(path_ + "/index", longer);
  ASSERT_EQ(check(), kSlots);
  for (size_t length : {size_t{0}, size_t{1}, size_t{4096}, size_t{5 * 4096 - 1}}) {
    auto before = read_file(path_ + "/blocks.00001");
    write_file(path_ + "/blocks.00001",
               {before.begin(), before.begin() + static_cast<std::ptrdiff_t>(length)});
    ASSERT_EQ(check(), kSlots - 5 + static_cast<int>(length / 4096)) << length;
    write_file(path_ + "/blocks.00001", before);
    write_file(path_ + "/index", index_);
  }
  // Cut while the store is open.
  auto store = open(options_);
  fs::resize_file(path_ + "/blocks.00000", 4096);
  EXPECT_TRUE(reads_right(*store, 0, record(0)));
  EXPECT_FALSE(reads_right(*store, 1, record(1)));
  EXPECT_TRUE(reads_right(*store, 7, record(7)));
  EXPECT_TRUE(store->working());
}

TEST_F(DiskStoreDamageTest, MissingAndStrangeFiles) {
  fs::remove(path_ + "/blocks.00002");
  ASSERT_EQ(check(), 10);
  fs::remove(path_ + "/index");
  ASSERT_EQ(check(), 0);
  // Nothing is followed or opened that is not a file.
  for (const char* name : {"/index", "/blocks.00000", "/lock"}) {
    fs::remove(path_ + name);
    write_file(directory_ + "/victim", {1, 2, 3});
    fs::create_symlink(directory_ + "/victim", path_ + name);
    if (std::string(name) == "/blocks.00000") {
      auto store = open(options_);
      EXPECT_FALSE(store->write(0, record(0), payload(0, kBytes)));
      EXPECT_FALSE(store->can_write());
    } else {
      expect_unavailable(options_, path_);
    }
    EXPECT_EQ(fs::file_size(directory_ + "/victim"), 3u);
    fs::remove(path_ + name);
    ASSERT_EQ(::mkfifo((path_ + name).c_str(), 0600), 0);
    if (std::string(name) != "/blocks.00000") expect_unavailable(options_, path_);
    fs::remove(path_ + name);
  }
}

// Random changes of any size, half of them with checksums made right again.
TEST_F(DiskStoreDamageTest, HostileIndexes) {
  std::mt19937 random(3);
  uint32_t seed = disk_format::record_seed(options_.identity, 0);
  auto any = [&](size_t below) { return static_cast<size_t>(random() % below); };
  auto store_index = [&](const std::vector<uint8_t>& bytes) {
    int fd = ::open((path_ + "/index").c_str(), O_WRONLY | O_TRUNC);
    ASSERT_EQ(::write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  };
  size_t size = record_bytes(kBlockSize);
  int with_records = 0;
  for (int i = 0; i < 10'000; ++i) {
    std::vector<uint8_t> bytes = index_;
    for (size_t change = 0, changes = 1 + any(4); change < changes; ++change) {
      size_t at = any(4) == 0 ? any(84) : kPage + any(bytes.size() - kPage);
      switch (any(5)) {
        case 0:
          bytes[at] = static_cast<uint8_t>(random());
          break;
        case 1:  // a whole record elsewhere
          std::copy_n(index_.begin() + static_cast<std::ptrdiff_t>(kPage + any(kSlots) * size), size,
                      bytes.begin() + static_cast<std::ptrdiff_t>(kPage + any(kSlots) * size));
          break;
        case 2: {  // large numbers
          uint64_t value = any(2) ? ~uint64_t{0} >> any(64) : uint64_t{1} << any(64);
          std::memcpy(bytes.data() + std::min(at / 8 * 8, bytes.size() - 8), &value, 8);
          break;
        }
        case 3:
          for (size_t k = 0, n = any(64); k < n && at + k < bytes.size(); ++k)
            bytes[at + k] = static_cast<uint8_t>(random());
          break;
        case 4:
          bytes.resize(any(2) ? bytes.size() : kPage + any(bytes.size()));
          bytes.resize(index_.size(), static_cast<uint8_t>(random()));
          break;
      }
    }
    if (any(2)) {
      uint32_t crc = crc32c({bytes.data(), 72});
      std::memcpy(bytes.data() + 72, &crc, 4);
      for (size_t slot = 0; slot < kSlots; ++slot) {
        uint8_t* at = bytes.data() + kPage + slot * size;
        if (any(2)) {  // a forged record with a key that is right: whose block is not, then
          disk_format::SlotRecord forged{record(static_cast<int>(any(100000))), random(),
                                         static_cast<uint32_t>(random())};
          if (any(2)) forged.record.tokens[0] = -5;
          forged.record.key = block_key(forged.record.parent, forged.record.tokens);
          if (any(3) == 0) disk_format::encode(forged, static_cast<int64_t>(slot), seed, {at, size});
        }
        crc = crc32c({at + 4, size - 4}, seed);
        std::memcpy(at, &crc, 4);
      }
    }
    if (any(50) == 0) bytes.resize(any(bytes.size() + 1));
    store_index(bytes);
    auto store = open(options_);
    ASSERT_LE(found_.size(), static_cast<size_t>(kSlots));
    std::set<Digest> seen;
    for (auto& [slot, record] : found_) {
      ASSERT_TRUE(slot >= 0 && slot < kSlots);
      ASSERT_TRUE(seen.insert(record.key).second) << "a key twice";
      ASSERT_EQ(record.key, block_key(record.parent, record.tokens));
      for (int32_t token : record.tokens) ASSERT_GE(token, 0);
      if (any(4) == 0) reads_right(*store, slot, record);  // fails if bytes are wrong
    }
    with_records += !found_.empty();
  }
  EXPECT_GT(with_records, 3000);
}

// From here on: what the system refuses.

TEST_F(DiskStoreTest, AFullDiskEndsWritingWithOneLine) {
  DiskStoreOptions options = small(4096, 20);
  auto store = open(options);
  ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
  put_in_place_of(data_name(0), "/dev/full", O_RDWR);
  EXPECT_FALSE(store->write(1, record(1), payload(1, 4096)));
  EXPECT_FALSE(store->can_write());
  EXPECT_TRUE(store->can_read());
  EXPECT_FALSE(store->write(2, record(2), payload(2, 4096)));
  ASSERT_EQ(lines_.size(), 1u);
  EXPECT_NE(lines_[0].find("No space left on device"), std::string::npos) << lines_[0];
  store.reset();
  store = open(options);
  ASSERT_EQ(found_.size(), 1u);
  EXPECT_TRUE(reads_right(*store, 0, record(0)));
}

// A file system of its own that is really full; where a user may make none, the limit of a file's size does
// it.
TEST_F(DiskStoreTest, AFullFileSystem) {
  EXPECT_TRUE(in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    if (!own_mounts() || ::mount("none", directory_.c_str(), "tmpfs", 0, "size=1m") != 0) {
      rlimit limit{256 << 10, 256 << 10};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    DiskStoreOptions options = small(16384, 200);
    auto store = open(options);
    int written = 0;
    while (written < 200 && store->write(written, record(written), payload(written, 16384))) ++written;
    EXPECT_GT(written, 10);
    EXPECT_LT(written, 64);
    EXPECT_TRUE(!store->can_write() && store->can_read());
    EXPECT_EQ(lines_.size(), 1u);
    for (int i = 0; i < written; ++i) EXPECT_TRUE(reads_right(*store, i, record(i)));
    EXPECT_FALSE(reads_right(*store, written, record(written)));
    store.reset();
    store = open(options);
    EXPECT_EQ(static_cast<int>(found_.size()), written);
    for (auto& [slot, record] : found_) EXPECT_TRUE(reads_right(*store, slot, record));
    return true;
  }));
}

TEST_F(DiskStoreTest, NoRoomForTheIndex) {
  EXPECT_TRUE(in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit limit{16 << 10, 16 << 10};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    expect_unavailable(small(4096, 200), "index");
    return true;
  }));
}

TEST_F(DiskStoreTest, ABrokenDiskEndsEverythingWithOneLine) {
  auto store = open(small(4096, 20));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store->write(i, record(i), payload(i, 4096)));
  put_in_place_of(data_name(0), "/proc/self/mem", O_RDWR);  // EIO at page 0
  EXPECT_FALSE(reads_right(*store, 0, record(0)));
  EXPECT_FALSE(store->working());
  EXPECT_FALSE(reads_right(*store, 1, record(1)));
  EXPECT_FALSE(store->write(1, record(1), payload(1, 4096)));
  ASSERT_EQ(lines_.size(), 1u);
  EXPECT_NE(lines_[0].find("Input/output error"), std::string::npos) << lines_[0];
}

TEST_F(DiskStoreTest, ABrokenIndexEndsWriting) {
  auto store = open(small(4096, 20));
  ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
  put_in_place_of("/index", "/proc/self/mem", O_RDWR);
  EXPECT_FALSE(store->write(1, record(1), payload(1, 4096)));
  EXPECT_FALSE(store->can_write());
  EXPECT_EQ(lines_.size(), 1u);
}

TEST_F(DiskStoreTest, AVanishedFolder) {
  DiskStoreOptions options = small(4096, 20);
  options.segment_bytes = 4096 * 2;
  auto store = open(options);
  ASSERT_TRUE(store->write(0, record(0), payload(0, 4096)));
  fs::remove_all(store->path());
  EXPECT_FALSE(store->write(1, record(1), payload(1, 4096)));
  EXPECT_FALSE(store->can_write());
  EXPECT_EQ(lines_.size(), 1u);
  EXPECT_TRUE(reads_right(*store, 0, record(0))) << "open files outlive their names";
  store.reset();
  store = open(options);
  EXPECT_TRUE(found_.empty());
  EXPECT_TRUE(store->write(1, record(1), payload(1, 4096)));
}

TEST_F(DiskStoreTest, FoldersThatCannotBeUsed) {
  DiskStoreOptions options = small(4096, 20);
  write_file(directory_ + "/file", {1});
  options.directory = directory_ + "/file";
  expect_unavailable(options, "file");
  options.directory = directory_ + "/file/below";
  expect_unavailable(options, "below");
  options.directory = "/proc/taco";
  expect_unavailable(options, "/proc/taco");
  if (::geteuid() == 0) return;  // root may write anywhere
  options.directory = directory_;
  fs::permissions(directory_, fs::perms::owner_read | fs::perms::owner_exec);
  expect_unavailable(options, "Permission denied");
}

}  // namespace
}  // namespace taco
