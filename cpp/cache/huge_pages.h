// Memory for what is looked at here and there: on huge pages, where the kernel gives them, most looks cost
// one miss instead of two (the page's address, and the line).
#pragma once

#include <cstddef>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace taco {

template <typename T>
struct HugePageAllocator {
  using value_type = T;
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kLine = 64;

  HugePageAllocator() = default;
  template <typename U>
  HugePageAllocator(const HugePageAllocator<U>&) {}

  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    void* data = ::operator new(bytes, alignment(count));
#ifdef __linux__
    // Best effort: without them it is slower.
    if (bytes >= kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(data);
  }
  void deallocate(T* data, size_t count) { ::operator delete(static_cast<void*>(data), alignment(count)); }
  friend bool operator==(const HugePageAllocator&, const HugePageAllocator&) { return true; }

 private:
  static std::align_val_t alignment(size_t count) {
    return std::align_val_t{count * sizeof(T) >= kHugePage ? kHugePage : kLine};
  }
};

}  // namespace taco
