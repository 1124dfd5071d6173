#include "cache/disk_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "base/checksum.h"
#include "base/error.h"
#include "cache/block_key.h"
#include "cache/disk_folder.h"

namespace taco {
namespace {

using Clock = std::chrono::steady_clock;
using disk_format::kPage;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kPage == 0; }

}  // namespace

void DiskStore::FreePages::operator()(uint8_t* pages) const { std::free(pages); }

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
  write_epoch();
  uses_.flush();
  if (index_) ::futimens(index_.fd(), nullptr);  // "last used"
  File gone = std::move(lock_);
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
  if (!can_write() || !write_epoch()) return false;
  uint32_t seed;
  {
    std::lock_guard lock(mutex_);
    if (record.resets < resets_) return false;
    seed = seed_;
  }
  Clock::time_point start = Clock::now();
  if (!empty_record(slot) || !write_payload(slot, payload)) return false;

  const disk_format::SlotRecord full{record, sequence_++, crc32c(payload)};
  std::vector<uint8_t> bytes(disk_format::record_bytes(header_.block_size));
  disk_format::encode(full, slot, seed, bytes);
  if (!write_fully(index_, bytes, header_.record_offset(slot))) {
    stop_writing(errno, "writing to");
    return false;
  }
  std::lock_guard lock(mutex_);
  if (record.resets < resets_) return false;  // meanwhile: the record is of an epoch that is over
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

uint64_t DiskStore::reset() {
  std::lock_guard lock(mutex_);
  seed_ = disk_format::record_seed(header_.identity, ++epoch_);
  for (Slot& slot : slots_) slot.used = false;
  stats_.used_slots = 0;
  return ++resets_;
}

bool DiskStore::settle() {
  std::shared_lock open(closing_);
  return write_epoch();
}

// All records of before are those of another index from then on. Without an index it is an empty folder.
bool DiskStore::write_epoch() {
  std::lock_guard writing(epoch_mutex_);
  disk_format::Header header = header_;
  {
    std::lock_guard lock(mutex_);
    header.epoch = epoch_;
  }
  if (header.epoch == header_.epoch) return true;
  if (!lock_) return false;
  const auto page = disk_format::encode(header);
  const bool written = write_fully(index_, page, 0) && ::fdatasync(index_.fd()) == 0;
  const int error = errno;
  const bool done = written || ::unlinkat(folder_.fd(), kIndexName, 0) == 0;
  if (!written)
    stop_writing(error, done ? "resetting" : "resetting (what it held may come back after a restart)");
  if (done) header_.epoch = header.epoch;
  return done;
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
