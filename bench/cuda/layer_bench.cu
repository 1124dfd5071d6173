// The ops of a decoding step of Llama-3-8B (32 layers, the head; random weights) in one CUDA graph: what a
// step takes on the device alone, without the engine and its copies. One row a sequence, or `q` rows of each.
//   cuda_layer_bench [fp8] [context=N] [layers=N] [q=N] ROWS...
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"

using namespace taco;
using namespace taco::cuda;

namespace {

constexpr int kHidden = 4096, kInner = 14336, kVocab = 128256, kHeads = 32, kKvHeads = 8, kDim = 128,
              kPage = 16;
constexpr int kQkv = (kHeads + 2 * kKvHeads) * kDim;

struct Layer {
  std::unique_ptr<Linear> qkv, out, gate_up, down;
  void* cache;
};

std::unique_ptr<Linear> make_linear(Backend& b, std::initializer_list<int64_t> rows, int64_t cols, bool gated,
                                    bool fp8) {
  static uint64_t seed = 1;
  std::vector<HostMatrix> parts;
  for (int64_t n : rows) {
    HostMatrix m;
    m.format = WeightFormat::kBF16;
    m.rows = n, m.cols = cols, m.seed = ++seed;
    parts.push_back(std::move(m));
  }
  LinearOptions options;
  options.compute = DType::kBF16, options.gated = gated, options.fp8 = fp8, options.activation = DType::kBF16;
  return b.prepare_linear(parts, nullptr, options);
}

template <typename T>
T* to_device(Backend& b, const std::vector<T>& v) {
  void* d = b.allocate(v.size() * sizeof(T), false);
  b.upload(d, v.data(), v.size() * sizeof(T));
  return static_cast<T*>(d);
}

__global__ void fill_kernel(uint16_t* data, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
    x ^= x >> 15, x *= 0x85ebca6bu, x ^= x >> 13;
    data[i] = static_cast<uint16_t>(__float_as_uint(static_cast<float>(x >> 8) * 0x1p-23f - 1.0f) >> 16);
  }
}

void* random_rows(Backend& b, int64_t count) {
  void* data = b.allocate(count * 2, false);
  fill_kernel<<<256, 256>>>(static_cast<uint16_t*>(data), count);
  TACO_CUDA_CHECK(cudaDeviceSynchronize());
  return data;
}

}  // namespace

