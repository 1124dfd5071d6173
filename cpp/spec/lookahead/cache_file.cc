#include "spec/lookahead/cache_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace taco {
namespace {

static_assert(std::endian::native == std::endian::little, "the file is little-endian");

constexpr char kMagic[8] = {'T', 'A', 'C', 'O', 'L', 'A', 'C', 'H'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMaxFingerprint = 4096;

struct FixedHeader {
  char magic[8];
  uint32_t version;
  uint32_t turbo;
  int32_t copy_length, vocab_size;
  uint32_t fingerprint_bytes;
  uint32_t checksum;  // of the rest, and of the fingerprint that follows
};
static_assert(sizeof(FixedHeader) == 32);

struct BlockHeader {
  uint32_t type, bytes;
  uint64_t checksum;
};
static_assert(sizeof(BlockHeader) == 16);

uint64_t checksum(uint32_t type, std::span<const uint8_t> data) {
  uint64_t h = (static_cast<uint64_t>(type) << 32 | data.size()) ^ 0xA0761D6478BD642Full;
  for (size_t i = 0; i < data.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data.data() + i, std::min<size_t>(8, data.size() - i));
    h = (h ^ word) * 0x9E3779B97F4A7C15ull;
    h ^= h >> 29;
  }
  return h;
}

uint32_t header_checksum(FixedHeader header, const std::string& fingerprint) {
  header.checksum = 0;
  std::vector<uint8_t> bytes(sizeof(header) + fingerprint.size());
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + sizeof(header), fingerprint.data(), fingerprint.size());
  return static_cast<uint32_t>(checksum(0, bytes) >> 32);
}

std::string reason(const char* what, const std::string& path) {
  return str_cat("cannot ", what, " ", path, ": ", std::strerror(errno));
}

}  // namespace

CacheFileWriter::CacheFileWriter(const std::string& path, const CacheFileHeader& header)
    : path_(path), temporary_(path + ".tmp") {
  TACO_REQUIRE(header.fingerprint.size() <= kMaxFingerprint, "a fingerprint of ", header.fingerprint.size(),
               " bytes is too long");
  file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (file_ < 0) fail(ErrorCode::kUnavailable, reason("write", temporary_));
  FixedHeader fixed{};
  std::memcpy(fixed.magic, kMagic, sizeof(kMagic));
  fixed.version = kVersion;
  fixed.turbo = header.turbo;
  fixed.copy_length = header.copy_length;
  fixed.vocab_size = header.vocab_size;
  fixed.fingerprint_bytes = static_cast<uint32_t>(header.fingerprint.size());
  fixed.checksum = header_checksum(fixed, header.fingerprint);
  write(&fixed, sizeof(fixed));
  write(header.fingerprint.data(), header.fingerprint.size());
  thread_ = std::thread([this] { run(); });
}

CacheFileWriter::~CacheFileWriter() {
  {
    std::lock_guard lock(mutex_);
    abandoned_ = !closed_;
    closed_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CacheFileWriter::put(CacheBlock type, std::vector<uint8_t> payload) {
  queued_bytes_.fetch_add(payload.size(), std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    queue_.emplace_back(type, std::move(payload));
  }
  changed_.notify_all();
}

void CacheFileWriter::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

void CacheFileWriter::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return done(); });
}

void CacheFileWriter::write(const void* data, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  while (bytes > 0 && error_.empty()) {
    const ssize_t n = ::write(file_, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      error_ = reason("write", temporary_);
      return;
    }
    at += n;
    bytes -= static_cast<size_t>(n);
    bytes_ += static_cast<size_t>(n);
  }
}

void CacheFileWriter::write_block(CacheBlock type, std::span<const uint8_t> payload) {
  const auto number = static_cast<uint32_t>(type);
  const BlockHeader header{number, static_cast<uint32_t>(payload.size()), checksum(number, payload)};
  write(&header, sizeof(header));
  write(payload.data(), payload.size());
}

