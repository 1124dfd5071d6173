// What a hit on disk costs: from the fetch of a prefix of which only the disk has the blocks until it is on
// the device (of the CPU backend), as after a restart. The data files are dropped from the system's cache
// first.
//   fetch_bench DIRECTORY [blocks [bytes of a block [rounds]]]
// The folder that it makes in DIRECTORY is removed at the end.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "cache/block_key.h"
#include "cache/disk_store.h"
#include "cache/prefix_cache.h"
#include "exec/kv_transfer.h"

namespace taco {
namespace {

constexpr int kBlockSize = 16, kLayers = 30;

struct Setting {
  int64_t blocks;
  size_t block_bytes;
  std::string directory;
  DiskStoreOptions store() const {
    DiskStoreOptions options;
    options.directory = directory;
    options.block_bytes = block_bytes;
    options.block_size = kBlockSize;
    options.capacity_bytes = (2 * blocks + 1) * static_cast<int64_t>(block_bytes + 4096 + 256);
    options.log = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
    return options;
  }
  std::vector<int32_t> tokens() const {
    std::vector<int32_t> tokens(static_cast<size_t>(blocks * kBlockSize + 1));
    std::iota(tokens.begin(), tokens.end(), 1);
    return tokens;
  }
};

void drop_from_memory(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    int fd = ::open(entry.path().c_str(), O_RDONLY);
    ::fsync(fd);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

// The prefix, its blocks in neighbouring slots or anywhere.
std::string write_prefix(const Setting& setting, bool scattered) {
  std::vector<std::pair<int64_t, DiskRecord>> found;
  auto store = DiskStore::open(setting.store(), found);
  std::vector<int64_t> slots(static_cast<size_t>(2 * setting.blocks));
  std::iota(slots.begin(), slots.end(), 0);
  if (scattered) std::shuffle(slots.begin(), slots.end(), std::mt19937(1));
  const std::vector<int32_t> tokens = setting.tokens();
  std::vector<uint8_t> payload(setting.block_bytes);
  Digest parent;
  for (int64_t i = 0; i < setting.blocks; ++i) {
    DiskRecord record;
    record.parent = parent;
    record.tokens.assign(tokens.begin() + i * kBlockSize, tokens.begin() + (i + 1) * kBlockSize);
    parent = record.key = block_key(record.parent, record.tokens);
    std::memset(payload.data(), static_cast<int>(i), payload.size());
    if (!store->write(slots[static_cast<size_t>(i)], record, payload)) std::exit(1);
  }
  return store->path();
}

double fetch_once(const Setting& setting, std::vector<char>& device, bool touched) {
  std::vector<std::pair<int64_t, DiskRecord>> found;
  std::shared_ptr<DiskStore> store = DiskStore::open(setting.store(), found);
  drop_from_memory(store->path());
  auto backend = std::shared_ptr<Backend>(make_cpu_backend(1));
  auto host = std::make_shared<HostBlocks>(backend, setting.blocks, setting.block_bytes);
  if (touched) std::memset(host->block(0), 1, static_cast<size_t>(setting.blocks) * setting.block_bytes);
  std::mutex mutex;
  std::condition_variable woken;
  bool wake = false;
  KvTransfer::Options options;
  options.disk.read = [&](std::span<BlockRead> blocks) { store->read(blocks); };
  options.disk.write = [](int64_t, const DiskRecord&, std::span<const char>) { return false; };
  KvTransfer transfers(backend,
                       {.data = device.data(),
                        .layers = kLayers,
                        .num_blocks = setting.blocks + 1,
                        .layer_bytes = setting.block_bytes / kLayers},
                       host, std::move(options));
  transfers.on_finished([&] {
    std::lock_guard lock(mutex);
    wake = true;
    woken.notify_all();
  });
  BlockPool pool(setting.blocks + 1);
  PrefixCache cache({.block_size = kBlockSize,
                     .block_bytes = setting.block_bytes,
                     .num_host_blocks = setting.blocks,
                     .num_disk_blocks = store->num_slots()},
                    pool);
  if (cache.restore(found) != setting.blocks) std::exit(1);
  const std::vector<int32_t> tokens = setting.tokens();
  const double start = monotonic_seconds();
  uint64_t id = 0;
  if (cache.fetch({}, tokens, static_cast<int32_t>(tokens.size()) - 1, 0, start, id) !=
      PrefixCache::Fetch::kStarted)
    std::exit(1);
  std::vector<Transfer> begun;
  std::vector<TransferResult> results;
  for (;;) {
    cache.take_transfers(begun);
    for (const Transfer& transfer : begun) transfers.begin(transfer);
    begun.clear();
    if (cache.remaining(id, monotonic_seconds()) == 0.0) break;
    {
      std::unique_lock lock(mutex);
      woken.wait(lock, [&] { return wake; });
      wake = false;
    }
    transfers.finished(results);
    for (const TransferResult& result : results) cache.finished(result, monotonic_seconds());
    results.clear();
  }
  const double seconds = monotonic_seconds() - start;
  const PrefixCacheStats stats = cache.stats();
  if (stats.failed != 0 || stats.loaded != static_cast<uint64_t>(setting.blocks)) std::exit(1);
  return seconds;
}

}  // namespace
}  // namespace taco

int main(int argc, char** argv) {
  using namespace taco;
  if (argc < 2) {
    std::fprintf(stderr, "usage: fetch_bench DIRECTORY [blocks [bytes of a block [rounds]]]\n");
    return 2;
  }
  Setting setting{argc > 2 ? std::atoll(argv[2]) : 350,
                  argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 368640, argv[1]};
  setting.block_bytes = (setting.block_bytes + kLayers - 1) / kLayers * kLayers;
  const int rounds = argc > 4 ? std::atoi(argv[4]) : 9;
  std::vector<char> device(static_cast<size_t>(setting.blocks + 1) * setting.block_bytes, 1);
  for (bool scattered : {false, true}) {
    const std::string path = write_prefix(setting, scattered);
    for (bool touched : {true, false}) {
      std::vector<double> seconds;
      for (int i = 0; i < rounds; ++i) seconds.push_back(fetch_once(setting, device, touched));
      std::sort(seconds.begin(), seconds.end());
      const double median = seconds[seconds.size() / 2];
      std::printf(
          "%lld blocks of %zu bytes, %s, host memory %s: %.1f ms (%.1f to %.1f), %.2f GB/s\n",
          static_cast<long long>(setting.blocks), setting.block_bytes,
          scattered ? "anywhere" : "in neighbouring slots", touched ? "in use" : "new", 1e3 * median,
          1e3 * seconds.front(), 1e3 * seconds.back(),
          static_cast<double>(setting.blocks) * static_cast<double>(setting.block_bytes) / median * 1e-9);
    }
    std::filesystem::remove_all(path);
  }
}
