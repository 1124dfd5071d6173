// Fast copies from pageable host memory (mapped files) to the device: several threads fill pinned buffers
// that the copy engine then reads.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>

namespace taco::cuda {

class Uploader {
 public:
  explicit Uploader(int device);
  ~Uploader();

  // Copies in the order of the stream; returns when `source` may be reused, maybe before the copy has run.
  void copy(void* device, const void* source, size_t bytes, cudaStream_t stream);
  // The same for data that is made on the way: fill(buffer, begin, bytes) writes bytes [begin, begin + bytes)
  // of the destination, from several threads; begin and bytes are multiples of `unit` (at most 8 MB).
  void produce(void* device, size_t bytes, size_t unit, cudaStream_t stream,
               const std::function<void(void*, size_t, size_t)>& fill);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace taco::cuda