void CacheFileWriter::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (abandoned_ || queue_.empty()) break;
    auto [type, payload] = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    write_block(type, payload);
    ++blocks_;
    queued_bytes_.fetch_sub(payload.size(), std::memory_order_relaxed);
    lock.lock();
  }
  const bool complete = !abandoned_;
  lock.unlock();
  if (complete) {
    uint8_t end[8];
    std::memcpy(end, &blocks_, sizeof(end));
    write_block(CacheBlock::kEnd, end);
    if (error_.empty() && ::fsync(file_) != 0) error_ = reason("write", temporary_);
  }
  ::close(file_);
  if (complete && error_.empty()) {
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) error_ = reason("replace", path_);
    // The new name must survive a crash as well.
    const std::string folder = std::filesystem::path(path_).parent_path().string();
    const int directory = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0) {
      ::fsync(directory);
      ::close(directory);
    }
  } else {
    if (error_.empty()) error_ = "the save was given up";
    ::unlink(temporary_.c_str());
  }
  lock.lock();
  done_.store(true, std::memory_order_release);
  changed_.notify_all();
}

CacheFileReader::CacheFileReader(const std::string& path, const CacheFileHeader& expected) : path_(path) {
  file_ = std::fopen(path.c_str(), "rbe");
  if (!file_) {
    if (errno == ENOENT) fail(ErrorCode::kNotFound, "there is no saved lookahead cache at ", path);
    fail(ErrorCode::kInvalidArgument, reason("read", path));
  }
  try {
    FixedHeader fixed;
    read(&fixed, sizeof(fixed));
    if (std::memcmp(fixed.magic, kMagic, sizeof(kMagic)) != 0) refuse("it is not a saved lookahead cache");
    if (fixed.version != kVersion)
      refuse(str_cat("its version is ", fixed.version, ", this program reads ", kVersion));
    if (fixed.fingerprint_bytes > kMaxFingerprint) refuse("its header is damaged");
    std::string fingerprint(fixed.fingerprint_bytes, '\0');
    read(fingerprint.data(), fingerprint.size());
    if (header_checksum(fixed, fingerprint) != fixed.checksum) refuse("its header is damaged");
    if (fingerprint != expected.fingerprint) refuse("it was saved for another model or vocabulary");
    if (fixed.vocab_size != expected.vocab_size)
      refuse(str_cat("its voc_size is ", fixed.vocab_size, ", not ", expected.vocab_size));
    if ((fixed.turbo != 0) != expected.turbo)
      refuse(expected.turbo ? "it was saved with cache_mode 0" : "it was not saved with cache_mode 0");
    if (!expected.turbo && fixed.copy_length != expected.copy_length)
      refuse(str_cat("its copy_length is ", fixed.copy_length, ", not ", expected.copy_length));
  } catch (...) {
    std::fclose(file_);
    throw;
  }
}

CacheFileReader::~CacheFileReader() { std::fclose(file_); }

void CacheFileReader::refuse(const std::string& why) const {
  fail(ErrorCode::kInvalidArgument, "the saved lookahead cache ", path_, " is refused: ", why,
       ". Remove it, or save to another path");
}

void CacheFileReader::read(void* data, size_t bytes) {
  if (bytes > 0 && std::fread(data, 1, bytes, file_) != bytes) refuse("it ends too early");
}

bool CacheFileReader::next(CacheBlock* type, std::vector<uint8_t>* payload) {
  BlockHeader header;
  read(&header, sizeof(header));
  if (header.bytes > kMaxBlock) refuse("a block is too big");
  payload->resize(header.bytes);
  read(payload->data(), header.bytes);
  if (checksum(header.type, *payload) != header.checksum) refuse("a checksum is wrong");
  *type = static_cast<CacheBlock>(header.type);
  if (*type == CacheBlock::kEnd) {
    uint64_t blocks = 0;
    if (payload->size() != sizeof(blocks)) refuse("its end is damaged");
    std::memcpy(&blocks, payload->data(), sizeof(blocks));
    if (blocks != blocks_) refuse("blocks are missing");
    if (std::fgetc(file_) != EOF) refuse("something follows its end");
    return false;
  }
  if (header.type > static_cast<uint32_t>(CacheBlock::kRates)) refuse("a block is of an unknown type");
  ++blocks_;
  return true;
}

}  // namespace taco
