// Speed of the skinny products on Llama-3-8B's shapes: each alone, back to back over the weights of all
// layers, and the chain of a whole step, with and without small kernels between. All in CUDA graphs; weights
// of 15 GB, so that nothing stays in L2.
//
//   cuda_linear_bench [bf16|fp8] mROWS,... KERNEL ...
//
// KERNEL: auto, mma (mma.sync), or the fields of SkinnyConfig:
// row_tiles,k_boxes,smem_kb. bf16 or fp8 holds for the next kernel, the rows
// for all that follow.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/skinny_kernels.h"

namespace taco::cuda {
namespace {

constexpr int kLayers = 32, kMaxRows = 256;
struct Shape {
  const char* name;
  int64_t n, k;
  Epilogue epilogue;
};
constexpr Shape kShapes[] = {{"qkv", 6144, 4096, Epilogue::kStore},
                             {"o", 4096, 4096, Epilogue::kAccumulate},
                             {"gate_up", 28672, 4096, Epilogue::kGated},
                             {"down", 4096, 14336, Epilogue::kAccumulate},
                             {"head", 128256, 4096, Epilogue::kStore}};

__device__ uint32_t hashed(uint64_t i) {
  uint32_t x = static_cast<uint32_t>(i * 0x9E3779B97F4A7C15ull >> 32);
  x ^= x >> 15, x *= 0x2c1b3c6du, x ^= x >> 12;
  return x;
}
__global__ void fill_bf16(uint16_t* to, size_t n, float scale) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x)
    to[i] = __float_as_uint((hashed(i) * 0x1p-32f - 0.5f) * scale) >> 16;
}
__global__ void fill_fp8(uint8_t* to, size_t n) {  // +- 2^-3 .. 2^3
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x)
    to[i] = static_cast<uint8_t>((hashed(i) & 0x8f) | (4 + (hashed(i) >> 8) % 6) << 3);
}
__global__ void fill_f32(float* to, size_t n, float value) {
  for (size_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = value;
}

// Stands for a norm, a rotation, an attention: one block that runs for a while and depends on what is before.
__global__ void pause_kernel(float* data, int ns) {
  pdl_launch();
  pdl_wait();
  const long long start = clock64();
  while (clock64() - start < ns * 17 / 10) {
  }
  if (threadIdx.x == 0) data[0] += 1.0f;
}

struct Bench {
  Context ctx;
  char *w16 = nullptr, *w8 = nullptr, *head = nullptr;
  char* x[4] = {};
  float *scales = nullptr, *logits = nullptr, *scratch = nullptr;
  size_t layer_elements = 0;

  Bench() {
    cudaDeviceProp properties;
    TACO_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    int driver = 0;
    TACO_CUDA_CHECK(cudaDriverGetVersion(&driver));
    std::printf("%s, CUDA driver API %d\n", properties.name, driver);
    ctx.num_sms = properties.multiProcessorCount;
    ctx.capability = properties.major * 10 + properties.minor;
    ctx.max_smem = properties.sharedMemPerBlockOptin;
    ctx.pdl = std::getenv("TACO_PDL") == nullptr || std::string(std::getenv("TACO_PDL")) != "0";
    TACO_CUDA_CHECK(cudaStreamCreateWithFlags(&ctx.stream, cudaStreamNonBlocking));
    for (int s = 0; s < 4; ++s) layer_elements += kShapes[s].n * kShapes[s].k;
    TACO_CUDA_CHECK(cudaMalloc(&w16, layer_elements * kLayers * 2));
    TACO_CUDA_CHECK(cudaMalloc(&w8, layer_elements * kLayers));
    TACO_CUDA_CHECK(cudaMalloc(&head, kShapes[4].n * kShapes[4].k * 2));
    fill_bf16<<<4096, 256>>>(reinterpret_cast<uint16_t*>(w16), layer_elements * kLayers, 0.05f);
    fill_fp8<<<4096, 256>>>(reinterpret_cast<uint8_t*>(w8), layer_elements * kLayers);
    fill_bf16<<<4096, 256>>>(reinterpret_cast<uint16_t*>(head), kShapes[4].n * kShapes[4].k, 0.05f);
    for (char*& buffer : x) {
      TACO_CUDA_CHECK(cudaMalloc(&buffer, kMaxRows * 14336 * 2));
      fill_bf16<<<1024, 256>>>(reinterpret_cast<uint16_t*>(buffer), kMaxRows * 14336, 1.0f);
    }
    TACO_CUDA_CHECK(cudaMalloc(&scales, 1024 * 4));
    fill_f32<<<1, 256>>>(scales, 1024, 0.001f);
    TACO_CUDA_CHECK(cudaMalloc(&scratch, 1024));
    TACO_CUDA_CHECK(cudaMemset(scratch, 0, 1024));
    TACO_CUDA_CHECK(cudaMalloc(&logits, size_t{kMaxRows} * 128256 * 4));
    TACO_CUDA_CHECK(cudaDeviceSynchronize());
    skinny_scratch(ctx);
  }

  SkinnyProduct product(int shape, int layer, int m, bool fp8) {
    const Shape& s = kShapes[shape];
    SkinnyProduct p;
    size_t offset = layer_elements * layer;
    for (int i = 0; i < shape && shape < 4; ++i) offset += kShapes[i].n * kShapes[i].k;
    if (shape == 4) fp8 = false;
    p.w = shape == 4 ? head : fp8 ? w8 + offset : w16 + offset * 2;
    p.n = s.n, p.k = s.k, p.m = m;
    p.dtype = fp8 ? DType::kF8E4M3 : DType::kBF16;
    if (fp8) p.w_scale = scales, p.x_scales = scales + 8;
    // x[0]: the residual, x[1]: qkv rows, x[2]: the MLP's.
    p.x = shape == 1 ? x[1] : shape == 3 ? x[2] : x[0];
    p.x_stride = shape == 1 ? 6144 : s.k;
    p.out = shape == 0 ? x[1] : shape == 2 ? x[2] : x[3];
    p.out_stride = shape == 2 ? 14336 : s.n;
    if (shape == 4) p.out = logits, p.out_dtype = DType::kF32;
    p.epilogue = s.epilogue;
    p.activation = Activation::kSilu;
    p.out_scale = 0.01f;
    return p;
  }
  size_t bytes(int shape, bool fp8) {
    return kShapes[shape].n * kShapes[shape].k * (fp8 && shape < 4 ? 1 : 2);
  }

  // Median ms of one replay.
  double time(const std::function<void()>& ops, int repeats = 7) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    TACO_CUDA_CHECK(cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeThreadLocal));
    ops();
    TACO_CUDA_CHECK(cudaStreamEndCapture(ctx.stream, &graph));
    TACO_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t a, b;
    TACO_CUDA_CHECK(cudaEventCreate(&a));
    TACO_CUDA_CHECK(cudaEventCreate(&b));
    std::vector<float> all;
    for (int i = 0; i < repeats + 2; ++i) {
      TACO_CUDA_CHECK(cudaEventRecord(a, ctx.stream));
      TACO_CUDA_CHECK(cudaGraphLaunch(exec, ctx.stream));
      TACO_CUDA_CHECK(cudaEventRecord(b, ctx.stream));
      TACO_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));
      float ms = 0;
      TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, a, b));
      if (i >= 2) all.push_back(ms);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    std::sort(all.begin(), all.end());
    return all[all.size() / 2];
  }

  using Config = std::function<SkinnyConfig(const SkinnyProduct&)>;
  void run(int shape, int layer, int m, bool fp8, const Config& config) {
    const SkinnyProduct p = product(shape, layer, m, fp8);
    const SkinnyConfig c = config(p);
    if (c.row_tiles == 0)
      run_skinny_mma(p, ctx);
    else
      run_skinny_sm90(p, c, ctx);
  }
  void pause(int ns) { launch(ctx, pause_kernel, dim3(1), dim3(256), 0, scratch, ns); }

  void row(const char* label, int m, bool fp8, const Config& config) {
    std::printf("%-32s %4d ", label, m);
    for (int shape = 0; shape < 5; ++shape) {
      const int count = shape == 4 ? 3 : kLayers;
      const double ms = time([&] {
        for (int l = 0; l < count; ++l) run(shape, l, m, fp8, config);
      });
      std::printf(" %6.3f", bytes(shape, fp8) * count / ms * 1e-9);
    }
    size_t total = bytes(4, fp8);
    for (int shape = 0; shape < 4; ++shape) total += bytes(shape, fp8) * kLayers;
    for (bool gaps : {false, true}) {
      const double ms = time([&] {
        for (int l = 0; l < kLayers; ++l) {
          if (gaps) pause(1500);
          run(0, l, m, fp8, config);
          if (gaps) pause(1500), pause(5000);
          run(1, l, m, fp8, config);
          if (gaps) pause(1500);
          run(2, l, m, fp8, config);
          run(3, l, m, fp8, config);
        }
        if (gaps) pause(1500);
        run(4, 0, m, fp8, config);
      });
      std::printf(" | %6.3f ms %5.3f", ms, total / ms * 1e-9);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
};

int run(int argc, char** argv) {
  Bench bench;
  std::printf(
      "%-32s %4s  qkv    o      gateup down   head   | chain             | with pauses of 11 us a layer\n",
      "TB/s of weights", "M");
  std::vector<int> rows;
  bool types[2] = {true, true};
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    SkinnyConfig c;
    if (arg == "bf16" || arg == "fp8") {
      types[arg == "bf16"] = false;
    } else if (arg[0] == 'm' && arg != "mma") {
      rows.clear();
      for (size_t at = 0; at != std::string::npos; at = arg.find(',', at + 1))
        rows.push_back(std::atoi(arg.c_str() + at + 1));
    } else {
      const bool given = std::sscanf(arg.c_str(), "%d,%d,%d", &c.row_tiles, &c.k_boxes, &c.smem_kb) == 3;
      if (arg == "mma") c.row_tiles = 0;
      for (bool fp8 : {false, true}) {
        for (int m : rows) {
          if (!types[fp8]) continue;
          bench.row(((fp8 ? "fp8 " : "bf16 ") + arg).c_str(), m, fp8, [&](const SkinnyProduct& p) {
            return given || arg == "mma" ? c : skinny_config(p, bench.ctx);
          });
        }
      }
      types[0] = types[1] = true;
    }
  }
  return 0;
}

}  // namespace
}  // namespace taco::cuda

int main(int argc, char** argv) { return taco::cuda::run(argc, argv); }
