// Weights from the checkpoint's matrices to the device, in the form that the products read.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "backend/cuda/linear/cublaslt.h"
#include "backend/cuda/linear/linear.h"
#include "backend/cuda/linear/prepare_kernels.h"
#include "backend/cuda/linear/upload.h"

namespace taco::cuda {
namespace {

constexpr size_t kStaging = 32u << 20;  // of gemm_workspace: uploads on their way to another type or order

struct DeviceMemoryGuard {
  void* data = nullptr;
  DeviceMemoryGuard() = default;
  explicit DeviceMemoryGuard(size_t bytes) { TACO_CUDA_CHECK(cudaMalloc(&data, std::max<size_t>(bytes, 1))); }
  ~DeviceMemoryGuard() { cudaFree(data); }
  DeviceMemoryGuard(const DeviceMemoryGuard&) = delete;
  DeviceMemoryGuard& operator=(const DeviceMemoryGuard&) = delete;
};

DType plain_type(WeightFormat format) {
  return format == WeightFormat::kF16    ? DType::kF16
         : format == WeightFormat::kBF16 ? DType::kBF16
                                         : DType::kF32;
}

void round_row(const float* from, int64_t count, DType type, void* to) {
  if (type == DType::kF32) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  auto* out = static_cast<uint16_t*>(to);
  if (type == DType::kBF16) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_bf16(from[i]).bits;
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = to_f16(from[i]).bits;
  }
}

// Rows [row, row + rows) of a GGUF matrix as `type`, made by the uploader's threads.
void produce_rows(const HostMatrix& part, int64_t row, int64_t rows, DType type, void* device, Context& ctx) {
  const size_t row_bytes = static_cast<size_t>(part.cols) * dtype_size(type);
  ctx.uploader->produce(device, row_bytes * static_cast<size_t>(rows), row_bytes, ctx.stream,
                        [&](void* buffer, size_t begin, size_t bytes) {
                          std::vector<float> values(static_cast<size_t>(part.cols));
                          const auto first = static_cast<int64_t>(begin / row_bytes);
                          const auto count = static_cast<int64_t>(bytes / row_bytes);
                          for (int64_t r = 0; r < count; ++r) {
                            dequantize_row(part, row + first + r, values.data());
                            round_row(values.data(), part.cols, type,
                                      static_cast<char*>(buffer) + static_cast<size_t>(r) * row_bytes);
                          }
                        });
}

// One part at its rows of `out` ([*, cols] of `type`).
void store_part(const HostMatrix& part, int64_t first_row, DType type, RowPlaces places, void* out,
                Context& ctx) {
  if (part.data == nullptr) {
    return fill_dummy_rows(out, type, part.rows, part.cols, first_row, places, part.seed, ctx);
  }
  const bool quantized = is_quantized(part.format);
  const DType sent = quantized ? type : plain_type(part.format);
  const size_t row_bytes = static_cast<size_t>(part.cols) * dtype_size(sent);
  auto send = [&](void* device, int64_t row, int64_t rows) {
    if (quantized) {
      produce_rows(part, row, rows, type, device, ctx);
    } else {
      ctx.uploader->copy(device, static_cast<const char*>(part.data) + static_cast<size_t>(row) * row_bytes,
                         static_cast<size_t>(rows) * row_bytes, ctx.stream);
    }
  };
  if (sent == type && places.half == 0) {
    return send(static_cast<char*>(out) + static_cast<size_t>(first_row) * row_bytes, 0, part.rows);
  }
  const int64_t chunk = std::max<int64_t>(1, static_cast<int64_t>(kStaging / std::max<size_t>(row_bytes, 1)));
  void* staging = ctx.gemm_workspace.reserve(std::max(kStaging, row_bytes), ctx.stream);
  for (int64_t row = 0; row < part.rows; row += chunk) {
    const int64_t rows = std::min(chunk, part.rows - row);
    send(staging, row, rows);
    store_rows(staging, sent, out, type, rows, part.cols, first_row + row, places, ctx);
  }
}

}  // namespace

CudaLinear::~CudaLinear() {
  cudaFree(data);
  cudaFree(bias);
  cudaFree(scale);
}

size_t CudaLinear::bytes() const {
  return static_cast<size_t>(n * k) * dtype_size(dtype) + (bias != nullptr ? n * sizeof(float) : 0) +
         (scale != nullptr ? n * sizeof(float) : 0);
}

std::unique_ptr<Linear> prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                       const LinearOptions& options, Context& ctx) {
  TACO_CHECK(!parts.empty(), "a linear layer without parts");
  TACO_CUDA_CHECK(cudaSetDevice(ctx.device));
  const DType type = options.compute;
  TACO_CHECK(type == DType::kF32 || type == DType::kF16 || type == DType::kBF16, "weights kept in ",
             dtype_name(type));
  auto out = std::make_unique<CudaLinear>();
  out->k = parts[0].cols;
  for (const HostMatrix& part : parts) {
    TACO_CHECK(part.cols == out->k, "stacked matrices of ", part.cols, " and ", out->k, " columns");
    out->n += part.rows;
  }
  ctx.gemm_workspace.reserve(kCublasWorkspace, ctx.stream);  // before any graph
  if (!ctx.uploader) ctx.uploader = std::make_shared<Uploader>(ctx.device);

  const int64_t half = out->n / 2;
  out->interleaved = options.gated && type != DType::kF32 && out->n % 16 == 0;
  const RowPlaces places{out->interleaved ? half : 0};
  // Shapes that no FP8 product takes stay in 16 bits.
  const bool fp8 = options.fp8 && type != DType::kF32 && out->k % 16 == 0 && out->n % 16 == 0;
  if (fp8 && ctx.capability < 89) {
    fail(ErrorCode::kUnimplemented,
         "FP8 weights need compute capability 8.9 or newer (Ada, Hopper); this GPU has ", ctx.capability / 10,
         ".", ctx.capability % 10);
  }
  const int64_t count = out->n * out->k;
  DeviceMemoryGuard data(static_cast<size_t>(count) * dtype_size(type));
  int64_t row = 0;
  for (const HostMatrix& part : parts) {
    store_part(part, row, type, places, data.data, ctx);
    row += part.rows;
  }
  if (fp8) {
    DeviceMemoryGuard narrow(static_cast<size_t>(count)), scales(static_cast<size_t>(out->n) * sizeof(float));
    quantize_tensor(data.data, type, count, narrow.data, static_cast<float*>(scales.data), out->n, ctx);
    TACO_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));  // `data` is freed
    out->data = std::exchange(narrow.data, nullptr);
    out->scale = static_cast<float*>(std::exchange(scales.data, nullptr));
    out->dtype = DType::kF8E4M3;
  } else {
    out->data = std::exchange(data.data, nullptr);
    out->dtype = type;
  }
  if (bias != nullptr) {
    std::vector<float> placed(static_cast<size_t>(out->n));
    for (int64_t i = 0; i < out->n; ++i) placed[static_cast<size_t>(places(i))] = bias[i];
    DeviceMemoryGuard memory(placed.size() * sizeof(float));
    TACO_CUDA_CHECK(cudaMemcpyAsync(memory.data, placed.data(), placed.size() * sizeof(float),
                                    cudaMemcpyHostToDevice, ctx.stream));
    TACO_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));
    out->bias = static_cast<float*>(std::exchange(memory.data, nullptr));
  }
  return out;
}

}  // namespace taco::cuda
