// Products of many rows through cuBLASLt, their epilogues, mixtures of experts, weight uploads.
//   dense_bench [matmul] [epilogue] [moe] [upload]     (all of them without arguments)
// Llama-3-8B's and Mixtral-8x7B's shapes, random data, medians. TACO_CUBLASLT names the library.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/linear/cublaslt.h"
#include "backend/cuda/linear/epilogue.h"
#include "backend/cuda/linear/gated_sm90.h"
#include "backend/cuda/linear/linear.h"
#include "backend/cuda/linear/upload.h"

namespace taco::cuda {
namespace {

constexpr DType kBF16 = DType::kBF16;

struct Bench {
  CudaBackend backend;
  Context& ctx = backend.context();

  std::unique_ptr<Linear> weight(int64_t n, int64_t k, bool gated, bool fp8, uint64_t seed) {
    HostMatrix m;
    m.format = WeightFormat::kBF16;
    m.rows = n;
    m.cols = k;
    m.seed = seed;
    return backend.prepare_linear({&m, 1}, nullptr,
                                  {.compute = kBF16, .gated = gated, .fp8 = fp8, .activation = kBF16});
  }
  // Random rows: the stand-in weights' generator does for activations too.
  std::unique_ptr<Linear> rows(int64_t rows, int64_t cols) { return weight(rows, cols, false, false, 77); }

