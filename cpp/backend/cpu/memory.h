// Aligned memory on transparent huge pages, for weights and the KV cache.
#pragma once

#include <cstddef>
#include <utility>

namespace taco::cpu {

// 64-byte aligned; from 32 KiB up on memory advised to use huge pages (about 12 % more read bandwidth), from
// 16 MiB up 2 MiB aligned. Throws kResourceExhausted. With `zero` the bytes are zero; large blocks are so for
// nothing.
void* allocate_pages(size_t bytes, bool zero = false);
void release_pages(void* data) noexcept;

// Owns one block of allocate_pages.
class PageBuffer {
 public:
  PageBuffer() = default;
  explicit PageBuffer(size_t bytes, bool zero = false) : data_(allocate_pages(bytes, zero)), size_(bytes) {}
  ~PageBuffer() { release_pages(data_); }
  PageBuffer(PageBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PageBuffer& operator=(PageBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  // Grows to at least `bytes`; the contents are lost when it does.
  void reserve(size_t bytes) {
    if (bytes > size_) *this = PageBuffer(bytes + bytes / 4);
  }
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Memory this process may use: the machine's, bounded by its cgroup's limit.
struct MemoryLimits {
  size_t total = 0, available = 0;
};
MemoryLimits memory_limits();

}  // namespace taco::cpu
