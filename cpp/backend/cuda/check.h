// Every CUDA call is checked. A failed one throws kUnavailable (the device is lost: nothing computed since
// can be trusted) or kResourceExhausted (out of memory).
#pragma once

#include <cuda_runtime_api.h>

#include "base/error.h"

namespace taco::cuda {

[[noreturn]] void throw_cuda_error(cudaError_t error, const char* what, const char* file, int line);

}  // namespace taco::cuda

#define TACO_CUDA_CHECK(call)                                                 \
  do {                                                                        \
    cudaError_t taco_error_ = (call);                                         \
    if (taco_error_ != cudaSuccess) [[unlikely]]                              \
      ::taco::cuda::throw_cuda_error(taco_error_, #call, __FILE__, __LINE__); \
  } while (0)
