#include "cache/disk_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <thread>
#include <unordered_map>

#include "base/checksum.h"
#include "base/error.h"
#include "cache/block_key.h"
#include "cache/disk_folder.h"

namespace taco {
namespace {

using Clock = std::chrono::steady_clock;
using disk_format::kPage;

constexpr int64_t kMaxSegments = 512;  // each is an open file

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

uint64_t first_bytes(const Digest& key) { return std::hash<Digest>()(key); }

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

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kPage == 0; }

}  // namespace

void DiskStore::FreePages::operator()(uint8_t* pages) const { std::free(pages); }

DiskStore::DiskStore(const DiskStoreOptions& options) : options_(checked(options)) {
  header_.identity = options.identity;
  header_.block_size = options.block_size;
  header_.block_bytes = options.block_bytes;
  auto stride = static_cast<int64_t>(disk_format::stride(options.block_bytes));
  header_.segment_slots = std::clamp(options.segment_bytes / stride, int64_t{1}, disk_format::kMaxSlots);
  seed_ = disk_format::record_seed(options.identity);
}

DiskStore::~DiskStore() { close(); }

void DiskStore::close() {
  can_write_ = can_read_ = false;
  std::thread uses;
  {
    std::lock_guard lock(uses_mutex_);
    uses_stop_ = true;
    uses_changed_.notify_all();
    uses = std::move(uses_thread_);
  }
  if (uses.joinable()) uses.join();
  std::unique_lock lock(closing_);
  if (!lock_) return;
  uses_.flush();
  if (index_) ::futimens(index_.fd(), nullptr);  // "last used"
  File gone = std::move(lock_);
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
  folder_name_ =
      folder_name(header_.identity, header_.block_size, header_.block_bytes, header_.segment_slots);
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
  if (before) expected.num_slots = before->num_slots;
  bool known = before && *before == expected;
  if (!known && size && size->bytes > 0)
    log("The disk cache " + path_ + " has a damaged index; it begins empty.");
  size_index(!known);
  uses_.open(folder_, header_.num_slots, !known);
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

DiskStore::Place DiskStore::place(int64_t slot) const {
  return {slot / header_.segment_slots,
          slot % header_.segment_slots * static_cast<int64_t>(disk_format::stride(header_.block_bytes))};
}

const File* DiskStore::segment(int64_t number, bool create) {
  File& file = segments_[static_cast<size_t>(number)];
  if (file) return &file;
  std::string name = data_name(number);
  int flags = O_RDWR | (create ? O_CREAT : 0);
  if (options_.io == DiskIo::kDirect) flags |= O_DIRECT;
  file = open_file(folder_, name, flags);
  return file ? &file : nullptr;
}

bool DiskStore::write(int64_t slot, const DiskRecord& record, std::span<const uint8_t> payload) {
  TACO_CHECK(slot >= 0 && slot < num_slots(), "slot ", slot, " of ", num_slots());
  TACO_CHECK(payload.size() == header_.block_bytes, "a block has ", header_.block_bytes, " bytes");
  TACO_CHECK(record.tokens.size() == static_cast<size_t>(header_.block_size), "a block has ",
             header_.block_size, " tokens");
  TACO_CHECK(record.key == block_key(record.parent, record.tokens),
             "a block's key is not that of its tokens");
  std::shared_lock open(closing_);
  if (!can_write()) return false;
  Clock::time_point start = Clock::now();
  if (!empty_record(slot) || !write_payload(slot, payload)) return false;

  const disk_format::SlotRecord full{record, sequence_++, crc32c(payload)};
  std::vector<uint8_t> bytes(disk_format::record_bytes(header_.block_size));
  disk_format::encode(full, slot, seed_, bytes);
  if (!write_fully(index_, bytes, header_.record_offset(slot))) {
    stop_writing(errno, "writing to");
    return false;
  }
  std::lock_guard lock(mutex_);
  slots_[static_cast<size_t>(slot)] = {first_bytes(record.key), full.payload_crc, true, true};
  ++stats_.used_slots;
  ++stats_.blocks_written;
  stats_.bytes_written += static_cast<int64_t>(payload.size());
  stats_.write_seconds += seconds_since(start);
  return true;
}

void DiskStore::read(std::span<BlockRead> blocks) {
  for (BlockRead& block : blocks) {
    TACO_CHECK(block.slot >= 0 && block.slot < num_slots(), "slot ", block.slot, " of ", num_slots());
    TACO_CHECK(block.payload.size() == header_.block_bytes, "a block has ", header_.block_bytes, " bytes");
    block.done = false;
  }
  std::shared_lock open(closing_);
  std::vector<Wanted> wanted;
  {
    std::lock_guard lock(mutex_);
    for (BlockRead& block : blocks) {
      const Slot& state = slots_[static_cast<size_t>(block.slot)];
      if (state.used && state.key == first_bytes(block.key)) wanted.push_back({&block, state.payload_crc});
    }
  }
  for (std::span<const Wanted> rest = wanted; !rest.empty() && can_read();) {
    const size_t length = run_length(rest);
    read_run(rest.first(length));
    rest = rest.subspan(length);
  }
}

// How many, from the first on, stand one behind the other in a data file.
size_t DiskStore::run_length(std::span<const Wanted> blocks) const {
  if (header_.block_bytes % kPage != 0) return 1;  // there are gaps between them
  const auto fits = [this](const Wanted& wanted) {
    return options_.io != DiskIo::kDirect || is_aligned(wanted.block->payload.data());
  };
  const size_t most = fits(blocks[0]) ? std::min(blocks.size(), kMaxParts) : 1;
  size_t length = 1;
  for (; length < most && fits(blocks[length]); ++length) {
    const int64_t slot = blocks[length].block->slot;
    if (slot != blocks[length - 1].block->slot + 1 || slot % header_.segment_slots == 0) break;
  }
  return length;
}

void DiskStore::read_run(std::span<const Wanted> run) {
  const Clock::time_point start = Clock::now();
  const bool whole = read_payloads(run);
  const int error = errno;
  if (!whole && run.size() > 1) {  // all but those that are broken
    for (size_t i = 0; i < run.size(); ++i) read_run(run.subspan(i, 1));
    return;
  }
  if (!whole && error != ENODATA) return stop_all(error, "reading from");
  int64_t count = 0;
  for (const Wanted& wanted : run) {
    wanted.block->done = whole && crc32c(wanted.block->payload) == wanted.crc;
    count += wanted.block->done;
    if (!wanted.block->done) give_up(wanted.block->slot);
  }
  std::lock_guard lock(mutex_);
  stats_.blocks_read += count;
  stats_.bytes_read += count * static_cast<int64_t>(header_.block_bytes);
  stats_.read_seconds += seconds_since(start);
}

// Its block is damaged.
void DiskStore::give_up(int64_t slot) {
  bool first;
  {
    std::lock_guard lock(mutex_);
    if (!slots_[static_cast<size_t>(slot)].used) return;  // it was asked for twice
    ++stats_.blocks_damaged;
    first = !std::exchange(said_damaged_, true);
  }
  empty_record(slot);
  if (first) {
    log("A block in " + path_ + " is damaged (slot " + std::to_string(slot) +
        "); it is computed again. Further ones are only counted.");
  }
}

void DiskStore::erase(int64_t slot) {
  TACO_CHECK(slot >= 0 && slot < num_slots(), "slot ", slot, " of ", num_slots());
  std::shared_lock open(closing_);
  if (lock_) empty_record(slot);
}

void DiskStore::used(std::span<const int64_t> slots) {
  for (int64_t slot : slots) {
    TACO_CHECK(slot >= 0 && slot < num_slots(), "slot ", slot, " of ", num_slots());
    uses_.set(slot, sequence_++);
  }
  std::lock_guard lock(uses_mutex_);
  if (!uses_thread_.joinable() && !uses_stop_) uses_thread_ = std::thread([this] { keep_uses(); });
  uses_changed_.notify_all();
}

void DiskStore::keep_uses() {
  std::unique_lock lock(uses_mutex_);
  const auto stopped = [this] { return uses_stop_; };
  for (;;) {
    uses_changed_.wait(lock, [&] { return stopped() || uses_.dirty(); });
    if (uses_changed_.wait_for(lock, std::chrono::duration<double>(options_.uses_every), stopped)) return;
    lock.unlock();
    uses_.flush();
    lock.lock();
  }
}

bool DiskStore::empty_record(int64_t slot) {
  {
    std::lock_guard lock(mutex_);
    Slot& state = slots_[static_cast<size_t>(slot)];
    if (!state.used) return true;
    state.used = false;
    --stats_.used_slots;
  }
  std::array<uint8_t, disk_format::kEmptyBytes> zeros{};
  if (write_fully(index_, zeros, header_.record_offset(slot))) return true;
  stop_writing(errno, "writing to");
  return false;
}

bool DiskStore::write_payload(int64_t slot, std::span<const uint8_t> payload) {
  Place at = place(slot);
  auto stride = static_cast<int64_t>(disk_format::stride(header_.block_bytes));
  const File* file;
  Written forget;
  {
    std::lock_guard lock(mutex_);
    struct stat status;
    if (::fstat(index_.fd(), &status) != 0 || status.st_nlink == 0) {
      errno = ENOENT;
      file = nullptr;
    } else {
      file = segment(at.segment, true);
    }
    Slot& state = slots_[static_cast<size_t>(slot)];
    if (file && !state.has_room) {
      if (others_ > 0 && allocated_ + stride + others_ > options_.capacity_bytes) {
        File lock = open_file(directory_, kDirectoryLockName, O_RDWR);
        if (lock && lock_exclusively(lock)) make_room(stride);  // else: with the next block
      }
      allocated_ += stride;
      state.has_room = true;
    }
    if (options_.io == DiskIo::kDropping) {
      forget = std::exchange(written_[next_written_], {at.segment, at.offset});
      next_written_ = (next_written_ + 1) % written_.size();
    }
  }
  bool done = false;
  if (file && options_.io == DiskIo::kDirect && !is_aligned(payload.data())) {
    Pages pages = take_pages();
    std::memcpy(pages.get(), payload.data(), payload.size());
    done = write_fully(*file, {pages.get(), payload.size()}, at.offset);
    give_pages(std::move(pages));
  } else if (file) {
    done = write_fully(*file, payload, at.offset);
  }
  if (!done) {
    stop_writing(errno, "writing to");
    return false;
  }
  if (options_.io == DiskIo::kDropping) {
    ::sync_file_range(file->fd(), at.offset, stride, SYNC_FILE_RANGE_WRITE);
    if (forget.segment >= 0) {
      std::lock_guard lock(mutex_);
      if (const File* before = segment(forget.segment, false)) forget_pages(*before, forget.offset, 1);
    }
  }
  return true;
}

// Of a run, into their payloads. False: errno says why.
bool DiskStore::read_payloads(std::span<const Wanted> run) {
  const Place at = place(run[0].block->slot);
  const File* file;
  {
    std::lock_guard lock(mutex_);
    file = segment(at.segment, false);
  }
  if (!file) return false;
  std::span<uint8_t> first = run[0].block->payload;
  if (options_.io == DiskIo::kDirect && !is_aligned(first.data())) {
    Pages pages = take_pages();
    bool whole = read_fully(*file, {pages.get(), first.size()}, at.offset);
    int error = errno;
    if (whole) std::memcpy(first.data(), pages.get(), first.size());
    give_pages(std::move(pages));
    errno = error;
    return whole;
  }
  std::array<std::span<uint8_t>, kMaxParts> parts;
  std::transform(run.begin(), run.end(), parts.begin(), [](const Wanted& w) { return w.block->payload; });
  bool whole = read_fully(*file, std::span(parts).first(run.size()), at.offset);
  int error = errno;
  if (options_.io == DiskIo::kDropping) forget_pages(*file, at.offset, run.size());
  errno = error;
  return whole;
}

// The host tier has a copy: the system's cache would be a second one.
void DiskStore::forget_pages(const File& file, int64_t offset, size_t blocks) {
  ::posix_fadvise(file.fd(), offset, static_cast<off_t>(blocks * disk_format::stride(header_.block_bytes)),
                  POSIX_FADV_DONTNEED);
}

DiskStore::Pages DiskStore::take_pages() {
  {
    std::lock_guard lock(mutex_);
    if (!pages_.empty()) {
      Pages pages = std::move(pages_.back());
      pages_.pop_back();
      return pages;
    }
  }
  void* memory = std::aligned_alloc(kPage, disk_format::stride(header_.block_bytes));
  if (!memory) throw std::bad_alloc();
  return Pages(static_cast<uint8_t*>(memory));
}

void DiskStore::give_pages(Pages pages) {
  std::lock_guard lock(mutex_);
  pages_.push_back(std::move(pages));
}

void DiskStore::stop_writing(int error, const char* what) {
  if (error == EIO) return stop_all(error, what);
  if (!can_write_.exchange(false)) return;
  log(std::string("The disk cache is not written to any more: ") + what + " " + path_ +
      " failed: " + error_text(error) + ". What it holds can still be read.");
}

void DiskStore::stop_all(int error, const char* what) {
  bool before = can_write_.exchange(false);
  before |= can_read_.exchange(false);
  if (before) {
    log(std::string("The disk cache is off: ") + what + " " + path_ + " failed: " + error_text(error) + ".");
  }
}

void DiskStore::log(const std::string& line) const {
  if (options_.log) options_.log(line);
}

DiskStoreStats DiskStore::stats() const {
  std::lock_guard lock(mutex_);
  DiskStoreStats out = stats_;
  out.num_slots = num_slots();
  return out;
}

}  // namespace taco
