// The one door of libtaco_cuda.so.
#include <cstring>

#include "backend/cuda/cuda_backend.h"

// Both sides must come from one build: classes with virtual functions cross this border.
extern "C" __attribute__((visibility("default"))) const char* taco_cuda_build_id() { return TACO_BUILD_ID; }

// A new backend, or null with a message in `error` and the taco::ErrorCode in `code`.
extern "C" __attribute__((visibility("default"))) taco::Backend* taco_cuda_make_backend(
    const taco::CudaOptions* options, char* error, size_t error_size, int* code) {
  try {
    return new taco::cuda::CudaBackend(*options);
  } catch (const taco::Error& e) {
    std::strncpy(error, e.what(), error_size - 1);
    *code = static_cast<int>(e.code());
  } catch (const std::exception& e) {
    std::strncpy(error, e.what(), error_size - 1);
    *code = static_cast<int>(taco::ErrorCode::kInternal);
  }
  return nullptr;
}
