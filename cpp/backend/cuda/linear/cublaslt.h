// cuBLASLt by dlopen: the library stays an optional dependency of 0.6 GB, and no header of it is needed to
// build.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/dtype.h"

namespace taco::cuda {

struct Context;

constexpr size_t kCublasWorkspace = size_t{64} << 20;  // of Context::gemm_workspace

// y[m, n] = alpha * (x[m, k] W[n, k]^T) + beta * y, all row-major, W dense. float32 sums.
struct Matmul {
  int64_t m = 0, n = 0, k = 0;
  DType in = DType::kBF16;   // of x and W
  DType out = DType::kBF16;  // of y
  const void* x = nullptr;
  int64_t x_stride = 0;  // elements
  const void* w = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;  // elements
  float alpha = 1.0f, beta = 0.0f;
  // FP8 only, device memory. w_scales: [n]; x_scales: [m]; both or (a scalar for W alone) w_scales only.
  const float* w_scales = nullptr;
  const float* x_scales = nullptr;
};

class CublasLt {
 public:
  // path: of libcublasLt.so.13; empty: the loader's search. A library that cannot be loaded is no error yet:
  // products then run on our own kernels.
  explicit CublasLt(const std::string& path);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  bool available() const { return handle_ != nullptr; }
  const std::string& problem() const { return problem_; }  // why it is not available, and what to install
  size_t version() const { return version_; }              // 130100 is 13.1.0

  // false: the library is missing or has no kernel for this product, and nothing ran.
  bool matmul(const Matmul& p, Context& ctx);
  // The largest number of rows of each bucket whose products are tuned at their first use; ascending, to the
  // first that is not below `most`.
  static std::vector<int64_t> tuned_rows(int64_t most);
  // Whether the library has a kernel for it.
  bool takes(const Matmul& p);
  // Microseconds of each candidate of the library's heuristic for this product (benchmarks). y is
  // overwritten.
  std::vector<float> time_candidates(const Matmul& p, Context& ctx, int runs);

 private:
  struct Api;
  struct Call;
  struct Plan {
    uint64_t algo[8] = {};
    size_t workspace = 0;
    bool asked = false, usable = false, tuned = false;
  };
  // m's bucket, n, k, in, out, beta != 0, scales, alignment, strides beyond the dense ones
  using Key = std::tuple<int64_t, int64_t, int64_t, int, int, bool, int, int>;

  std::string load(const std::string& path);
  std::vector<Plan> candidates(Call& call, int count);
  Plan* plan(const Matmul& p, Call& call, bool may_tune);
  bool tune(const Matmul& p, Call& call, std::vector<Plan>& plans);

  Api* api_ = nullptr;
  void* library_ = nullptr;
  void* handle_ = nullptr;
  std::string problem_;
  size_t version_ = 0;
  cudaStream_t tuning_stream_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace taco::cuda
