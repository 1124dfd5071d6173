// Weights that stay in host memory (cpu_offload_gb) and visit the device, each a product ahead of its use.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "backend/cuda/linear/linear.h"

namespace taco::cuda {

// Two staging buffers: while a product reads one, the next offloaded weight is copied into the other on a
// stream of its own. The order of use is learnt from the first pass over the model; a pass begins with the
// weight that was seen first. Copies are ordered by events, so that a captured graph holds them too.
class Offloader {
 public:
  Offloader(Context& ctx, size_t budget);  // bytes of weights to keep on the host
  ~Offloader();

  // Takes the weight's data to the host while the budget lasts.
  void adopt(CudaLinear& weight);
  bool holds(const CudaLinear& weight) const { return entries_.count(&weight) > 0; }
  // Around the product that reads it.
  void acquire(const CudaLinear& weight);
  void release(const CudaLinear& weight);
  size_t bytes() const { return used_; }

 private:
  struct Entry {
    CudaLinear* weight;
    void* host;
    size_t size;
    int order = -1;  // of first use
  };
  void load(Entry& entry, int buffer);

  Context& ctx_;
  size_t budget_, used_ = 0, largest_ = 0;
  std::unordered_map<const CudaLinear*, Entry> entries_;
  std::vector<Entry*> order_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t loaded_[2] = {}, used_event_[2] = {};
  Scratch staging_[2];
  Entry* staged_[2] = {};
};

}  // namespace taco::cuda
