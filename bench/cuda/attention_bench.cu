// Attention alone on the paged cache: the head shape of Llama-3-8B (32 query heads and 8 KV heads of 128,
// bf16, pages of 16 in random order), decode, draft verification and causal prefill. Calls run back to back
// in a CUDA graph, each over another layer's cache, so that none of it is left in the L2 cache. Prints one
// line a shape: microseconds a call (median), GB/s of K and V read or TFLOP/s.
//   cuda_attention_bench [invariant] [fp8] [decode | prefill | verify | BATCHxCONTEXT ...]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"

using namespace taco;
using namespace taco::cuda;

namespace {

constexpr int kHeads = 32, kKvHeads = 8, kDim = 128, kPage = 16;

// Uniform in [-1.7, 1.7] as bf16; for FP8 any byte that is a number of moderate size.
__global__ void fill_random(uint16_t* data, int64_t n, uint32_t seed, bool fp8) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed * 40503u + static_cast<uint32_t>(i >> 32);
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u, x ^= x >> 16;
    float f = static_cast<float>(x >> 8) * 0x1p-23f * 1.7f - 1.7f;
    data[i] = fp8 ? static_cast<uint16_t>(x & 0xbfbf) : static_cast<uint16_t>(__float_as_uint(f) >> 16);
  }
}

void* random_buffer(Backend& b, int64_t elements, uint32_t seed, bool fp8 = false) {
  void* data = b.allocate(elements * 2, false);
  fill_random<<<1024, 256>>>(static_cast<uint16_t*>(data), elements, seed, fp8);
  TACO_CUDA_CHECK(cudaDeviceSynchronize());
  return data;
}

void measure(CudaBackend& b, int batch, int q_len, int context, bool fp8) {
  const int64_t blocks_per_seq = (context + kPage - 1) / kPage, num_blocks = blocks_per_seq * batch;
  const int64_t elements = num_blocks * 2 * kKvHeads * kPage * kDim, bytes = elements * (fp8 ? 1 : 2);
  const int layers = static_cast<int>(std::clamp<int64_t>(200'000'000 / bytes + 2, 2, 32));
  std::vector<void*> caches;
  for (int i = 0; i < layers; ++i) caches.push_back(random_buffer(b, bytes / 2, i + 1, fp8));
  const int64_t rows = int64_t{batch} * q_len, q_stride = (kHeads + 2 * kKvHeads) * kDim;
  void* q = random_buffer(b, rows * q_stride, 77);
  void* out = b.allocate(rows * kHeads * kDim * 2, false);
  std::vector<int32_t> tables(num_blocks), q_start(batch + 1), kv_len(batch, context);
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), std::mt19937(5));
  for (int i = 0; i <= batch; ++i) q_start[i] = i * q_len;
  auto to_device = [&](const std::vector<int32_t>& v) {
    void* d = b.allocate(v.size() * 4, false);
    b.upload(d, v.data(), v.size() * 4);
    return static_cast<int32_t*>(d);
  };
  int32_t *d_tables = to_device(tables), *d_q_start = to_device(q_start), *d_kv_len = to_device(kv_len);
  b.begin_step({.rows = rows,
                .num_seqs = batch,
                .q_start = q_start.data(),
                .kv_len = kv_len.data(),
                .max_q_len = q_len,
                .max_kv_len = context});
  auto ops = [&] {
    for (int i = 0; i < layers; ++i) {
      AttentionParams p{};
      p.q = q;
      p.q_stride = q_stride;
      p.num_heads = kHeads;
      p.cache = {caches[i], fp8 ? DType::kF8E4M3 : DType::kBF16, num_blocks, kPage, kKvHeads, kDim};
      p.num_seqs = batch;
      p.q_start = d_q_start;
      p.kv_len = d_kv_len;
      p.block_tables = d_tables;
      p.max_blocks = blocks_per_seq;
      p.scale = 1.0f / std::sqrt(float{kDim});
      p.out = out;
      p.out_stride = kHeads * kDim;
      p.dtype = DType::kBF16;
      b.attention(p);
    }
  };
  ops();
  b.synchronize();
  std::unique_ptr<Graph> graph = q_len <= 64 ? b.capture(ops) : nullptr;
  cudaEvent_t start, stop;
  TACO_CUDA_CHECK(cudaEventCreate(&start));
  TACO_CUDA_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    TACO_CUDA_CHECK(cudaEventRecord(start, b.context().stream));
    graph ? b.replay(*graph) : ops();
    TACO_CUDA_CHECK(cudaEventRecord(stop, b.context().stream));
    TACO_CUDA_CHECK(cudaEventSynchronize(stop));
    float ms;
    TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 3) times.push_back(ms / layers * 1e3f);
  }
  std::sort(times.begin(), times.end());
  const double us = times[times.size() / 2];
  if (q_len <= 64) {
    std::printf("%s  %4d x %2d of %5d %s  %9.2f us (min %9.2f)  %7.0f GB/s\n",
                q_len == 1 ? "decode" : "verify", batch, q_len, context, fp8 ? "fp8 " : "bf16", us, times[0],
                bytes / us * 1e-3);
  } else {
    const double pairs = double(q_len) * (q_len + 1) / 2 + double(q_len) * (context - q_len);
    std::printf("prefill %4d x %5d of %5d  %9.2f us (min %9.2f)  %7.1f TFLOP/s\n", batch, q_len, context, us,
                times[0], 4.0 * kDim * kHeads * batch * pairs / us * 1e-6);
  }
  std::fflush(stdout);
  graph.reset();
  for (void* c : caches) b.release(c);
  for (void* p :
       {q, out, static_cast<void*>(d_tables), static_cast<void*>(d_q_start), static_cast<void*>(d_kv_len)})
    b.release(p);
}

}  // namespace

