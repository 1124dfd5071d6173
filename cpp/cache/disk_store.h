// The disk tier: KV blocks in fixed slots of a folder, found again after a restart.
//
// The folder (of an identity: all that decides what a block's bytes mean) has an index file with a record for
// each slot (disk_format.h) and data files with the blocks, sparse until they are used. Nothing but a reset
// is synced:
//
// * A write empties the slot's record, then writes the block, then the record. A process killed in between
//   leaves an empty record: that block is lost and no other.
// * After a loss of power any page may be an old one. A record or a block that is not whole fails its
//   checksum, and one that is old as a whole is right, if of no use. Blocks are checked when they are read.
//
// Whatever goes wrong with files is an answer of false and, once, a line for the log; see DiskStore::working.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/disk_file.h"
#include "cache/disk_format.h"
#include "cache/disk_tier.h"
#include "cache/disk_uses.h"
#include "cache/transfer.h"

namespace taco {

// bench/cache/disk_store_bench.cc compares them.
enum class DiskIo : uint8_t {
  kDropping,  // through the system's cache (which reads ahead), not keeping there what was read or written
  kCached,    // through it
  kDirect,    // past it, where the file system can and blocks are whole pages; else kDropping
};

struct DiskStoreOptions {
  std::string directory;                      // made if need be; may hold folders of other identities
  Digest identity;                            // of the model's weights, dtypes, layout of a block, ...
  size_t block_bytes = 0;                     // of a block, all layers
  int block_size = 0;                         // tokens in a block
  int64_t capacity_bytes = 0;                 // for the directory as a whole
  int64_t segment_bytes = int64_t{16} << 30;  // of a data file
  DiskIo io = DiskIo::kDropping;
  double uses_every = 5.0;                           // seconds after which it is noted which blocks were used
  std::function<void(const std::string& line)> log;  // called from any thread that calls the store
};

struct DiskStoreStats {
  int64_t num_slots = 0, used_slots = 0;
  int64_t blocks_written = 0, blocks_read = 0, blocks_damaged = 0;
  int64_t bytes_written = 0, bytes_read = 0;
  double write_seconds = 0, read_seconds = 0;  // of all threads together
  int64_t folders_removed = 0;                 // of other identities, to make room
};

// Any thread may call any method; two calls at once on one slot are the caller's mistake.
class DiskStore final : public DiskTier {
 public:
  // Opens the identity's folder or makes it, and takes as many slots as the capacity has room for. `found`:
  // the slots with a whole record, those that were unused for longest first, no key twice; their blocks are
  // checked when they are read. Folders of other identities that no server uses are removed, least recently
  // used first, as room is needed. Throws kInvalidArgument for options that make no sense; kUnavailable where
  // the folder cannot be used (not writable, another server has it, disk full): the message says what to do.
  static std::unique_ptr<DiskStore> open(const DiskStoreOptions& options,
                                         std::vector<std::pair<int64_t, DiskRecord>>& found);
  ~DiskStore() override;

  int64_t num_slots() const { return header_.num_slots; }
  size_t block_bytes() const { return header_.block_bytes; }
  const std::string& path() const { return path_; }

  // False: the slot is empty now. `payload` has block_bytes.
  bool write(int64_t slot, const DiskRecord& record, std::span<const uint8_t> payload);
  // Into each payload, of block_bytes; neighbouring slots one after the other are read together. Not done:
  // the slot does not hold the block of this key, or not any more: a damaged one is emptied.
  void read(std::span<BlockRead> blocks);
  void erase(int64_t slot);

  // Of a record made before: nothing is written.
  uint64_t reset() override;
  // A page of the index, synced: the only thing that is.
  bool settle() override;
  // Is on disk a few seconds later, by a thread that does nothing else, or when the store is closed.
  void used(std::span<const int64_t> slots) override;

  // Ends reads and writes, waits for those under way and lets another store open the folder.
  void close();

  // Whether reads and writes may still succeed. Full disks and the like end writing; broken ones end both,
  // for the rest of the store's life.
  bool can_write() const override { return can_write_.load(std::memory_order_relaxed); }
  bool can_read() const override { return can_read_.load(std::memory_order_relaxed); }
  bool working() const { return can_read() || can_write(); }

  DiskStoreStats stats() const;

 private:
  struct Slot {
    uint64_t key = 0;  // the first bytes of the block's
    uint32_t payload_crc = 0;
    bool used = false;
    bool has_room = false;  // the file system gave it its blocks already
  };
  struct Place {
    int64_t segment, offset;
  };
  struct FreePages {
    void operator()(uint8_t* pages) const;
  };
  using Pages = std::unique_ptr<uint8_t[], FreePages>;

  explicit DiskStore(const DiskStoreOptions& options);
  static uint64_t first_bytes(const Digest& key) { return std::hash<Digest>()(key); }
  void open_index();
  void size_index(bool fresh);
  void read_index(std::vector<std::pair<int64_t, DiskRecord>>& found);
  void choose_io();
  void drop_surplus();
  int64_t measure();
  void make_room(int64_t bytes);

  Place place(int64_t slot) const;
  const File* segment(int64_t number, bool create);
  bool write_payload(int64_t slot, std::span<const uint8_t> payload);
  struct Wanted {
    BlockRead* block;
    uint32_t crc;
  };
  size_t run_length(std::span<const Wanted> blocks) const;
  void read_run(std::span<const Wanted> run);
  bool read_payloads(std::span<const Wanted> run);
  void give_up(int64_t slot);
  bool empty_record(int64_t slot);
  void forget_pages(const File& file, int64_t offset, size_t blocks);
  Pages take_pages();
  void give_pages(Pages pages);

  void keep_uses();
  void drop_earlier_version();
  bool write_epoch();
  void stop_writing(int error, const char* what);
  void stop_all(int error, const char* what);
  void log(const std::string& line) const;

  DiskStoreOptions options_;
  disk_format::Header header_;
  std::string path_, folder_name_;
  File directory_, folder_, lock_, index_;
  std::atomic<bool> can_write_{true}, can_read_{true};

  std::atomic<uint64_t> sequence_{0};  // of writes and uses
  DiskUses uses_;
  std::mutex uses_mutex_;  // of the thread that writes them
  std::condition_variable uses_changed_;
  std::thread uses_thread_;
  bool uses_stop_ = false;

  std::mutex epoch_mutex_;  // of the index's header, whose epoch is header_.epoch

  std::shared_mutex closing_;  // shared while a file is read or written
  mutable std::mutex mutex_;   // of all below
  std::vector<Slot> slots_;
  uint32_t epoch_ = 0, seed_ = 0;
  uint64_t resets_ = 0;
  std::vector<File> segments_;  // opened when first needed
  std::vector<Pages> pages_;    // aligned memory that nobody uses at the moment
  struct Written {
    int64_t segment = -1, offset = 0;
  };
  std::array<Written, 8> written_{};  // the last ones, in a ring: pages of which the system may forget
  size_t next_written_ = 0;
  int64_t allocated_ = 0, others_ = 0;  // bytes of our files and of other identities'
  bool said_damaged_ = false;
  DiskStoreStats stats_;
};

}  // namespace taco
