// Device memory for weights, in slabs.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace taco::cuda {

// Weights are many and large, are read in full each step and live as long as the model. Cut from few large
// allocations they lie close together, which spares the device's address translation.
class Arena {
 public:
  ~Arena();
  // 512-byte aligned. Throws kResourceExhausted.
  void* allocate(size_t bytes);
  void release(void* data);  // of allocate, or null; a slab that nobody uses is given back

 private:
  struct Slab {
    size_t size, used = 0;
    std::map<size_t, size_t> free;  // offset -> bytes, neighbours merged
  };
  std::mutex mutex_;
  std::map<char*, Slab> slabs_;
  std::map<char*, size_t> sizes_;  // of what is in use
};

}  // namespace taco::cuda