  template <typename F>
  float median_us(int runs, F&& f) {
    cudaEvent_t begin, end;
    TACO_CUDA_CHECK(cudaEventCreate(&begin));
    TACO_CUDA_CHECK(cudaEventCreate(&end));
    std::vector<float> times;
    for (int i = 0; i < runs + 2; ++i) {
      TACO_CUDA_CHECK(cudaEventRecord(begin, ctx.stream));
      f();
      TACO_CUDA_CHECK(cudaEventRecord(end, ctx.stream));
      TACO_CUDA_CHECK(cudaEventSynchronize(end));
      float ms = 0;
      TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 2) times.push_back(ms * 1000);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
  }
};

struct Shape {
  const char* name;
  int64_t n, k;
  bool gated;
  Epilogue epilogue;
};
constexpr Shape kShapes[] = {{"qkv", 6144, 4096, false, Epilogue::kStore},
                             {"attn_out", 4096, 4096, false, Epilogue::kAccumulate},
                             {"gate_up", 28672, 4096, true, Epilogue::kGated},
                             {"down", 4096, 14336, false, Epilogue::kAccumulate}};

void matmuls(Bench& b) {
  std::printf("%-9s %-5s %6s  candidates: TFLOP/s in the heuristic's order | whole op us, TFLOP/s\n", "shape",
              "type", "rows");
  void* y = b.backend.allocate(size_t{8192} * 28672 * 2, true);
  for (const Shape& s : kShapes) {
    for (bool fp8 : {false, true}) {
      auto w = b.weight(s.n, s.k, s.gated, fp8, 1);
      const CudaLinear& weight = as_cuda(*w);
      for (int64_t m : {128, 256, 512, 2048, 8192}) {
        auto x = b.rows(m, s.k);
        const void* in = as_cuda(*x).data;
        const double flop = 2.0 * static_cast<double>(m) * s.n * s.k;
        Matmul p;
        p.m = m;
        p.n = s.n;
        p.k = s.k;
        p.in = weight.dtype;
        p.x = in;
        p.x_stride = s.k;
        p.w = weight.data;
        p.y = y;
        p.y_stride = s.n;
        p.beta = s.epilogue == Epilogue::kAccumulate ? 1.0f : 0.0f;
        const QuantizedRows* q = nullptr;
        if (fp8) {
          q = quantize_rows(in, m, s.k, s.k, kBF16, b.ctx);
          p.x = q->data;
          p.w_scales = weight.scale;
          p.x_scales = q->scales;
        }
        std::printf("%-9s %-5s %6ld ", s.name, fp8 ? "fp8" : "bf16", static_cast<long>(m));
        for (float us : b.ctx.lt->time_candidates(p, b.ctx, 5)) std::printf(" %.0f", flop / us * 1e-6);
        if (fp8) {
          p.x_scales = nullptr;
          std::printf(" / one scale:");
          for (float us : b.ctx.lt->time_candidates(p, b.ctx, 5)) std::printf(" %.0f", flop / us * 1e-6);
        }
        LinearParams l{};
        l.weight = w.get();
        l.in = in;
        l.rows = m;
        l.in_stride = s.k;
        l.out_stride = s.gated ? s.n / 2 : s.n;
        l.epilogue = s.epilogue;
        l.activation = Activation::kSilu;
        l.out = y;
        l.dtype = kBF16;
        const float us = b.median_us(9, [&] { run_dense(l, q, b.ctx); });
        std::printf(" | %.1f us %.0f", us, flop / us * 1e-6);
        if (s.gated) {
          const float fused = b.median_us(9, [&] { run_gated_sm90(l, q, b.ctx); });
          std::printf(" | fused %.1f us %.0f", fused, flop / fused * 1e-6);
        }
        std::printf("\n");
        b.ctx.forget_quantized(in);
      }
    }
  }
  b.backend.release(y);
}

void epilogues(Bench& b) {
  const int64_t rows = 4096, n = 28672;
  auto in = b.rows(rows, n);
  void* out = b.backend.allocate(rows * n, false);
  auto* scales = static_cast<float*>(b.backend.allocate(rows * 4, false));
  EpilogueParams e;
  e.in = as_cuda(*in).data;
  e.in_stride = n;
  e.rows = rows;
  e.n = n;
  e.activation = Activation::kSilu;
  e.gated = e.interleaved = true;
  e.out = out;
  e.out_stride = n / 2;
  auto report = [&](const char* name, double bytes) {
    const float us = b.median_us(15, [&] { run_epilogue(e, b.ctx); });
    std::printf("%-34s %8.1f us %6.2f TB/s\n", name, us, bytes / us * 1e-6);
  };
  const auto count = static_cast<double>(rows) * n;
  report("silu gate 4096 x 28672 to bf16", count * 3);
  e.fp8 = out;
  e.fp8_scales = scales;
  report("silu gate 4096 x 28672 to fp8", count * 2.5);
  e.gated = false;
  e.n = e.in_stride = 4096;
  e.rows = rows;
  e.activation = Activation::kNone;
  report("quantize 4096 x 4096", 4096.0 * 4096 * 3);
  b.backend.release(out);
  b.backend.release(scales);
}

void moe(Bench& b) {
  const int64_t hidden = 4096, intermediate = 14336;
  const int experts = 8, top_k = 2;
  for (bool fp8 : {false, true}) {
    std::vector<std::unique_ptr<Linear>> owned;
    std::vector<const Linear*> up, down;
    for (int e = 0; e < experts; ++e) {
      owned.push_back(b.weight(2 * intermediate, hidden, true, fp8, 10 + e));
      up.push_back(owned.back().get());
      owned.push_back(b.weight(hidden, intermediate, false, fp8, 30 + e));
      down.push_back(owned.back().get());
    }
    for (int64_t rows : {1, 4, 8, 32, 128, 512, 4096}) {
      auto x = b.rows(rows, hidden);
      std::mt19937_64 rng(static_cast<uint64_t>(rows));
      std::normal_distribution<float> normal;
      std::vector<float> logits(rows * experts);
      for (float& v : logits) v = normal(rng);
      std::set<int> touched;
      for (int64_t r = 0; r < rows; ++r) {
        std::vector<std::pair<float, int>> order;
        for (int e = 0; e < experts; ++e) order.push_back({-logits[r * experts + e], e});
        std::sort(order.begin(), order.end());
        for (int k = 0; k < top_k; ++k) touched.insert(order[k].second);
      }
      void* device_logits = b.backend.allocate(logits.size() * 4, false);
      b.backend.upload(device_logits, logits.data(), logits.size() * 4);
      void* out = b.backend.allocate(rows * hidden * 2, false);
      MoeParams p{};
      p.in = as_cuda(*x).data;
      p.router_logits = static_cast<float*>(device_logits);
      p.rows = rows;
      p.hidden = hidden;
      p.intermediate = intermediate;
      p.num_experts = experts;
      p.top_k = top_k;
      p.renormalize = true;
      p.gate_up = up.data();
      p.down = down.data();
      p.activation = Activation::kSilu;
      p.out = out;
      p.dtype = kBF16;
      b.backend.moe(p);
      constexpr int kRepeats = 4;
      auto graph = b.backend.capture([&] {
        for (int i = 0; i < kRepeats; ++i) b.backend.moe(p);
      });
      const float us = b.median_us(9, [&] { b.backend.replay(*graph); }) / kRepeats;
      const double bytes = static_cast<double>(touched.size()) * 3 * hidden * intermediate * (fp8 ? 1 : 2);
      const double flop = 6.0 * static_cast<double>(rows) * top_k * hidden * intermediate;
      std::printf("moe %-4s %5ld rows, %zu experts: %9.1f us  %5.2f TB/s of weights  %6.1f TFLOP/s\n",
                  fp8 ? "fp8" : "bf16", static_cast<long>(rows), touched.size(), us, bytes / us * 1e-6,
                  flop / us * 1e-6);
      b.backend.release(device_logits);
      b.backend.release(out);
    }
  }
}

void uploads(Bench& b) {
  const size_t bytes = size_t{1} << 30;
  std::vector<char> source(bytes, 3);
  void* device = b.backend.allocate(bytes, false);
  Uploader uploader(0);
  for (size_t piece : {bytes, bytes / 16, bytes / 128}) {
    const float us = b.median_us(3, [&] {
      for (size_t at = 0; at < bytes; at += piece)
        uploader.copy(static_cast<char*>(device) + at, source.data() + at, piece, b.ctx.stream);
    });
    std::printf("upload of 1 GiB in pieces of %4zu MiB: %5.1f GB/s\n", piece >> 20, bytes / us * 1e-3);
  }
  b.backend.release(device);
  const float us = b.median_us(5, [&] { b.rows(28672, 4096); });
  std::printf("stand-in weights 28672 x 4096, with allocation: %.0f us\n", us);
}

}  // namespace
}  // namespace taco::cuda

int main(int argc, char** argv) {
  using namespace taco;
  std::set<std::string> wanted(argv + 1, argv + argc);
  auto wants = [&](const char* name) { return wanted.empty() || wanted.count(name) > 0; };
  try {
    const char* lt = std::getenv("TACO_CUBLASLT");
    CudaOptions options;
    options.cublaslt = lt != nullptr ? lt : "";
    setenv("TACO_GATED_SM90", "0", 0);  // the fused kernel has its own column
    cuda::Bench bench{cuda::CudaBackend(options)};
    std::printf("cuBLASLt %zu %s\n", bench.ctx.lt->version(), bench.ctx.lt->problem().c_str());
    if (wants("matmul")) cuda::matmuls(bench);
    if (wants("epilogue")) cuda::epilogues(bench);
    if (wants("moe")) cuda::moe(bench);
    if (wants("upload")) cuda::uploads(bench);
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
