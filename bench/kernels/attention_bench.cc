// Attention, rotation + KV write and norms at SmolLM2-135M's shape: milliseconds of 30 layers, per level.
//   attention_bench [threads] [level] [dtype]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>

#include "../../tests/cpp/backend/attention_case.h"
#include "backend/cpu/isa/dispatch.h"
#include "backend/cpu/ops/ops.h"

namespace taco::cpu {
namespace {

constexpr int kLayers = 30;

struct Time {
  double ms, cpu_ms;
};

double now_ms(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

// The best of several runs of kLayers calls each: milliseconds, and of the process's CPU time (which other
// programs on the machine disturb less).
template <typename Fn>
Time measure(double budget_s, Fn&& fn) {
  Time best{1e30, 1e30};
  double total = 0;
  for (int run = 0; run < 3 || (total < budget_s * 1e3 && run < 200); ++run) {
    const double start = now_ms(CLOCK_MONOTONIC), cpu_start = now_ms(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < kLayers; ++i) fn(i);
    const double ms = now_ms(CLOCK_MONOTONIC) - start;
    best.ms = std::min(best.ms, ms);
    best.cpu_ms = std::min(best.cpu_ms, now_ms(CLOCK_PROCESS_CPUTIME_ID) - cpu_start);
    total += ms;
  }
  return best;
}

void bench_attention(const char* level, DType dtype, const char* what, std::vector<SequenceShape> sequences,
                     ThreadPool& pool, int heads = 9, int kv_heads = 3, int dim = 64) {
  // As many caches as layers, as in a model: nothing is warm that would not be there.
  std::vector<std::unique_ptr<AttentionCase>> layers;
  std::vector<std::vector<float>> outs(kLayers);
  std::vector<AttentionParams> params;
  for (int i = 0; i < kLayers; ++i) {
    layers.push_back(
        std::make_unique<AttentionCase>(AttentionShape{heads, kv_heads, dim, 16, dtype}, sequences, 1 + i));
    params.push_back(layers.back()->params(outs[i]));
  }
  Attention attention;
  const auto [ms, cpu_ms] = measure(1.0, [&](int i) { attention.run(params[i], pool); });
  double pairs = 0, keys = 0;
  for (const SequenceShape& s : sequences) keys += s.kv_len;
  for (const SequenceShape& s : sequences) pairs += s.q_len * (s.kv_len - (s.q_len - 1) / 2.0);
  std::printf("%-12s %-9s %-28s %9.3f ms (cpu %9.3f) %8.1f GFLOP/s %6.1f GB/s\n", level,
              std::string(dtype_name(dtype)).c_str(), what, ms, cpu_ms,
              pairs * heads * dim * 4 * kLayers / ms / 1e6,
              keys * kv_heads * dim * 2 * dtype_size(dtype) * kLayers / ms / 1e6);
  std::fflush(stdout);
}

void bench_rows(const char* level, int rows, ThreadPool& pool) {
  const int heads = 9, kv_heads = 3, dim = 64, hidden = 576, width = (heads + 2 * kv_heads) * dim;
  std::vector<float> qkv(int64_t{rows} * width, 0.5f), x(int64_t{rows} * hidden, 0.5f),
      residual = x, w(hidden, 1.0f), out = x;
  std::vector<float> cos_sin(int64_t{rows} * dim, 0.7f);
  std::vector<char> cache(int64_t{rows + 16} * 2 * kv_heads * dim * 2);
  std::vector<int32_t> positions(rows);
  std::vector<int64_t> slots(rows);
  for (int i = 0; i < rows; ++i) slots[i] = positions[i] = i;
  RopeAndCacheParams rope{};
  rope.qkv = qkv.data();
  rope.rows = rows;
  rope.stride = width;
  rope.num_heads = heads;
  rope.num_kv_heads = kv_heads;
  rope.head_dim = dim;
  rope.positions = positions.data();
  rope.cos_sin = cos_sin.data();
  rope.rotary_dim = dim;
  rope.slots = slots.data();
  rope.cache = {cache.data(), DType::kBF16, (rows + 15) / 16, 16, kv_heads, dim};
  NormParams norm{};
  norm.kind = NormKind::kRms;
  norm.in = x.data();
  norm.residual = residual.data();
  norm.weight = w.data();
  norm.eps = 1e-5f;
  norm.rows = rows;
  norm.dim = norm.in_stride = norm.out_stride = hidden;
  norm.out = out.data();
  const Time rope_ms = measure(0.3, [&](int) { run_rope_and_cache(rope, pool); });
  const Time norm_ms = measure(0.3, [&](int) {
    run_norm(norm, pool);
    run_norm(norm, pool);
  });
  std::printf("%-12s rows %-5d rope + kv write %8.3f ms, 2 norms %8.3f ms / 30 layers\n", level, rows,
              rope_ms.ms, norm_ms.ms);
}

int main_(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const char* only = argc > 2 ? argv[2] : "";
  const char* only_type = argc > 3 ? argv[3] : "";
  struct Level {
    const char* name;
    Isa isa;
    const VectorKernels* kernels;
    bool available;
  };
  const Level levels[] = {
    {"generic", Isa::kGeneric, &generic::kVectorKernels, true},
#if defined(__x86_64__)
    {"avx2", Isa::kAvx2, &avx2::kVectorKernels, isa_available(Isa::kAvx2)},
    {"avx512", Isa::kAvx512, &avx512::kVectorKernels, isa_available(Isa::kAvx512)},
    {"avx512_bf16", Isa::kAvx512, &avx512_bf16::kVectorKernels,
     isa_available(Isa::kAvx512) && cpu_features().avx512bf16},
    {"amx", Isa::kAmx, &amx::kVectorKernels, isa_available(Isa::kAmx)},
#endif
  };
  ThreadPool pool(threads);
  std::printf("%s, %d threads\n", cpu_model_name().c_str(), threads);
  for (const Level& level : levels) {
    if (!level.available || (*only && std::strcmp(only, level.name) != 0)) continue;
    force_isa(level.isa);
    force_vector_kernels(level.kernels);
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      if (*only_type && dtype_name(dtype) != only_type) continue;
      bench_attention(level.name, dtype, "decode b1 ctx 128", {{1, 128}}, pool);
      bench_attention(level.name, dtype, "decode b1 ctx 512", {{1, 512}}, pool);
      bench_attention(level.name, dtype, "decode b1 ctx 2048", {{1, 2048}}, pool);
      bench_attention(level.name, dtype, "decode b32 ctx 200", std::vector<SequenceShape>(32, {1, 200}),
                      pool);
      bench_attention(level.name, dtype, "prefill 512", {{512, 512}}, pool);
      bench_attention(level.name, dtype, "prefill 2048", {{2048, 2048}}, pool);
    }
    bench_attention(level.name, DType::kBF16, "8B: decode b8 ctx 1000",
                    std::vector<SequenceShape>(8, {1, 1000}), pool, 32, 8, 128);
    for (int rows : {1, 32, 2048}) bench_rows(level.name, rows, pool);
  }
  return 0;
}

}  // namespace
}  // namespace taco::cpu

int main(int argc, char** argv) { return taco::cpu::main_(argc, argv); }
