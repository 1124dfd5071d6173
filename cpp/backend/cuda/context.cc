#include "backend/cuda/context.h"

#include <algorithm>
#include <atomic>

namespace taco::cuda {

void throw_cuda_error(cudaError_t error, const char* what, const char* file, int line) {
  cudaGetLastError();  // a later call must not see it again; a lost device stays lost
  if (error == cudaErrorMemoryAllocation) {
    fail(ErrorCode::kResourceExhausted, "the GPU is out of memory (", what,
         "): lower --gpu-memory-utilization, --max-num-seqs or --max-num-batched-tokens, or end other "
         "programs "
         "that use the GPU");
  }
  fail(ErrorCode::kUnavailable, "CUDA: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ") in ",
       what, " at ", file, ":", line);
}

namespace {
std::atomic<uint64_t> scratch_moves{0};
}

uint64_t Scratch::generation() { return scratch_moves.load(); }

Scratch::~Scratch() { cudaFree(data_); }

void Scratch::grow(size_t bytes, cudaStream_t stream, bool zero) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TACO_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  TACO_CHECK(status == cudaStreamCaptureStatusNone, "scratch memory must not grow from ", size_, " to ",
             bytes, " bytes while a graph is captured");
  TACO_CUDA_CHECK(cudaStreamSynchronize(stream));
  cudaFree(data_);
  ++scratch_moves;
  data_ = nullptr;
  size_ = 0;
  size_t rounded = (std::max<size_t>(bytes, 256) + 255) / 256 * 256;
  TACO_CUDA_CHECK(cudaMalloc(&data_, rounded));
  size_ = rounded;
  if (zero) TACO_CUDA_CHECK(cudaMemsetAsync(data_, 0, rounded, stream));
}

void* Scratch::reserve(size_t bytes, cudaStream_t stream) {
  if (bytes > size_ || data_ == nullptr) grow(bytes, stream, false);
  return data_;
}
void* Scratch::reserve_zeroed(size_t bytes, cudaStream_t stream) {
  if (bytes > size_ || data_ == nullptr) grow(bytes, stream, true);
  return data_;
}

QuantizedRows* Context::make_quantized(const void* source, int64_t rows, int64_t cols) {
  int slot = -1;
  for (int i = 0; i < kQuantizedSlots; ++i) {
    if (quantized_[i].source == source) slot = i;
  }
  if (slot < 0) slot = next_quantized_++ % kQuantizedSlots;
  QuantizedRows& q = quantized_[slot];
  q = {.source = source,
       .rows = rows,
       .cols = cols,
       .data = quantized_data_[slot].reserve(static_cast<size_t>(rows * cols), stream),
       .scales = static_cast<float*>(
           quantized_scales_[slot].reserve(static_cast<size_t>(rows) * sizeof(float), stream))};
  return &q;
}

const QuantizedRows* Context::find_quantized(const void* source, int64_t rows, int64_t cols) const {
  for (const QuantizedRows& q : quantized_) {
    if (q.source == source && q.rows == rows && q.cols == cols) return &q;
  }
  return nullptr;
}

void Context::forget_quantized(const void* source) {
  for (QuantizedRows& q : quantized_) {
    if (q.source == source) q.rows = 0;  // the slot stays its own: captured graphs hold the address
  }
}

}  // namespace taco::cuda
