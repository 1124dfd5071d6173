// A device that runs the model: memory, prepared weights and the ops of ops.h.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "backend/ops.h"

namespace taco {

struct DeviceMemory {
  size_t total = 0, available = 0;  // bytes
};

// Calls come from one thread, in order. An op may return before it has run; `synchronize` waits.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;         // "cpu", "cuda:0"
  virtual std::string description() const = 0;  // for people: instruction set, threads
  virtual DeviceMemory memory() const = 0;

  // Device memory, 64-byte aligned at least, zeroed when `zero`. Throws kResourceExhausted.
  virtual void* allocate(size_t bytes, bool zero = false) = 0;
  virtual void release(void* data) noexcept = 0;
  virtual void synchronize() = 0;
  // Between host memory and memory of `allocate`. Both return when `source` may be reused.
  virtual void upload(void* device, const void* source, size_t bytes) { std::memcpy(device, source, bytes); }
  virtual void download(void* host, const void* source, size_t bytes) { std::memcpy(host, source, bytes); }
  virtual void idle() {}  // nothing will be asked for a while

  // Host work between ops, such as sampling: fn(item, thread) for items [0, count), thread < host_threads().
  virtual int host_threads() const { return 1; }
  virtual void host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) {
    for (int64_t i = 0; i < count; ++i) fn(i, 0);
  }

  // Stacks `parts` by rows into one weight. `compute` is the dtype that unquantised matrices are kept in.
  // bias: [sum of rows] float32 or null. Throws kUnimplemented for a format it cannot hold.
  virtual std::unique_ptr<Linear> prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                                 DType compute) = 0;
  virtual std::unique_ptr<Embedding> prepare_embedding(const HostMatrix& table, DType compute) = 0;

  virtual void embedding(const EmbeddingParams&) = 0;
  virtual void norm(const NormParams&) = 0;
  virtual void linear(const LinearParams&) = 0;
  virtual void rope_and_cache(const RopeAndCacheParams&) = 0;
  virtual void attention(const AttentionParams&) = 0;
  virtual void moe(const MoeParams&) = 0;
  virtual void gather_rows(const GatherRowsParams&) = 0;
  virtual void scale_logits(const ScaleLogitsParams&) = 0;
  virtual void copy_blocks(const CopyBlocksParams&) = 0;
};

// The CPU backend is always there. num_threads 0: one for each core of the process.
std::unique_ptr<Backend> make_cpu_backend(int num_threads);

}  // namespace taco