int main(int argc, char** argv) {
  bool invariant = false, fp8 = false, decode = false, prefill = false, verify = false;
  std::vector<std::pair<int, int>> shapes;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    int batch, context;
    if (arg == "invariant") invariant = true;
    if (arg == "fp8") fp8 = true;
    if (arg == "decode") decode = true;
    if (arg == "prefill") prefill = true;
    if (arg == "verify") verify = true;
    if (std::sscanf(argv[i], "%dx%d", &batch, &context) == 2) shapes.push_back({batch, context});
  }
  if (!decode && !prefill && !verify && shapes.empty()) decode = prefill = verify = true;
  const char* lt = std::getenv("TACO_CUBLASLT");
  CudaBackend b({.device = 0, .plugin = "", .cublaslt = lt ? lt : "", .batch_invariant = invariant});
  std::printf("%s\n", b.description().c_str());
  if (decode) {
    for (auto [batch, context] : {std::pair{1, 600},
                                  {1, 1024},
                                  {8, 600},
                                  {32, 600},
                                  {32, 1024},
                                  {128, 600},
                                  {128, 1024},
                                  {256, 600},
                                  {1, 8192},
                                  {32, 8192},
                                  {128, 8192}})
      shapes.push_back({batch, context});
  }
  for (auto [batch, context] : shapes) measure(b, batch, 1, context, fp8);
  if (prefill) {
    for (auto [batch, tokens] : {std::pair{1, 512}, {1, 2048}, {1, 8192}, {4, 2048}})
      measure(b, batch, tokens, tokens, fp8);
    measure(b, 1, 512, 8192, fp8);
  }
  if (verify) {
    for (int context : {600, 2048, 8192}) {
      for (int batch : {1, 4, 16, 64}) {
        if (batch * context > 140'000) continue;
        for (int q_len : {1, 2, 5, 8, 16}) measure(b, batch, q_len, context, fp8);
      }
    }
    measure(b, 1, 64, 2048, fp8);
  }
  return 0;
}
