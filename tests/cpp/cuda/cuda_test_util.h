// What the tests of CUDA ops share: a backend, device buffers, conversions, the error measure.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cuda/cuda_backend.h"

namespace taco::cuda::test {

inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// One backend for all tests of the process: TACO_CUBLASLT names the library where the loader does not find
// it.
inline CudaBackend& backend(bool batch_invariant = false) {
  const char* lt = std::getenv("TACO_CUBLASLT");
  static CudaOptions options{.device = 0, .plugin = "", .cublaslt = lt ? lt : "", .batch_invariant = false};
  static CudaOptions invariant{.device = 0, .plugin = "", .cublaslt = lt ? lt : "", .batch_invariant = true};
  static CudaBackend* plain = new CudaBackend(options);
  if (!batch_invariant) return *plain;
  static CudaBackend* other = new CudaBackend(invariant);
  return *other;
}

#define TACO_SKIP_WITHOUT_DEVICE() \
  if (!::taco::cuda::test::has_device()) GTEST_SKIP() << "no CUDA device"

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t bytes, int poison = 0xff) : bytes_(bytes) {  // 0xff..: NaN in every float type
    data_ = std::shared_ptr<void>(backend().allocate(bytes, false), [](void* p) { backend().release(p); });
    TACO_CUDA_CHECK(cudaMemset(data_.get(), poison, bytes));
    TACO_CUDA_CHECK(cudaDeviceSynchronize());  // the backend's stream does not wait for the default one
  }
  template <typename T>
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values.size() * sizeof(T)) {
    TACO_CUDA_CHECK(cudaMemcpy(data_.get(), values.data(), bytes_, cudaMemcpyHostToDevice));
    TACO_CUDA_CHECK(cudaDeviceSynchronize());
  }
  template <typename T = void>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  template <typename T>
  std::vector<T> get() const {
    std::vector<T> out(bytes_ / sizeof(T));
    backend().synchronize();
    TACO_CUDA_CHECK(cudaDeviceSynchronize());
    TACO_CUDA_CHECK(cudaMemcpy(out.data(), data_.get(), out.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  std::shared_ptr<void> data_;
  size_t bytes_ = 0;
};

// Values rounded to `dtype`, so that a reference sees what the device sees.
inline std::vector<float> rounded(std::vector<float> x, DType dtype) {
  for (float& v : x) {
    if (dtype == DType::kBF16) v = to_float(to_bf16(v));
    if (dtype == DType::kF16) v = to_float(to_f16(v));
  }
  return x;
}

inline std::vector<float> random_floats(size_t n, uint64_t seed, float scale = 1.0f) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& v : out) v = normal(rng);
  return out;
}

// To the device as float32, float16 or bfloat16.
inline DeviceBuffer to_device(const std::vector<float>& x, DType dtype) {
  if (dtype == DType::kF32) return DeviceBuffer(x);
  std::vector<uint16_t> bits(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    bits[i] = dtype == DType::kBF16 ? to_bf16(x[i]).bits : to_f16(x[i]).bits;
  return DeviceBuffer(bits);
}

inline std::vector<float> from_device(const DeviceBuffer& buffer, DType dtype) {
  if (dtype == DType::kF32) return buffer.get<float>();
  std::vector<uint16_t> bits = buffer.get<uint16_t>();
  std::vector<float> out(bits.size());
  for (size_t i = 0; i < bits.size(); ++i)
    out[i] = dtype == DType::kBF16 ? to_float(bf16{bits[i]}) : to_float(f16{bits[i]});
  return out;
}

// ||out - ref|| / ||ref||; NaN where either holds one.
inline double relative_error(const std::vector<float>& out, const std::vector<float>& reference) {
  EXPECT_EQ(out.size(), reference.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size() && i < reference.size(); ++i) {
    double d = double{out[i]} - reference[i];
    difference += d * d;
    norm += double{reference[i]} * reference[i];
  }
  return std::sqrt(difference / (norm > 0 ? norm : 1));
}

inline double tolerance(DType dtype) {
  return dtype == DType::kF32 ? 1e-5 : dtype == DType::kF16 ? 2e-3 : 8e-3;
}

}  // namespace taco::cuda::test
