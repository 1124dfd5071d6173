#include "backend/cuda/arena.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "backend/cuda/check.h"

namespace taco::cuda {
namespace {

size_t slab_bytes() {
  const char* mb = std::getenv("TACO_SLAB_MB");
  return size_t{mb != nullptr ? std::strtoul(mb, nullptr, 10) : 1024} << 20;
}
size_t round_up(size_t bytes) { return (std::max<size_t>(bytes, 1) + 511) / 512 * 512; }

}  // namespace

Arena::~Arena() {
  for (auto& [base, slab] : slabs_) cudaFree(base);
}

void* Arena::allocate(size_t bytes) {
  bytes = round_up(bytes);
  std::lock_guard lock(mutex_);
  for (auto& [base, slab] : slabs_) {
    for (auto hole = slab.free.begin(); hole != slab.free.end(); ++hole) {
      auto [offset, size] = *hole;
      if (size < bytes) continue;
      slab.free.erase(hole);
      if (size > bytes) slab.free[offset + bytes] = size - bytes;
      slab.used += bytes;
      sizes_[base + offset] = bytes;
      return base + offset;
    }
  }
  void* base = nullptr;
  size_t size = std::max(bytes, slab_bytes());
  if (cudaMalloc(&base, size) != cudaSuccess) {  // the last of the memory: no more than is needed
    cudaGetLastError();
    size = bytes;
    TACO_CUDA_CHECK(cudaMalloc(&base, size));
  }
  Slab& slab = slabs_[static_cast<char*>(base)];
  slab.size = size;
  slab.used = bytes;
  if (size > bytes) slab.free[bytes] = size - bytes;
  sizes_[static_cast<char*>(base)] = bytes;
  return base;
}

void Arena::release(void* data) {
  if (data == nullptr) return;
  std::lock_guard lock(mutex_);
  auto found = sizes_.find(static_cast<char*>(data));
  TACO_CHECK(found != sizes_.end(), "memory that the arena did not give");
  const size_t bytes = found->second;
  sizes_.erase(found);
  auto owner = std::prev(slabs_.upper_bound(static_cast<char*>(data)));
  Slab& slab = owner->second;
  slab.used -= bytes;
  if (slab.used == 0) {
    cudaFree(owner->first);
    slabs_.erase(owner);
    return;
  }
  size_t offset = static_cast<size_t>(static_cast<char*>(data) - owner->first), size = bytes;
  auto next = slab.free.lower_bound(offset);
  if (next != slab.free.end() && next->first == offset + size) {
    size += next->second;
    next = slab.free.erase(next);
  }
  if (next != slab.free.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  slab.free[offset] = size;
}

}  // namespace taco::cuda
