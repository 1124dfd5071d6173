#include "backend/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace taco::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kHeader = 64;  // keeps the block's size; data follows, 64-byte aligned

// A large block starts a page after the header's page, so that its data stand on a huge page.
struct Header {
  void* base;
  size_t mapped;  // 0: from the heap
};

Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeader); }

[[noreturn]] void out_of_memory(size_t bytes) {
  fail(ErrorCode::kResourceExhausted, "cannot allocate ", bytes >> 20, " MiB of memory");
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
  if (bytes < kLarge) {
    size_t size = (bytes + kHeader + 63) / 64 * 64;
    void* base = std::aligned_alloc(64, size);
    if (!base) out_of_memory(bytes);
    if (zero) std::memset(base, 0, size);
    char* data = static_cast<char*>(base) + kHeader;
    *header_of(data) = Header{base, 0};
    return data;
  }
  // One huge page more than needed: room to align, and for the header before the first whole one.
  size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) out_of_memory(bytes);
  uintptr_t aligned = (reinterpret_cast<uintptr_t>(base) + kHeader + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(aligned), size - (aligned - reinterpret_cast<uintptr_t>(base)), MADV_HUGEPAGE);
  void* data = reinterpret_cast<void*>(aligned);
  *header_of(data) = Header{base, size};
  return data;
}

void release_pages(void* data) noexcept {
  if (!data) return;
  Header header = *header_of(data);
  if (header.mapped) {
    munmap(header.base, header.mapped);
  } else {
    std::free(header.base);
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
                  Group{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}) {
    size_t limit = read_number(g.limit);
    if (limit == 0 || limit >= limits.total) continue;  // none
    limits.total = limit;
    size_t used = read_number(g.used);
    limits.available = std::min(limits.available, limit > used ? limit - used : 0);
  }
  return limits;
}

}  // namespace taco::cpu
