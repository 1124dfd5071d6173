// Token and position tables on the device, and looking rows up.
#include <algorithm>
#include <thread>
#include <vector>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/ops/vec.cuh"

namespace taco::cuda {
namespace {

constexpr int kThreads = 128;

struct CudaEmbedding final : Embedding {
  ~CudaEmbedding() override { cudaFree(data); }
  int64_t rows() const override { return num_rows; }
  int64_t cols() const override { return num_cols; }
  size_t bytes() const override { return static_cast<size_t>(num_rows * num_cols) * dtype_size(dtype); }

  int64_t num_rows = 0, num_cols = 0;
  DType dtype = DType::kBF16;  // of data: kF32, kF16 or kBF16
  void* data = nullptr;
};

struct LookupArgs {
  const void* table;
  const int32_t* ids;
  int64_t rows, table_rows, cols;
  int32_t id_offset;
  float scale;
  bool accumulate;
  void* out;
};

__device__ __forceinline__ int64_t table_row(const LookupArgs& p, int64_t row) {
  const int64_t id = int64_t{p.ids[row]} + p.id_offset;
  return id < 0 ? 0 : id < p.table_rows ? id : p.table_rows - 1;
}

template <typename T, typename Table>
__global__ void __launch_bounds__(kThreads) lookup_kernel(LookupArgs p) {
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x;
  const Table* from = static_cast<const Table*>(p.table) + table_row(p, row) * p.cols;
  T* out = static_cast<T*>(p.out) + row * p.cols;
  for (int64_t i = 8 * (blockIdx.y * kThreads + threadIdx.x); i < p.cols;
       i += 8 * int64_t{gridDim.y} * kThreads) {
    float x[8];
    load8(from + i, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= p.scale;
    if (p.accumulate) {
      float before[8];
      load8(out + i, before);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] += before[j];
    }
    store8(out + i, x);
  }
}

// Any number of columns.
template <typename T, typename Table>
__global__ void __launch_bounds__(kThreads) lookup_any_kernel(LookupArgs p) {
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x;
  const Table* from = static_cast<const Table*>(p.table) + table_row(p, row) * p.cols;
  T* out = static_cast<T*>(p.out) + row * p.cols;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < p.cols; i += int64_t{gridDim.y} * kThreads) {
    const float x = to_f32(from[i]) * p.scale;
    out[i] = from_f32<T>(p.accumulate ? x + to_f32(out[i]) : x);
  }
}

// Uniform in +-1e-3 from (seed, index): the finaliser of SplitMix64 over a counter.
template <typename T>
__global__ void __launch_bounds__(256) random_kernel(T* data, int64_t count, uint64_t seed) {
  pdl_wait();
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    uint64_t z = seed * 0xD1342543DE82EF95ull + (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    const float unit = static_cast<float>(z >> 40) * 0x1p-24f;  // [0, 1)
    data[i] = from_f32<T>((2.0f * unit - 1.0f) * 1e-3f);
  }
}

DType table_dtype(const HostMatrix& table, DType compute) {
  if (compute != DType::kF32 && compute != DType::kF16 && compute != DType::kBF16) compute = DType::kBF16;
  if (table.data == nullptr || compute == DType::kF32) return compute;
  if (table.format == WeightFormat::kF16) return DType::kF16;
  if (table.format == WeightFormat::kBF16) return DType::kBF16;
  return compute;
}

bool same_bytes(WeightFormat format, DType dtype) {
  return (format == WeightFormat::kF32 && dtype == DType::kF32) ||
         (format == WeightFormat::kF16 && dtype == DType::kF16) ||
         (format == WeightFormat::kBF16 && dtype == DType::kBF16);
}

// Rows [first, last) as `dtype` to `out`.
void convert_rows(const HostMatrix& table, DType dtype, int64_t first, int64_t last, uint8_t* out) {
  std::vector<float> row(static_cast<size_t>(table.cols));
  for (int64_t r = first; r < last; ++r) {
    dequantize_row(table, r, row.data());
    uint8_t* to = out + static_cast<size_t>((r - first) * table.cols) * dtype_size(dtype);
    if (dtype == DType::kF32) {
      std::copy(row.begin(), row.end(), reinterpret_cast<float*>(to));
    } else if (dtype == DType::kF16) {
      std::transform(row.begin(), row.end(), reinterpret_cast<f16*>(to), [](float v) { return to_f16(v); });
    } else {
      std::transform(row.begin(), row.end(), reinterpret_cast<bf16*>(to), [](float v) { return to_bf16(v); });
    }
  }
}

// In pieces, so that the host never holds the whole table in its new form.
void upload_converted(const HostMatrix& table, const CudaEmbedding& to, const Context& ctx) {
  const size_t row_bytes = static_cast<size_t>(table.cols) * dtype_size(to.dtype);
  const int64_t piece =
      std::clamp<int64_t>((int64_t{64} << 20) / static_cast<int64_t>(row_bytes), 1, table.rows);
  const int64_t workers = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 16);
  std::vector<uint8_t> staging(row_bytes * static_cast<size_t>(piece));
  for (int64_t first = 0; first < table.rows; first += piece) {
    const int64_t count = std::min(piece, table.rows - first), share = (count + workers - 1) / workers;
    std::vector<std::jthread> threads;
    for (int64_t at = 0; at < count; at += share)
      threads.emplace_back([&, at] {
        convert_rows(table, to.dtype, first + at, first + std::min(count, at + share),
                     staging.data() + static_cast<size_t>(at) * row_bytes);
      });
    threads.clear();
    TACO_CUDA_CHECK(cudaMemcpyAsync(static_cast<uint8_t*>(to.data) + static_cast<size_t>(first) * row_bytes,
                                    staging.data(), static_cast<size_t>(count) * row_bytes,
                                    cudaMemcpyHostToDevice, ctx.stream));
    TACO_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));
  }
}

