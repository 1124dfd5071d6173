// The file that keeps the shared cache over a restart.
//
// Little-endian. A header: "TACOLACH", version, which cache, copy_length, voc_size, and the owner's
// fingerprint (of model and vocabulary) as length and bytes. Then blocks: type, payload bytes (u32 each),
// checksum of both and of the payload (u64), payload. The last block tells how many there were; nothing
// follows it.
//   phrases   Raw: copy_length i32 each, -1 after the end of a shorter one; numbered from 0
//   keys      u64: 49 bits of a key's hash, from bit 56 the number of entries; then u32 value, u16 frequency,
//             u16 tag for each. A value is a token id (Turbo) or the number of a phrase (Raw).
//   rates     f32 pairs of the calibration tables
// It is written beside its place and renamed when it is complete and on disk: a crash leaves the old one.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace taco {

enum class CacheBlock : uint32_t { kEnd = 0, kPhrases = 1, kKeys = 2, kRates = 3 };

struct CacheFileHeader {
  bool turbo = false;
  int32_t copy_length = 0, vocab_size = 0;
  std::string fingerprint;
};

// Writes in a thread of its own.
class CacheFileWriter {
 public:
  // Throws kUnavailable if the file cannot be made.
  CacheFileWriter(const std::string& path, const CacheFileHeader& header);
  // An unfinished file is removed; the one that stood at `path` before stays.
  ~CacheFileWriter();
  CacheFileWriter(const CacheFileWriter&) = delete;

  // So much waits to be written that more should not be put now.
  bool full() const { return queued_bytes_.load(std::memory_order_relaxed) > kMaxQueued; }
  void put(CacheBlock type, std::vector<uint8_t> payload);
  // No more blocks come.
  void close();
  // True when the file is in its place, or writing failed: see error().
  bool done() const { return done_.load(std::memory_order_acquire); }
  void wait();
  const std::string& error() const { return error_; }  // empty if it went well; after done()
  uint64_t bytes() const { return bytes_; }            // after done()

 private:
  static constexpr size_t kMaxQueued = size_t{4} << 20;

  void run();
  void write(const void* data, size_t bytes);
  void write_block(CacheBlock type, std::span<const uint8_t> payload);

  std::string path_, temporary_;
  int file_ = -1;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<CacheBlock, std::vector<uint8_t>>> queue_;
  bool closed_ = false, abandoned_ = false;
  std::atomic<size_t> queued_bytes_{0};
  std::atomic<bool> done_{false};
  std::string error_;
  uint64_t bytes_ = 0, blocks_ = 0;
  std::thread thread_;
};

// Reads what CacheFileWriter wrote and refuses everything else: kNotFound if there is no file,
// kInvalidArgument with the reason for a file that is not whole, not of this version or not of this model.
class CacheFileReader {
 public:
  CacheFileReader(const std::string& path, const CacheFileHeader& expected);
  ~CacheFileReader();
  CacheFileReader(const CacheFileReader&) = delete;

  // The next block; false after the last one.
  bool next(CacheBlock* type, std::vector<uint8_t>* payload);
  [[noreturn]] void refuse(const std::string& why) const;

 private:
  static constexpr uint32_t kMaxBlock = uint32_t{16} << 20;

  void read(void* data, size_t bytes);

  std::string path_;
  std::FILE* file_ = nullptr;
  uint64_t blocks_ = 0;
};

}  // namespace taco