int main(int argc, char** argv) {
  bool fp8 = false;
  int context = 600, num_layers = 32, q_len = 1;
  std::vector<int> batches;
  for (int i = 1; i < argc; ++i) {
    int n;
    if (std::strcmp(argv[i], "fp8") == 0)
      fp8 = true;
    else if (std::sscanf(argv[i], "context=%d", &n) == 1)
      context = n;
    else if (std::sscanf(argv[i], "layers=%d", &n) == 1)
      num_layers = n;
    else if (std::sscanf(argv[i], "q=%d", &n) == 1)
      q_len = n;
    else if (std::sscanf(argv[i], "%d", &n) == 1)
      batches.push_back(n);
  }
  if (batches.empty()) batches = {1};
  const int max_rows = *std::max_element(batches.begin(), batches.end()), max_seqs = max_rows / q_len;
  const char* lt = std::getenv("TACO_CUBLASLT");
  CudaBackend b({.device = 0, .plugin = "", .cublaslt = lt ? lt : "", .batch_invariant = false});
  const int64_t seq_blocks = (context + kPage - 1) / kPage, num_blocks = seq_blocks * max_seqs;
  std::vector<Layer> layers(num_layers);
  for (Layer& l : layers) {
    l.qkv = make_linear(b, {kHeads * kDim, kKvHeads * kDim, kKvHeads * kDim}, kHidden, false, fp8);
    l.out = make_linear(b, {kHidden}, kHeads * kDim, false, fp8);
    l.gate_up = make_linear(b, {kInner, kInner}, kHidden, true, fp8);
    l.down = make_linear(b, {kHidden}, kInner, false, fp8);
    l.cache = random_rows(b, num_blocks * 2 * kKvHeads * kPage * kDim);
  }
  std::unique_ptr<Linear> head = make_linear(b, {kVocab}, kHidden, false, false);
  void *residual = random_rows(b, int64_t{max_rows} * kHidden),
       *normed = random_rows(b, int64_t{max_rows} * kHidden), *qkv = random_rows(b, int64_t{max_rows} * kQkv),
       *heads = random_rows(b, int64_t{max_rows} * kHeads * kDim),
       *inner = random_rows(b, int64_t{max_rows} * kInner);
  void* logits = b.allocate(int64_t{max_rows} * kVocab * 4, false);
  const float* weight = to_device(b, std::vector<float>(kHidden, 1.0f));
  std::vector<float> rotation(static_cast<size_t>(context) * kDim, 0.7f);
  const float* cos_sin = to_device(b, rotation);
  std::vector<int32_t> tables(num_blocks);
  std::iota(tables.begin(), tables.end(), 0);
  const int32_t* d_tables = to_device(b, tables);

  for (int rows : batches) {
    const int seqs = std::max(1, rows / q_len);
    rows = seqs * q_len;
    std::vector<int32_t> q_start(seqs + 1), kv_len(seqs, context), positions(rows);
    std::vector<int64_t> slots(rows);
    for (int i = 0; i <= seqs; ++i) q_start[i] = i * q_len;
    for (int i = 0; i < rows; ++i) {
      positions[i] = context - q_len + i % q_len;
      slots[i] = i / q_len * seq_blocks * kPage + positions[i];
    }
    const int32_t *d_q_start = to_device(b, q_start), *d_kv_len = to_device(b, kv_len),
                  *d_positions = to_device(b, positions);
    const int64_t* d_slots = to_device(b, slots);
    b.begin_step({.rows = rows,
                  .num_seqs = seqs,
                  .q_start = q_start.data(),
                  .kv_len = kv_len.data(),
                  .max_q_len = q_len,
                  .max_kv_len = context});
    auto norm = [&](const Linear* consumer) {
      b.norm({.kind = NormKind::kRms,
              .in = residual,
              .weight = weight,
              .eps = 1e-5f,
              .rows = rows,
              .dim = kHidden,
              .in_stride = kHidden,
              .out_stride = kHidden,
              .out = normed,
              .consumer = consumer,
              .dtype = DType::kBF16});
    };
    auto ops = [&] {
      for (const Layer& l : layers) {
        const KvCacheView view{l.cache, DType::kBF16, num_blocks, kPage, kKvHeads, kDim};
        norm(l.qkv.get());
        b.linear({.weight = l.qkv.get(),
                  .in = normed,
                  .rows = rows,
                  .in_stride = kHidden,
                  .out_stride = kQkv,
                  .out = qkv,
                  .dtype = DType::kBF16});
        b.rope_and_cache({.qkv = qkv,
                          .rows = rows,
                          .stride = kQkv,
                          .num_heads = kHeads,
                          .num_kv_heads = kKvHeads,
                          .head_dim = kDim,
                          .positions = d_positions,
                          .cos_sin = cos_sin,
                          .rotary_dim = kDim,
                          .slots = d_slots,
                          .cache = view,
                          .dtype = DType::kBF16});
        b.attention({.q = qkv,
                     .q_stride = kQkv,
                     .num_heads = kHeads,
                     .cache = view,
                     .num_seqs = seqs,
                     .q_start = d_q_start,
                     .kv_len = d_kv_len,
                     .block_tables = d_tables,
                     .max_blocks = seq_blocks,
                     .scale = 1.0f / std::sqrt(float{kDim}),
                     .out = heads,
                     .out_stride = kHeads * kDim,
                     .consumer = l.out.get(),
                     .dtype = DType::kBF16});
        b.linear({.weight = l.out.get(),
                  .in = heads,
                  .rows = rows,
                  .in_stride = kHeads * kDim,
                  .out_stride = kHidden,
                  .epilogue = Epilogue::kAccumulate,
                  .out_scale = 1e-3f,
                  .out = residual,
                  .dtype = DType::kBF16});
        norm(l.gate_up.get());
        b.linear({.weight = l.gate_up.get(),
                  .in = normed,
                  .rows = rows,
                  .in_stride = kHidden,
                  .out_stride = kInner,
                  .epilogue = Epilogue::kGated,
                  .activation = Activation::kSilu,
                  .out = inner,
                  .consumer = l.down.get(),
                  .dtype = DType::kBF16});
        b.linear({.weight = l.down.get(),
                  .in = inner,
                  .rows = rows,
                  .in_stride = kInner,
                  .out_stride = kHidden,
                  .epilogue = Epilogue::kAccumulate,
                  .out_scale = 1e-3f,
                  .out = residual,
                  .dtype = DType::kBF16});
      }
      norm(head.get());
      b.linear({.weight = head.get(),
                .in = normed,
                .rows = rows,
                .in_stride = kHidden,
                .out_stride = kVocab,
                .out = logits,
                .float_out = true,
                .dtype = DType::kBF16});
    };
    ops();
    b.synchronize();
    std::unique_ptr<Graph> graph = b.capture(ops);
    cudaEvent_t start, stop;
    TACO_CUDA_CHECK(cudaEventCreate(&start));
    TACO_CUDA_CHECK(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int i = 0; i < 24; ++i) {
      TACO_CUDA_CHECK(cudaEventRecord(start, b.context().stream));
      b.replay(*graph);
      TACO_CUDA_CHECK(cudaEventRecord(stop, b.context().stream));
      TACO_CUDA_CHECK(cudaEventSynchronize(stop));
      float ms;
      TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
      if (i >= 4) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    std::printf("%s %3d rows of %3d sequences, context %5d: %.3f ms (min %.3f)\n", fp8 ? "fp8 " : "bf16",
                rows, seqs, context, times[times.size() / 2], times[0]);
    std::fflush(stdout);
  }
  return 0;
}
