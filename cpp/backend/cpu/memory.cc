#include "backend/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"

namespace taco::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSlab = size_t{32} << 20;
constexpr size_t kHeapBelow = size_t{32} << 10;  // too small to matter
constexpr size_t kOwnFrom = size_t{16} << 20;    // big enough for a mapping of its own
constexpr size_t kHeader = 64;                   // in front of the data, which stay 64-byte aligned

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

[[noreturn]] void out_of_memory(size_t bytes) {
  fail(ErrorCode::kResourceExhausted, "cannot allocate ", bytes >> 20, " MiB of memory");
}

// `data` stand on a huge page, `size` a multiple of one; a header fits in front, on a page that is not huge.
// The kernel hands the memory out zeroed, page by page.
struct Mapping {
  char* base;    // as mapped
  size_t bytes;  // as mapped
  char* data;
};

Mapping map_huge_pages(size_t size) {
  Mapping m;
  m.bytes = size + kHugePage + kHeader;
  void* base =
      mmap(nullptr, m.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) out_of_memory(size);
  m.base = static_cast<char*>(base);
  m.data = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(base) + kHeader, kHugePage));
  madvise(m.data, size, MADV_HUGEPAGE);
  return m;
}

// Blocks of a few pages up to 16 MiB (most layers' weights) share slabs: a huge page each would waste half of
// it, and 4 KiB pages read slower. Blocks are laid one after the other; a slab goes when its last block does.
struct Slab {
  Mapping mapping;
  size_t top = 0;      // where the next block goes
  size_t written = 0;  // memory below may be dirty
  size_t blocks = 0;
};

struct Header {
  enum class Kind : uint32_t { kHeap, kMapping, kSlab } kind;
  size_t bytes;  // with the header
  void* base;    // kHeap
  Mapping mapping;
  Slab* slab;
};
static_assert(sizeof(Header) <= kHeader);

Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeader); }

std::mutex slab_mutex;
Slab* open_slab = nullptr;  // the one that takes new blocks; under slab_mutex

void* allocate_in_slab(size_t bytes, bool zero) {
  size_t size = round_up(bytes + kHeader, 64);
  std::lock_guard lock(slab_mutex);
  if (!open_slab || open_slab->top + size > kSlab) {
    // A full slab lives on through its blocks.
    auto slab = std::make_unique<Slab>();
    slab->mapping = map_huge_pages(kSlab);
    open_slab = slab.release();
  }
  Slab& slab = *open_slab;
  char* start = slab.mapping.data + slab.top;
  if (zero && slab.top < slab.written) std::memset(start, 0, std::min(size, slab.written - slab.top));
  slab.top += size;
  slab.written = std::max(slab.written, slab.top);
  ++slab.blocks;
  char* data = start + kHeader;
  *header_of(data) = Header{Header::Kind::kSlab, size, nullptr, {}, &slab};
  return data;
}

void release_in_slab(void* data, const Header& header) {
  std::lock_guard lock(slab_mutex);
  Slab* slab = header.slab;
  size_t start = static_cast<size_t>(static_cast<char*>(data) - kHeader - slab->mapping.data);
  if (start + header.bytes == slab->top) slab->top = start;  // the last block: its place is free again
  if (--slab->blocks > 0) return;
  slab->top = 0;
  if (slab == open_slab) open_slab = nullptr;
  munmap(slab->mapping.base, slab->mapping.bytes);
  delete slab;
}

// The first number in a file, or 0.
size_t read_number(const std::string& path) {
  std::ifstream file(path);
  size_t value = 0;
  if (!(file >> value)) return 0;
  return value;
}

}  // namespace

void* allocate_pages(size_t bytes, bool zero) {
  if (bytes > (size_t{1} << 62)) out_of_memory(bytes);
  if (bytes < kHeapBelow) {
    size_t size = round_up(bytes + kHeader, 64);
    void* base = std::aligned_alloc(64, size);
    if (!base) out_of_memory(bytes);
    if (zero) std::memset(base, 0, size);
    char* data = static_cast<char*>(base) + kHeader;
    *header_of(data) = Header{Header::Kind::kHeap, size, base, {}, nullptr};
    return data;
  }
  if (bytes < kOwnFrom) return allocate_in_slab(bytes, zero);
  Mapping mapping = map_huge_pages(round_up(bytes, kHugePage));
  *header_of(mapping.data) = Header{Header::Kind::kMapping, bytes, nullptr, mapping, nullptr};
  return mapping.data;
}

void release_pages(void* data) noexcept {
  if (!data) return;
  Header header = *header_of(data);
  switch (header.kind) {
    case Header::Kind::kHeap:
      std::free(header.base);
      break;
    case Header::Kind::kMapping:
      munmap(header.mapping.base, header.mapping.bytes);
      break;
    case Header::Kind::kSlab:
      release_in_slab(data, header);
      break;
  }
}

MemoryLimits memory_limits() {
  MemoryLimits limits;
  std::ifstream info("/proc/meminfo");
  std::string name;
  size_t kib;
  while (info >> name >> kib) {
    if (name == "MemTotal:") limits.total = kib << 10;
    if (name == "MemAvailable:") limits.available = kib << 10;
    info.ignore(64, '\n');
  }
  struct Group {
    const char *limit, *used;
  };
  for (Group g : {Group{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
                  Group{"/sys/fs/cgroup/memory/memory.limit_in_bytes",
                        "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}) {
    size_t limit = read_number(g.limit);
    if (limit == 0 || limit >= limits.total) continue;  // none
    limits.total = limit;
    size_t used = read_number(g.used);
    limits.available = std::min(limits.available, limit > used ? limit - used : 0);
  }
  return limits;
}

}  // namespace taco::cpu
