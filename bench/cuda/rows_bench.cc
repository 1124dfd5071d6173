// Times of the row ops and of sampling: each is captured `kRepeat` times into one graph, over buffers that
// take turns so that large ones come from memory and not from the L2 cache; medians of replays.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/linear/linear.h"

namespace taco::cuda {
namespace {

constexpr int kRepeat = 48;

CudaBackend* backend;

// Microseconds of one call of op(i).
double time_of(const std::function<void(int)>& op) {
  for (int i = 0; i < 8; ++i) op(i);  // scratch memory
  backend->synchronize();
  auto graph = backend->capture([&] {
    for (int i = 0; i < kRepeat; ++i) op(i);
  });
  cudaStream_t stream = backend->context().stream;
  cudaEvent_t start, stop;
  TACO_CUDA_CHECK(cudaEventCreate(&start));
  TACO_CUDA_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    TACO_CUDA_CHECK(cudaEventRecord(start, stream));
    backend->replay(*graph);
    TACO_CUDA_CHECK(cudaEventRecord(stop, stream));
    TACO_CUDA_CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e3 / kRepeat;
}

template <typename T>
T* device(const std::vector<T>& values) {
  void* p = backend->allocate(values.size() * sizeof(T), false);
  backend->upload(p, values.data(), values.size() * sizeof(T));
  return static_cast<T*>(p);
}

std::vector<float> normal(size_t n, uint64_t seed, float scale = 1.0f) {
  std::mt19937 rng(static_cast<uint32_t>(seed));
  std::normal_distribution<float> d(0.0f, scale);
  std::vector<float> block(std::min<size_t>(n, 1 << 20)), out(n);
  for (float& v : block) v = d(rng);
  for (size_t i = 0; i < n; i += block.size())
    std::copy_n(block.begin(), std::min(block.size(), n - i), out.begin() + static_cast<int64_t>(i));
  return out;
}

uint16_t* device_bf16(size_t n, uint64_t seed) {
  std::vector<float> x = normal(n, seed);
  std::vector<uint16_t> bits(n);
  for (size_t i = 0; i < n; ++i) bits[i] = to_bf16(x[i]).bits;
  return device(bits);
}

void bench_norm() {
  CudaLinear consumer;
  consumer.dtype = DType::kF8E4M3;
  for (int64_t dim : {int64_t{4096}, int64_t{8192}}) {
    float* weight = device(normal(static_cast<size_t>(dim), 1));
    for (int64_t rows : {1, 8, 64, 256, 2048, 8192}) {
      if (rows * dim > 8192 * 4096) continue;
      const int64_t bytes = rows * dim * 2;
      const int sets = static_cast<int>(std::clamp<int64_t>((int64_t{200} << 20) / (3 * bytes), 1, 8));
      std::vector<uint16_t*> in, residual, out;
      for (int i = 0; i < sets; ++i) {
        in.push_back(device_bf16(static_cast<size_t>(rows * dim), 2));
        residual.push_back(device_bf16(static_cast<size_t>(rows * dim), 3));
        out.push_back(device_bf16(static_cast<size_t>(rows * dim), 4));
      }
      for (int mode = 0; mode < 3; ++mode) {
        const double us = time_of([&](int i) {
          backend->norm({.kind = NormKind::kRms,
                         .in = in[i % sets],
                         .residual = mode > 0 ? residual[i % sets] : nullptr,
                         .weight = weight,
                         .eps = 1e-5f,
                         .rows = rows,
                         .dim = dim,
                         .in_stride = dim,
                         .out_stride = dim,
                         .out = out[i % sets],
                         .consumer = mode == 2 ? &consumer : nullptr,
                         .dtype = DType::kBF16});
        });
        const double moved = bytes * (mode == 0 ? 2.0 : mode == 1 ? 4.0 : 4.5);
        const char* names[] = {"norm", "add + norm", "add + norm + fp8"};
        std::printf("%-18s %5ld x %-6ld %8.2f us  %5.2f TB/s\n", names[mode], static_cast<long>(rows),
                    static_cast<long>(dim), us, moved / us * 1e-6);
      }
      for (auto* buffers : {&in, &residual, &out})
        for (uint16_t* p : *buffers) backend->release(p);
    }
    backend->release(weight);
  }
}

void bench_rope() {
  const int heads = 32, kv_heads = 8, dim = 128, block_size = 16;
  const int64_t width = (heads + 2 * kv_heads) * dim;
  float* table = device(normal(8192 * 128, 5));
  for (DType cache_dtype : {DType::kBF16, DType::kF8E4M3})
    for (int64_t rows : {1, 64, 256, 2048, 8192}) {
      uint16_t* qkv = device_bf16(static_cast<size_t>(rows * width), 6);
      std::vector<int32_t> positions(static_cast<size_t>(rows));
      std::vector<int64_t> slots(static_cast<size_t>(rows));
      for (int64_t r = 0; r < rows; ++r) {
        positions[static_cast<size_t>(r)] = static_cast<int32_t>(r);
        slots[static_cast<size_t>(r)] = r;
      }
      int32_t* d_positions = device(positions);
      int64_t* d_slots = device(slots);
      const int64_t blocks = (rows + block_size - 1) / block_size;
      void* cache = backend->allocate(
          static_cast<size_t>(blocks * 2 * kv_heads * block_size * dim) * dtype_size(cache_dtype), true);
      const double us = time_of([&](int) {
        backend->rope_and_cache({.qkv = qkv,
                                 .rows = rows,
                                 .stride = width,
                                 .num_heads = heads,
                                 .num_kv_heads = kv_heads,
                                 .head_dim = dim,
                                 .positions = d_positions,
                                 .cos_sin = table,
                                 .rotary_dim = dim,
                                 .slots = d_slots,
                                 .cache = {cache, cache_dtype, blocks, block_size, kv_heads, dim, 0.1f, 0.1f},
                                 .dtype = DType::kBF16});
      });
      const double moved =
          static_cast<double>(rows) * dim * (heads * 4 + kv_heads * 2 * (2 + dtype_size(cache_dtype)));
      std::printf("rope + cache %-9s %5ld rows %8.2f us  %5.2f TB/s\n",
                  std::string(dtype_name(cache_dtype)).c_str(), static_cast<long>(rows), us,
                  moved / us * 1e-6);
      for (void* p :
           {static_cast<void*>(qkv), static_cast<void*>(d_positions), static_cast<void*>(d_slots), cache})
        backend->release(p);
    }
  backend->release(table);
}

void bench_sampling() {
  const int vocab = 128256;
  struct Mode {
    const char* name;
    float temperature, top_p, min_p, spread;
    int top_k, logprobs;
    bool penalties;
  };
  const Mode modes[] = {
      {"greedy", 0, 1, 0, 2.5f, 0, -1, false},
      {"random", 0.8f, 1, 0, 2.5f, 0, -1, false},
      {"top-k 50 + top-p 0.9", 0.8f, 0.9f, 0, 2.5f, 50, -1, false},
      {"top-k 50 + top-p, flat", 0.8f, 0.9f, 0, 0.5f, 50, -1, false},
      {"top-p 0.9", 0.8f, 0.9f, 0, 2.5f, 0, -1, false},
      {"top-p 0.9, flat", 0.8f, 0.9f, 0, 0.5f, 0, -1, false},
      {"min-p 0.05", 0.8f, 1, 0.05f, 2.5f, 0, -1, false},
      {"greedy + 5 logprobs", 0, 1, 0, 2.5f, 0, 5, false},
      {"penalties + top-p 0.9", 0.8f, 0.9f, 0, 2.5f, 0, -1, true},
  };
  for (int rows : {1, 64, 256}) {
    for (const Mode& mode : modes) {
      const int sets = rows == 256 ? 1 : rows == 64 ? 3 : 8;
      std::vector<float*> logits;
      for (int i = 0; i < sets; ++i)
        logits.push_back(device(normal(static_cast<size_t>(rows) * vocab, 7 + i, mode.spread)));
      std::vector<SampleRow> list(static_cast<size_t>(rows));
      std::vector<TokenCount> counts;
      for (int i = 0; i < 1000; ++i) counts.push_back({i * 127, i % 3});
      for (int r = 0; r < rows; ++r) {
        SampleRow& row = list[static_cast<size_t>(r)];
        row.logits_row = r;
        row.top_k = mode.top_k;
        row.temperature = mode.temperature;
        row.top_p = mode.top_p;
        row.min_p = mode.min_p;
        row.seed = static_cast<uint64_t>(r);
        row.logprobs = mode.logprobs;
        row.presence = mode.penalties ? 0.5f : 0.0f;
        row.num_counts = mode.penalties ? 1000 : 0;
      }
      SampleRow* d_rows = device(list);
      TokenCount* d_counts = device(counts);
      auto* results = static_cast<SampleResult*>(
          backend->allocate(static_cast<size_t>(rows) * sizeof(SampleResult), false));
      auto* top =
          static_cast<TopToken*>(backend->allocate(static_cast<size_t>(rows) * 32 * sizeof(TopToken), false));
      const double us = time_of([&](int i) {
        backend->sample({.logits = logits[static_cast<size_t>(i % sets)],
                         .vocab = vocab,
                         .num_rows = rows,
                         .rows = d_rows,
                         .allowed = nullptr,
                         .edits = nullptr,
                         .counts = d_counts,
                         .any_rules = mode.penalties,
                         .any_random = mode.temperature > 0,
                         .any_filter = mode.top_k > 0 || mode.top_p < 1 || mode.min_p > 0,
                         .max_logprobs = mode.logprobs,
                         .results = results,
                         .top = top});
      });
      std::printf("sample %-24s %4d rows %8.2f us  %5.2f TB/s of logits\n", mode.name, rows, us,
                  rows * static_cast<double>(vocab) * 4 / us * 1e-6);
      for (float* p : logits) backend->release(p);
      for (void* p : {static_cast<void*>(d_rows), static_cast<void*>(d_counts), static_cast<void*>(results),
                      static_cast<void*>(top)})
        backend->release(p);
    }
  }
}

}  // namespace
}  // namespace taco::cuda

// Arguments: the groups to run, all without any (norm, rope, sampling).
int main(int argc, char** argv) {
  using namespace taco::cuda;
  auto wants = [&](const char* name) {
    bool found = argc == 1;
    for (int i = 1; i < argc; ++i) found |= std::strcmp(argv[i], name) == 0;
    return found;
  };
  const char* lt = std::getenv("TACO_CUBLASLT");
  CudaBackend made({.device = 0, .plugin = "", .cublaslt = lt ? lt : ""});
  backend = &made;
  std::printf("%s\n", made.description().c_str());
  if (wants("norm")) bench_norm();
  if (wants("rope")) bench_rope();
  if (wants("sampling")) bench_sampling();
}
