// A device that runs the model: memory, prepared weights and the ops of ops.h.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/copy_stream.h"
#include "backend/ops.h"
#include "backend/sample.h"

namespace taco {

struct DeviceMemory {
  size_t total = 0, available = 0;  // bytes
};

// What a backend may need to know of a weight to keep it in its best form.
struct LinearOptions {
  DType compute = DType::kBF16;  // what unquantised matrices are kept in
  bool gated = false;            // parts are [gate; up], read with Epilogue::kGated
  bool fp8 = false;              // quantise to FP8 (e4m3), one scale for the tensor
  DType activation = DType::kF32;
  bool offloadable = false;  // may be kept in host memory and visit the device for each use
};

// The shape of a step, in host memory: given before its ops, so that a backend can plan for all layers once.
struct StepShape {
  int64_t rows = 0;
  int num_seqs = 0;
  const int32_t* q_start = nullptr;  // [num_seqs + 1]
  const int32_t* kv_len = nullptr;   // [num_seqs]
  int max_q_len = 0, max_kv_len = 0;
  bool tree = false;  // the step's attention has a tree mask
};

// A recorded sequence of ops that can be run again: same shapes, same addresses, new contents.
class Graph {
 public:
  virtual ~Graph() = default;
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

  // The dtype of the activations of a model whose dtype is `model`.
  virtual DType activation_dtype(DType model) const { return DType::kF32; }

  // Host memory that the device copies fast (pinned), for `upload_async`.
  virtual void* allocate_host(size_t bytes) { return allocate(bytes); }
  virtual void release_host(void* data) noexcept { release(data); }
  // In the order of the ops; `source` (of allocate_host) must stay as it is until the copy has run.
  virtual void upload_async(void* device, const void* source, size_t bytes) { upload(device, source, bytes); }
  virtual void download_async(void* host, const void* source, size_t bytes) { download(host, source, bytes); }
  // `rows` rows of `width` bytes, dense in the source, `pitch` bytes apart on the device.
  virtual void upload_rows_async(void* device, size_t pitch, const void* source, size_t width, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(static_cast<char*>(device) + i * pitch, static_cast<const char*>(source) + i * width,
                  width);
  }
  // A mark in the order of the ops, and waiting for it. Marks grow from 1; nothing is before mark 0.
  virtual uint64_t mark() { return 0; }
  virtual void wait(uint64_t mark) {}

  // Copies beside the ops (copy_stream.h): a stream of them; the point that the ops have come to; ops that
  // wait for a point in a copy stream. `fence` must have been made before the call, never later.
  virtual std::unique_ptr<CopyStream> make_copy_stream() { return make_host_copy_stream(); }
  virtual std::shared_ptr<Fence> fence() { return make_host_fence(); }
  virtual void wait_for(const Fence& fence) {}
  // In the order of the ops.
  virtual void copy_rows(CopyDirection direction, const RowCopies& copies) {
    taco::copy_rows(direction, copies);
  }
  // Makes memory of the host's own (whole pages) fast for the copies above, or takes that back; from any
  // thread. Throws kResourceExhausted.
  virtual bool needs_pinning() const { return false; }
  virtual void pin_host(void* data, size_t bytes) {}
  virtual void unpin_host(void* data) noexcept {}

  // Numbers of rows, ascending, up to the first that is not below `most`, at which a first step sets
  // something up that a request would feel (it tunes products): start-up runs a step of each.
  virtual std::vector<int64_t> rows_to_warm(int64_t most) const { return {}; }

  // Once for each step, before its ops (and before a graph is captured or replayed for it).
  virtual void begin_step(const StepShape&) {}
  virtual bool has_graphs() const { return false; }
  // Changes when memory that graphs may hold the address of has moved: those captured before are void.
  virtual uint64_t memory_generation() const { return 0; }
  // Records what `ops` calls without running it; null where a backend has no graphs.
  virtual std::unique_ptr<Graph> capture(const std::function<void()>& ops) { return nullptr; }
  virtual void replay(Graph&) {}

  // Host work between ops, such as sampling: fn(item, thread) for items [0, count), thread < host_threads().
  virtual int host_threads() const { return 1; }
  virtual void host_parallel(int64_t count, const std::function<void(int64_t, int)>& fn) {
    for (int64_t i = 0; i < count; ++i) fn(i, 0);
  }

  // Stacks `parts` by rows into one weight. bias: [sum of rows] float32 or null. Throws kUnimplemented for a
  // format it cannot hold. A part without data (HostMatrix::data null) gets random values from its `seed`.
  virtual std::unique_ptr<Linear> prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                                 const LinearOptions& options) = 0;
  virtual std::unique_ptr<Embedding> prepare_embedding(const HostMatrix& table, DType compute) = 0;

  virtual void embedding(const EmbeddingParams&) = 0;
  virtual void norm(const NormParams&) = 0;
  virtual void linear(const LinearParams&) = 0;
  virtual void rope_and_cache(const RopeAndCacheParams&) = 0;
  virtual void attention(const AttentionParams&) = 0;
  virtual void moe(const MoeParams&) = 0;
  virtual void gather_rows(const GatherRowsParams&) = 0;
  virtual void scale_logits(const ScaleLogitsParams&) = 0;
  virtual void mask_logits(const MaskLogitsParams&) = 0;
  virtual void copy_blocks(const CopyBlocksParams&) = 0;
  virtual void copy_slots(const CopySlotsParams&) = 0;

  // Sampling on the device (sample.h); false: the caller samples on the host from downloaded logits.
  virtual bool samples() const { return false; }
  virtual void sample(const SampleParams&) {}
  virtual void patch_ids(const PatchIdsParams&) {}
};

// Memory that goes back to its backend, which it keeps alive.
inline std::shared_ptr<void> device_memory(const std::shared_ptr<Backend>& backend, size_t bytes) {
  return {backend->allocate(bytes), [backend](void* p) { backend->release(p); }};
}
inline std::shared_ptr<void> host_memory(const std::shared_ptr<Backend>& backend, size_t bytes) {
  return {backend->allocate_host(bytes), [backend](void* p) { backend->release_host(p); }};
}

// The CPU backend is always there. num_threads 0: one for each core of the process.
std::unique_ptr<Backend> make_cpu_backend(int num_threads);

struct CudaOptions {
  int device = 0;
  std::string plugin;            // path of libtaco_cuda.so
  std::string cublaslt;          // path of libcublasLt.so.13, or empty: the loader's search
  bool batch_invariant = false;  // a row's result does not depend on the other rows of its step
  size_t offload_bytes = 0;      // of weights to keep in host memory
};
// Loads the plugin. Throws kUnavailable with what is missing and what to do about it.
std::shared_ptr<Backend> make_cuda_backend(const CudaOptions& options);

}  // namespace taco
