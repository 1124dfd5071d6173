// Finds the CUDA backend in its plugin library, so that the core runs on machines without a driver.
#include <dlfcn.h>

#include "backend/backend.h"
#include "base/error.h"

namespace taco {

std::shared_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  // Never closed: its code may be on some thread's stack for as long as the process lives.
  void* library = dlopen(options.plugin.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail(ErrorCode::kUnavailable, "the CUDA backend could not be loaded: ", dlerror(),
         "; `taco_llm doctor` says what is missing, and --device cpu works without it");
  }
  auto build_id = reinterpret_cast<const char* (*)()>(dlsym(library, "taco_cuda_build_id"));
  auto make = reinterpret_cast<Backend* (*)(const CudaOptions*, char*, size_t, int*)>(
      dlsym(library, "taco_cuda_make_backend"));
  if (build_id == nullptr || make == nullptr || std::string(build_id()) != TACO_BUILD_ID) {
    fail(ErrorCode::kUnavailable, options.plugin, " is of another build than the core (",
         build_id == nullptr ? "unknown" : build_id(), ", not ", TACO_BUILD_ID, "): install taco_llm again");
  }
  char error[2048] = {};
  int code = 0;
  Backend* backend = make(&options, error, sizeof error, &code);
  if (backend == nullptr) fail(static_cast<ErrorCode>(code), error);
  return std::shared_ptr<Backend>(backend);
}

}  // namespace taco