template <typename T, typename Table>
void launch_lookup(const LookupArgs& p, const Context& ctx) {
  const bool fast = p.cols % 8 == 0 && aligned16(p.out);
  const int64_t steps = (p.cols + kThreads * (fast ? 8 : 1) - 1) / (kThreads * (fast ? 8 : 1));
  launch(ctx, fast ? lookup_kernel<T, Table> : lookup_any_kernel<T, Table>,
         dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(std::min<int64_t>(steps, 32))),
         dim3(kThreads), 0, p);
}

}  // namespace

std::unique_ptr<Embedding> prepare_embedding(const HostMatrix& table, DType compute, Context& ctx) {
  auto out = std::make_unique<CudaEmbedding>();
  out->num_rows = table.rows;
  out->num_cols = table.cols;
  out->dtype = table_dtype(table, compute);
  TACO_CUDA_CHECK(cudaMalloc(&out->data, std::max<size_t>(out->bytes(), 1)));
  if (out->bytes() == 0) return out;
  if (table.data == nullptr) {
    with_activation_type(out->dtype, [&](auto tag) {
      using T = decltype(tag);
      launch(ctx, random_kernel<T>, dim3(static_cast<unsigned>(ctx.num_sms * 8)), dim3(256), 0,
             static_cast<T*>(out->data), table.rows * table.cols, table.seed);
    });
  } else if (same_bytes(table.format, out->dtype)) {
    TACO_CUDA_CHECK(cudaMemcpyAsync(out->data, table.data, out->bytes(), cudaMemcpyHostToDevice, ctx.stream));
    TACO_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));
  } else {
    upload_converted(table, *out, ctx);
  }
  return out;
}

void run_embedding(const EmbeddingParams& p, Context& ctx) {
  const auto& table = static_cast<const CudaEmbedding&>(*p.table);
  if (p.rows == 0) return;
  LookupArgs args{.table = table.data,
                  .ids = p.ids,
                  .rows = p.rows,
                  .table_rows = table.num_rows,
                  .cols = table.num_cols,
                  .id_offset = p.id_offset,
                  .scale = p.scale,
                  .accumulate = p.accumulate,
                  .out = p.out};
  with_activation_type(p.dtype, [&](auto tag) {
    with_activation_type(table.dtype,
                         [&](auto stored) { launch_lookup<decltype(tag), decltype(stored)>(args, ctx); });
  });
}

}  // namespace taco::cuda
