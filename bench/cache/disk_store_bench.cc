// What the prefix cache's disk tier costs: bytes a second written and read, the checksum's part of it, and
// the time to open an index of many slots.
//   disk_store_bench DIRECTORY [GiB for each measurement]
// The folders that it makes in DIRECTORY are removed at the end.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/checksum.h"
#include "base/clock.h"
#include "cache/block_key.h"
#include "cache/disk_store.h"

namespace taco {
namespace {

constexpr int kBlockSize = 16;

DiskRecord record_of(int64_t number) {
  DiskRecord record;
  for (int i = 0; i < kBlockSize; ++i)
    record.tokens.push_back(static_cast<int32_t>(number * kBlockSize + i) & 0xffffff);
  record.key = block_key(record.parent, record.tokens);
  return record;
}

struct Pages {
  explicit Pages(size_t bytes)
      : data(static_cast<uint8_t*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096))), bytes(bytes) {
    std::mt19937_64 random(1);
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
      uint64_t word = random();
      std::copy_n(reinterpret_cast<uint8_t*>(&word), 8, data + i);
    }
  }
  ~Pages() { std::free(data); }
  std::span<uint8_t> span() const { return {data, bytes}; }
  uint8_t* data;
  size_t bytes;
};

void sync_files(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    int fd = ::open(entry.path().c_str(), O_RDONLY);
    ::fsync(fd);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);  // so that reading is from the disk
    ::close(fd);
  }
}

DiskStoreOptions options_of(const std::string& directory, size_t block_bytes, int64_t blocks, DiskIo io) {
  DiskStoreOptions options;
  options.directory = directory;
  options.block_bytes = block_bytes;
  options.block_size = kBlockSize;
  options.capacity_bytes = (blocks + 1) * static_cast<int64_t>((block_bytes + 4095) / 4096 * 4096 + 256);
  options.io = io;
  options.log = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  return options;
}

void throughput(const std::string& directory, size_t block_bytes, double gib) {
  auto blocks = static_cast<int64_t>(gib * (1 << 30) / static_cast<double>(block_bytes));
  Pages pages(block_bytes);
  double checksum = 1e9;
  for (int i = 0; i < 20; ++i) {
    double start = monotonic_seconds();
    volatile uint32_t crc = crc32c(pages.span());
    (void)crc;
    checksum = std::min(checksum, monotonic_seconds() - start);
  }
  double bytes = static_cast<double>(blocks) * static_cast<double>(block_bytes);
  std::printf("%zu bytes a block, %lld blocks; CRC-32C alone %.1f GB/s\n", block_bytes,
              static_cast<long long>(blocks), static_cast<double>(block_bytes) / checksum * 1e-9);
  struct {
    const char* name;
    DiskIo io;
  } ways[] = {{"direct", DiskIo::kDirect}, {"dropping", DiskIo::kDropping}, {"cached", DiskIo::kCached}};
  for (auto [name, io] : ways) {
    std::vector<std::pair<int64_t, DiskRecord>> found;
    auto store = DiskStore::open(options_of(directory, block_bytes, blocks, io), found);
    double rates[2], synced = 0;
    for (int pass = 0; pass < 2; ++pass) {  // into new room, then over what is there
      double start = monotonic_seconds();
      for (int64_t i = 0; i < blocks; ++i) {
        pages.data[0] = static_cast<uint8_t>(i);
        if (!store->write(i, record_of(i), pages.span())) std::exit(1);
      }
      rates[pass] = bytes / (monotonic_seconds() - start) * 1e-9;
      sync_files(store->path());
      synced = bytes / (monotonic_seconds() - start) * 1e-9;
    }
    std::vector<int64_t> order(static_cast<size_t>(blocks));
    for (int64_t i = 0; i < blocks; ++i) order[static_cast<size_t>(i)] = i;
    double read_rates[3];
    for (int pass = 0; pass < 5;
         ++pass) {  // in order, at random, by four threads, announced at random, in order
      if (pass > 0) std::shuffle(order.begin(), order.end(), std::mt19937(1));
      sync_files(store->path());
      double start = monotonic_seconds();
      std::atomic<size_t> next{0};
      auto reader = [&] {
        Pages own(block_bytes);
        for (size_t i; (i = next++) < order.size();) {
          BlockRead block{order[i], record_of(order[i]).key, own.span(), false};
          store->read({&block, 1});
          if (!block.done) std::exit(1);
        }
      };
      std::vector<std::thread> threads;
      for (int t = 0; t < (pass == 2 ? 4 : 1); ++t) threads.emplace_back(reader);
      for (std::thread& thread : threads) thread.join();
      read_rates[pass] = bytes / (monotonic_seconds() - start) * 1e-9;
    }
    std::printf(
        "  %-8s  write %.2f GB/s, again %.2f (with fsync %.2f); read in order %.2f GB/s, at random %.2f, by "
        "4 "
        "threads %.2f; checksum %.0f%% of a read\n",
        name, rates[0], rates[1], synced, read_rates[0], read_rates[1], read_rates[2],
        100 * checksum * static_cast<double>(blocks) * read_rates[0] * 1e9 / bytes);
    std::string path = store->path();
    store.reset();
    std::filesystem::remove_all(path);
  }
}

void opening(const std::string& directory, int64_t slots) {
  constexpr size_t kBytes = 64;
  Pages pages(kBytes);
  std::vector<std::pair<int64_t, DiskRecord>> found;
  DiskStoreOptions options = options_of(directory, kBytes, slots, DiskIo::kCached);
  auto store = DiskStore::open(options, found);
  double start = monotonic_seconds();
  for (int64_t i = 0; i < slots; ++i) store->write(i, record_of(i), pages.span());
  double writing = monotonic_seconds() - start;
  std::string path = store->path();
  for (bool cold : {true, false}) {
    store.reset();
    if (cold) sync_files(path);
    start = monotonic_seconds();
    store = DiskStore::open(options, found);
    std::printf("opening %zu used of %lld slots, index %s: %.0f ms\n", found.size(),
                static_cast<long long>(store->num_slots()), cold ? "on disk" : "in memory",
                1e3 * (monotonic_seconds() - start));
  }
  std::printf("a block of %zu bytes: %.1f us to write\n", kBytes, 1e6 * writing / static_cast<double>(slots));
  store.reset();
  std::filesystem::remove_all(path);
}

}  // namespace
}  // namespace taco

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: disk_store_bench DIRECTORY [GiB]\n");
    return 2;
  }
  double gib = argc > 2 ? std::atof(argv[2]) : 1.0;
  taco::opening(argv[1], 100'000);
  taco::throughput(argv[1], size_t{2} << 20, gib);
  taco::throughput(argv[1], size_t{72} << 10, gib);
}
