#include "backend/cuda/offload.h"

#include <algorithm>

namespace taco::cuda {

Offloader::Offloader(Context& ctx, size_t budget) : ctx_(ctx), budget_(budget) {
  TACO_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  for (int i = 0; i < 2; ++i) {
    TACO_CUDA_CHECK(cudaEventCreateWithFlags(&loaded_[i], cudaEventDisableTiming));
    TACO_CUDA_CHECK(cudaEventCreateWithFlags(&used_event_[i], cudaEventDisableTiming));
  }
}

Offloader::~Offloader() {
  cudaStreamSynchronize(stream_);
  for (auto& [weight, entry] : entries_) cudaFreeHost(entry.host);
  for (int i = 0; i < 2; ++i) {
    cudaEventDestroy(loaded_[i]);
    cudaEventDestroy(used_event_[i]);
  }
  cudaStreamDestroy(stream_);
}

void Offloader::adopt(CudaLinear& weight) {
  const size_t size = static_cast<size_t>(weight.n * weight.k) * dtype_size(weight.dtype);
  if (used_ + size > budget_) return;
  void* host = nullptr;
  TACO_CUDA_CHECK(cudaMallocHost(&host, size));
  TACO_CUDA_CHECK(cudaMemcpyAsync(host, weight.data, size, cudaMemcpyDeviceToHost, ctx_.stream));
  TACO_CUDA_CHECK(cudaStreamSynchronize(ctx_.stream));
  TACO_CUDA_CHECK(cudaFree(weight.data));
  weight.data = nullptr;
  used_ += size;
  largest_ = std::max(largest_, size);
  entries_.emplace(&weight, Entry{&weight, host, size});
}

void Offloader::load(Entry& entry, int buffer) {
  TACO_CUDA_CHECK(cudaMemcpyAsync(staging_[buffer].reserve(largest_, ctx_.stream), entry.host, entry.size,
                                  cudaMemcpyHostToDevice, stream_));
  TACO_CUDA_CHECK(cudaEventRecord(loaded_[buffer], stream_));
  staged_[buffer] = &entry;
}

void Offloader::acquire(const CudaLinear& weight) {
  Entry& entry = entries_.at(&weight);
  if (entry.order < 0) {
    entry.order = static_cast<int>(order_.size());
    order_.push_back(&entry);
  }
  const int buffer = entry.order % 2;
  for (Scratch& staging : staging_) staging.reserve(largest_, ctx_.stream);
  if (staged_[buffer] != &entry ||
      entry.order == 0) {  // the first of a pass, or one whose turn nobody foresaw
    TACO_CUDA_CHECK(cudaEventRecord(used_event_[buffer], ctx_.stream));
    TACO_CUDA_CHECK(cudaStreamWaitEvent(stream_, used_event_[buffer], 0));
    load(entry, buffer);
  }
  TACO_CUDA_CHECK(cudaStreamWaitEvent(ctx_.stream, loaded_[buffer], 0));
  entry.weight->data = staging_[buffer].reserve(largest_, ctx_.stream);
  const size_t next = static_cast<size_t>(entry.order) + 1;
  if (next < order_.size()) {
    // What the other buffer held was read by the product before this one.
    TACO_CUDA_CHECK(cudaEventRecord(used_event_[1 - buffer], ctx_.stream));
    TACO_CUDA_CHECK(cudaStreamWaitEvent(stream_, used_event_[1 - buffer], 0));
    load(*order_[next], 1 - buffer);
  }
}

void Offloader::release(const CudaLinear& weight) { entries_.at(&weight).weight->data = nullptr; }

}  // namespace taco::cuda
