// Opening a disk cache's folder: its index, what of it can be believed, and room for it beside others'.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <unordered_map>

#include "base/error.h"
#include "cache/disk_folder.h"
#include "cache/disk_store.h"

namespace taco {
namespace {

using disk_format::kPage;

constexpr int64_t kMaxSegments = 512;  // each is an open file

[[noreturn]] void unavailable(const std::string& what, int error) {
  fail(ErrorCode::kUnavailable, "the prefix cache's disk tier cannot use ", what, ": ", error_text(error));
}

DiskStoreOptions checked(const DiskStoreOptions& options) {
  TACO_REQUIRE(!options.directory.empty(), "the disk tier needs a directory");
  TACO_REQUIRE(options.block_size >= 1 && options.block_size <= disk_format::kMaxBlockSize,
               "blocks on disk have 1 to ", disk_format::kMaxBlockSize, " tokens, not ", options.block_size);
  TACO_REQUIRE(options.block_bytes >= 1 && options.block_bytes <= disk_format::kMaxBlockBytes,
               "blocks on disk have 1 to ", disk_format::kMaxBlockBytes, " bytes, not ", options.block_bytes);
  TACO_REQUIRE(options.segment_bytes >= 1, "a data file needs at least one byte");
  return options;
}

// Only one server at a time looks around in the directory and makes or removes folders there.
File lock_directory(const File& directory, const std::string& path) {
  File file = open_file(directory, kDirectoryLockName, O_RDWR | O_CREAT);
  if (!file) unavailable(path, errno);
  for (int tries = 0; !lock_exclusively(file); ++tries) {
    if (errno != EWOULDBLOCK && errno != EINTR) unavailable(path, errno);
    if (tries == 500) {
      fail(ErrorCode::kUnavailable, "another process has held the lock of ", path,
           " for ten seconds; end it or choose another --prefix-cache-dir");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return file;
}

}  // namespace

DiskStore::DiskStore(const DiskStoreOptions& options) : options_(checked(options)) {
  header_.identity = options.identity;
  header_.block_size = options.block_size;
  header_.block_bytes = options.block_bytes;
  auto stride = static_cast<int64_t>(disk_format::stride(options.block_bytes));
  header_.segment_slots = std::clamp(options.segment_bytes / stride, int64_t{1}, disk_format::kMaxSlots);
}

std::unique_ptr<DiskStore> DiskStore::open(const DiskStoreOptions& options,
                                           std::vector<std::pair<int64_t, DiskRecord>>& found) {
  found.clear();
  std::unique_ptr<DiskStore> store(new DiskStore(options));
  std::error_code error;
  std::filesystem::create_directories(options.directory, error);
  store->directory_ = File(::open(options.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!store->directory_) unavailable(options.directory, error ? error.value() : errno);
  File lock = lock_directory(store->directory_, options.directory);
  store->open_index();
  store->choose_io();
  store->read_index(found);
  store->make_room(0);
  return store;
}

// Takes the identity's folder for this process and makes its index one of our shape.
void DiskStore::open_index() {
  folder_name_ = folder_name(header_);
  drop_earlier_version();
  path_ = options_.directory + "/" + folder_name_;

  int64_t room = options_.capacity_bytes;
  others_ = 0;
  for (const OtherFolder& other : other_folders(directory_, folder_name_)) {
    if (other.in_use) room -= other.reserved;
    others_ += other.allocated;
  }
  auto slot_bytes = static_cast<int64_t>(disk_format::stride(header_.block_bytes) +
                                         disk_format::record_bytes(header_.block_size));
  header_.num_slots = std::min({(room - static_cast<int64_t>(kPage)) / slot_bytes, disk_format::kMaxSlots,
                                kMaxSegments * header_.segment_slots});
  if (header_.num_slots < 1) {
    if (room < options_.capacity_bytes) {
      fail(ErrorCode::kUnavailable, "other servers may fill all ", options_.capacity_bytes, " bytes that ",
           options_.directory,
           " is given; raise --prefix-cache-disk-gb or choose another --prefix-cache-dir");
    }
    fail(ErrorCode::kInvalidArgument, "a disk cache of ", options_.capacity_bytes,
         " bytes has no room for one block of ", header_.block_bytes, "; raise --prefix-cache-disk-gb");
  }

  if (::mkdirat(directory_.fd(), folder_name_.c_str(), 0700) != 0 && errno != EEXIST)
    unavailable(path_, errno);
  folder_ = open_folder(directory_, folder_name_);
  if (!folder_) unavailable(path_, errno);
  lock_ = open_file(folder_, kLockName, O_RDWR | O_CREAT);
  if (!lock_) unavailable(path_ + "/" + kLockName, errno);
  if (!lock_exclusively(lock_)) {
    fail(ErrorCode::kUnavailable, "another server uses the disk cache ", path_,
         " of the same model; give this one another --prefix-cache-dir");
  }
  index_ = open_file(folder_, kIndexName, O_RDWR | O_CREAT);
  if (!index_) unavailable(path_ + "/" + kIndexName, errno);

  std::vector<uint8_t> page(kPage);
  auto size = size_of(index_);
  bool whole = read_fully(index_, page, 0);
  auto before = whole ? disk_format::decode_header(page) : std::nullopt;
  disk_format::Header expected = header_;
  if (before) {
    expected.num_slots = before->num_slots;
    expected.epoch = before->epoch;
  }
  bool known = before && *before == expected;
  if (!known && size && size->bytes > 0)
    log("The disk cache " + path_ + " has a damaged index; it begins empty.");
  if (known) header_.epoch = before->epoch;
  epoch_ = header_.epoch;
  seed_ = disk_format::record_seed(header_.identity, epoch_);
  size_index(!known);
  uses_.open(folder_, header_.num_slots, !known);
}

// The folder that another version of this program made for the same model: nobody will read it again.
void DiskStore::drop_earlier_version() {
  for (uint32_t version = 1; version < disk_format::kVersion; ++version) {
    const std::string name = folder_name(header_, version);
    if (!remove_folder(directory_, name)) continue;
    log("The disk cache removed " + options_.directory + "/" + name +
        ", which an earlier version of taco_llm wrote for this model.");
  }
}

// The file's size and its header. Its room is taken now, so that writing records cannot fail for want of it.
void DiskStore::size_index(bool fresh) {
  std::string what = path_ + "/" + kIndexName;
  int64_t bytes = header_.record_offset(header_.num_slots);
  if (fresh && ::ftruncate(index_.fd(), 0) != 0) unavailable(what, errno);
  if (::ftruncate(index_.fd(), bytes) != 0) unavailable(what, errno);
  if (int error = ::posix_fallocate(index_.fd(), 0, bytes)) unavailable(what, error);
  auto page = disk_format::encode(header_);
  if (!write_fully(index_, page, 0)) unavailable(what, errno);
  ::futimens(index_.fd(), nullptr);
}

// Not every file system reads and writes past the cache, whatever it says when a file is opened.
void DiskStore::choose_io() {
  if (options_.io != DiskIo::kDirect) return;
  options_.io = DiskIo::kDropping;
  if (header_.block_bytes % kPage != 0) return;
  File probe = open_file(folder_, kLockName, O_RDWR | O_DIRECT);
  Pages pages = take_pages();
  std::memset(pages.get(), 0, kPage);
  std::span<uint8_t> page(pages.get(), kPage);
  if (probe && write_fully(probe, page, 0) && read_fully(probe, page, 0)) options_.io = DiskIo::kDirect;
  give_pages(std::move(pages));
}

void DiskStore::read_index(std::vector<std::pair<int64_t, DiskRecord>>& found) {
  slots_.resize(static_cast<size_t>(header_.num_slots));
  segments_.resize(static_cast<size_t>((header_.num_slots - 1) / header_.segment_slots + 1));
  drop_surplus();
  std::vector<int64_t> lengths(segments_.size());
  for (size_t i = 0; i < segments_.size(); ++i) {
    const File* file = segment(static_cast<int64_t>(i), false);
    auto size = file ? size_of(*file) : std::nullopt;
    if (size) lengths[i] = size->bytes;
  }
  allocated_ = measure();

  std::vector<std::pair<uint64_t, std::pair<int64_t, DiskRecord>>> records;  // by their last use
  size_t record_bytes = disk_format::record_bytes(header_.block_size);
  int64_t chunk = std::max<int64_t>(1, (int64_t{1} << 20) / static_cast<int64_t>(record_bytes));
  std::vector<uint8_t> bytes;
  for (int64_t first = 0; first < header_.num_slots; first += chunk) {
    int64_t count = std::min(chunk, header_.num_slots - first);
    bytes.resize(static_cast<size_t>(count) * record_bytes);
    if (!read_fully(index_, bytes, header_.record_offset(first)))
      unavailable(path_ + "/" + kIndexName, errno);
    for (int64_t i = 0; i < count; ++i) {
      int64_t slot = first + i;
      auto record = disk_format::decode_record(
          std::span(bytes).subspan(static_cast<size_t>(i) * record_bytes, record_bytes), slot,
          header_.block_size, seed_);
      if (!record) continue;
      Place at = place(slot);
      if (lengths[static_cast<size_t>(at.segment)] < at.offset + static_cast<int64_t>(header_.block_bytes))
        continue;
      slots_[static_cast<size_t>(slot)] = {first_bytes(record->record.key), record->payload_crc, true, true};
      sequence_ = std::max(sequence_.load(), record->sequence);
      records.push_back({std::max(record->sequence, uses_.of(slot)), {slot, std::move(record->record)}});
    }
  }
  std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second.first < b.second.first);
  });
  sequence_ = std::max(sequence_.load(), uses_.latest()) + 1;
  stats_.used_slots = static_cast<int64_t>(records.size());
  std::unordered_map<Digest, int64_t> slot_of;
  for (auto& [sequence, record] : records) {
    if (slot_of.emplace(record.second.key, record.first).second) {
      found.push_back(std::move(record));
    } else {  // never made by us
      erase(record.first);
    }
  }
  std::reverse(found.begin(), found.end());
}

// Of a time when the capacity was larger.
void DiskStore::drop_surplus() {
  auto count = static_cast<int64_t>(segments_.size());
  remove_data_from(folder_, count);
  if (const File* last = segment(count - 1, false)) {
    auto size = size_of(*last);
    int64_t most = (header_.num_slots - (count - 1) * header_.segment_slots) *
                   static_cast<int64_t>(disk_format::stride(header_.block_bytes));
    if (size && size->bytes > most && ::ftruncate(last->fd(), most) != 0) unavailable(path_, errno);
  }
}

// Bytes that our files take on the disk.
int64_t DiskStore::measure() {
  int64_t total = 0;
  if (auto size = size_of(index_)) total += size->allocated;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const File* file = segment(static_cast<int64_t>(i), false);
    auto size = file ? size_of(*file) : std::nullopt;
    if (size) total += size->allocated;
  }
  return total;
}

// Removes other identities' folders until `bytes` more of ours are within the capacity. The directory is
// locked, and the mutex is held or nobody else knows this store yet.
void DiskStore::make_room(int64_t bytes) {
  auto too_much = [&] { return others_ > 0 && allocated_ + bytes + others_ > options_.capacity_bytes; };
  if (!too_much()) return;
  allocated_ = measure();  // slots that were used before this process had their room already
  std::vector<OtherFolder> others = other_folders(directory_, folder_name_);
  others_ = 0;
  for (const OtherFolder& other : others) others_ += other.allocated;
  for (const OtherFolder& other : others) {
    if (!too_much()) return;
    if (other.in_use || !remove_folder(directory_, other.name)) continue;
    others_ -= other.allocated;
    ++stats_.folders_removed;
    log("The disk cache removed " + options_.directory + "/" + other.name +
        " of another model to make room.");
  }
}

}  // namespace taco
