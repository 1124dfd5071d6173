// The products of few rows against float64, for every epilogue, type and awkward size; their independence of
// the other rows; and chains of them, where a product that did not wait for the one before would show.
#include "backend/cuda/linear/skinny.h"

#include <algorithm>
#include <functional>

#include "backend/cpu/ref/ref.h"
#include "backend/cuda/linear/skinny_kernels.h"
#include "cuda_test_util.h"

namespace taco::cuda::test {
namespace {

float e4m3_to_float(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const float value =
      exponent == 0 ? std::ldexp(mantissa / 8.0f, -6) : std::ldexp(1 + mantissa / 8.0f, exponent - 7);
  return bits & 0x80 ? -value : value;
}

struct Case {
  int64_t m, n, k;
  DType dtype = DType::kBF16;      // of the weight
  DType out_dtype = DType::kBF16;  // kF32: float_out
  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kNone;
  Gating gating{};
  bool bias = false;
  int64_t x_pad = 0, out_pad = 0;
};

using Runner = std::function<void(const SkinnyProduct&)>;

// Inputs of a case on the device, with the values the device sees.
struct Product {
  Case c;
  std::vector<float> w, x, bias, before, x_scales;
  float w_scale = 1.0f;
  DeviceBuffer w_device, x_device, bias_device, out_device, w_scale_device, x_scales_device;
  SkinnyProduct params;
  int64_t width = 0, out_stride = 0;

  std::vector<float> values(size_t count, uint64_t seed, float scale, DeviceBuffer& device) {
    if (c.dtype != DType::kF8E4M3) {
      std::vector<float> v = rounded(random_floats(count, seed, scale), c.dtype);
      device = to_device(v, c.dtype);
      return v;
    }
    std::mt19937_64 rng(seed);
    std::vector<uint8_t> bits(count);
    std::vector<float> v(count);
    for (size_t i = 0; i < count; ++i) {
      bits[i] = static_cast<uint8_t>((rng() & 0x87) | (3 + rng() % 6) << 3);  // no NaN, 2^-4 .. 2^2
      v[i] = e4m3_to_float(bits[i]);
    }
    device = DeviceBuffer(bits);
    return v;
  }

  explicit Product(const Case& c, uint64_t seed = 1) : c(c) {
    const bool fp8 = c.dtype == DType::kF8E4M3;
    w = values(c.n * c.k, seed, 1.0f / std::sqrt(static_cast<float>(c.k)), w_device);
    x = values(c.m * (c.k + c.x_pad), seed + 1, 1.0f, x_device);
    width = c.epilogue == Epilogue::kGated ? c.n / 2 : c.n;
    out_stride = width + c.out_pad;
    const size_t out_size = dtype_size(c.out_dtype);
    if (c.epilogue == Epilogue::kAccumulate) {
      before = rounded(random_floats(c.m * out_stride, seed + 2), c.out_dtype);
      out_device = to_device(before, c.out_dtype);
    } else {
      out_device = DeviceBuffer(c.m * out_stride * out_size);
    }
    params.w = w_device.as(), params.n = c.n, params.k = c.k, params.dtype = c.dtype;
    if (c.bias) {
      bias = random_floats(c.n, seed + 3);
      bias_device = DeviceBuffer(bias);
      params.bias = bias_device.as<float>();
    }
    if (fp8) {
      w_scale = 0.37f / std::sqrt(static_cast<float>(c.k));
      w_scale_device = DeviceBuffer(std::vector<float>{w_scale});
      x_scales = random_floats(c.m, seed + 4);
      for (float& s : x_scales) s = 0.1f + std::abs(s);
      x_scales_device = DeviceBuffer(x_scales);
      params.w_scale = w_scale_device.as<float>();
      params.x_scales = x_scales_device.as<float>();
    }
    params.x = x_device.as(), params.m = c.m, params.x_stride = c.k + c.x_pad;
    params.out = out_device.as(), params.out_stride = out_stride, params.out_dtype = c.out_dtype;
    params.epilogue = c.epilogue, params.activation = c.activation;
    params.out_scale = 0.75f;
    params.gating = c.gating;
  }

  std::vector<float> reference() const {
    std::vector<float> out(c.m * width);
    std::vector<double> y(c.n);
    for (int64_t m = 0; m < c.m; ++m) {
      const float* xr = x.data() + m * (c.k + c.x_pad);
      for (int64_t n = 0; n < c.n; ++n) {
        const float* wr = w.data() + n * c.k;
        double sum = 0;
        for (int64_t k = 0; k < c.k; ++k) sum += double{wr[k]} * xr[k];
        if (c.dtype == DType::kF8E4M3) sum *= double{w_scale} * x_scales[m];
        y[n] = sum + (c.bias ? bias[n] : 0.0f);
      }
      for (int64_t i = 0; i < width; ++i) {
        double v = y[i];
        if (c.epilogue == Epilogue::kAccumulate) v = before[m * out_stride + i] + 0.75 * v;
        if (c.epilogue == Epilogue::kActivation) v = cpu::ref::activate(c.activation, v);
        if (c.epilogue == Epilogue::kGated) {
          const int64_t gate = i / 8 * 16 + i % 8;
          v = cpu::ref::gate(c.activation, c.gating, y[gate], y[gate + 8]);
        }
        out[m * width + i] = static_cast<float>(v);
      }
    }
    return out;
  }

  // Without the padding, which must be as it was.
  std::vector<float> result() const {
    const std::vector<float> all = from_device(out_device, c.out_dtype);
    std::vector<float> out;
    for (int64_t m = 0; m < c.m; ++m) {
      out.insert(out.end(), all.begin() + m * out_stride, all.begin() + m * out_stride + width);
      for (int64_t i = width; i < out_stride; ++i) {
        EXPECT_TRUE(c.epilogue == Epilogue::kAccumulate || std::isnan(all[m * out_stride + i]));
      }
    }
    return out;
  }
};

struct Kernel {
  const char* name;
  Runner run;
};
std::vector<Kernel> kernels(Context& ctx) {
  std::vector<Kernel> all;
  if (ctx.hopper()) {
    for (int smem_kb : {0, 113}) {  // 113: two launches' blocks side by side
      all.push_back({smem_kb == 0 ? "sm90" : "sm90, small blocks", [&ctx, smem_kb](const SkinnyProduct& p) {
                       ASSERT_TRUE(skinny_sm90_can(p));
                       SkinnyConfig config = skinny_config(p, ctx);
                       if (smem_kb > 0) config.smem_kb = smem_kb;
                       run_skinny_sm90(p, config, ctx);
                     }});
    }
  }
  all.push_back({"mma", [&ctx](const SkinnyProduct& p) {
                   ASSERT_TRUE(skinny_mma_can(p));
                   run_skinny_mma(p, ctx);
                 }});
  return all;
}

void check(const Case& c) {
  Context& ctx = backend().context();
  std::vector<float> reference;
  for (const Kernel& kernel : kernels(ctx)) {
    Product product(c, c.m * 131 + c.n * 17 + c.k);
    if (reference.empty()) reference = product.reference();
    kernel.run(product.params);
    backend().synchronize();
    // Products of e4m3 are exact; their sums lose bits in the tensor cores (about 2^-13 of the largest of
    // 32).
    const double limit =
        c.out_dtype == DType::kF32 ? (c.dtype == DType::kF8E4M3 ? 1e-3 : 1e-5) : tolerance(c.out_dtype);
    EXPECT_LE(relative_error(product.result(), reference), limit)
        << kernel.name << ": m " << c.m << " n " << c.n << " k " << c.k << " dtype " << dtype_name(c.dtype)
        << " out " << dtype_name(c.out_dtype) << " epilogue " << static_cast<int>(c.epilogue) << " bias "
        << c.bias;
  }
}

TEST(Skinny, EveryRowCount) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int64_t m = 1; m <= 17; ++m) check({.m = m, .n = 192, .k = 320});
  for (int64_t m : {31, 33, 64, 65, 100, 128, 129, 256, 300}) check({.m = m, .n = 192, .k = 320});
}

TEST(Skinny, Sizes) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (auto [n, k] : {std::pair<int64_t, int64_t>{48, 72},
                      {1, 8},
                      {7, 64},
                      {64, 64},
                      {130, 4104},
                      {4100, 520},
                      {576, 576},
                      {16, 14336},
                      {128, 14336}}) {
    for (DType dtype : {DType::kBF16, DType::kF16})
      check({.m = 3, .n = n, .k = k, .dtype = dtype, .out_dtype = dtype});
    if (k % 16 == 0) check({.m = 3, .n = n, .k = k, .dtype = DType::kF8E4M3});
  }
}

TEST(Skinny, Epilogues) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    for (int64_t m : {1, 5, 40}) {
      for (bool bias : {false, true}) {
        const DType out = dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
        Case c{.m = m, .n = 272, .k = 528, .dtype = dtype, .out_dtype = out, .bias = bias};
        check(c);
        c.epilogue = Epilogue::kAccumulate;
        check(c);
        c.out_dtype = DType::kF32;
        check(c);
        c.epilogue = Epilogue::kStore;
        check(c);
        c.out_dtype = out;
        for (Activation a : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                             Activation::kGeluQuick, Activation::kRelu, Activation::kRelu2}) {
          c.activation = a;
          c.epilogue = Epilogue::kActivation;
          check(c);
          c.epilogue = Epilogue::kGated;
          check(c);
        }
        c.gating = {.limit = 0.7f, .up_offset = 1.0f};
        check(c);
      }
    }
  }
}

TEST(Skinny, Strides) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int64_t pad : {1, 2, 8}) {
    check({.m = 9, .n = 264, .k = 512, .x_pad = 64, .out_pad = pad});
    check({.m = 9, .n = 264, .k = 512, .out_dtype = DType::kF32, .out_pad = pad});
  }
}

// The same row, bit for bit, alone and among others, and each time.
TEST(Skinny, RowsAreIndependent) {
  TACO_SKIP_WITHOUT_DEVICE();
  Context& ctx = backend().context();
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    for (const Kernel& kernel : kernels(ctx)) {
      const Case c{.m = 200, .n = 1000, .k = 4096, .dtype = dtype, .out_dtype = DType::kF32};
      Product product(c, 77);
      kernel.run(product.params);
      const std::vector<float> all = product.result();
      for (int repeat = 0; repeat < 20; ++repeat) {
        kernel.run(product.params);
        ASSERT_EQ(std::memcmp(all.data(), product.result().data(), all.size() * 4), 0) << kernel.name;
      }
      for (int64_t m : {1, 2, 8, 9, 16, 17, 33, 64, 65, 128}) {
        for (int64_t first : {int64_t{0}, 200 - m}) {
          SkinnyProduct part = product.params;
          DeviceBuffer out(m * c.n * 4);
          part.m = m;
          part.x = product.x_device.as<char>() + first * c.k * static_cast<int64_t>(dtype_size(dtype));
          if (part.x_scales != nullptr) part.x_scales += first;
          part.out = out.as();
          kernel.run(part);
          ASSERT_EQ(std::memcmp(all.data() + first * c.n, out.get<float>().data(), m * c.n * 4), 0)
              << kernel.name << " " << dtype_name(dtype) << " m " << m << " at " << first;
        }
      }
    }
  }
}

// Each product reads what the one before wrote, in one go, many times, plainly and as a graph: the same bits
// as with a wait for the device between them.
TEST(Skinny, Chains) {
  TACO_SKIP_WITHOUT_DEVICE();
  Context& ctx = backend().context();
  for (int64_t m : {1, 8, 48}) {
    const int64_t dim = 2048, inner = 5632;
    Product up(
        {.m = m, .n = 2 * inner, .k = dim, .epilogue = Epilogue::kGated, .activation = Activation::kSilu}, 5);
    Product down({.m = m, .n = dim, .k = inner, .epilogue = Epilogue::kAccumulate}, 6);
    Product square({.m = m, .n = dim, .k = dim}, 7);
    DeviceBuffer state(m * dim * 2), hidden(m * inner * 2), other(m * dim * 2);
    for (const Kernel& kernel : kernels(ctx)) {
      auto step = [&](bool wait) {
        SkinnyProduct a = square.params, b = up.params, c = down.params;
        a.x = state.as(), a.out = other.as();
        b.x = other.as(), b.out = hidden.as();
        c.x = hidden.as(), c.out = state.as();
        for (const SkinnyProduct* p : {&a, &b, &c}) {
          kernel.run(*p);
          if (wait) TACO_CUDA_CHECK(cudaDeviceSynchronize());
        }
      };
      const std::vector<float> start = rounded(random_floats(m * dim, 9), DType::kBF16);
      auto reset = [&] {
        TACO_CUDA_CHECK(cudaDeviceSynchronize());
        DeviceBuffer fresh = to_device(start, DType::kBF16);
        TACO_CUDA_CHECK(cudaMemcpy(state.as(), fresh.as(), m * dim * 2, cudaMemcpyDeviceToDevice));
        TACO_CUDA_CHECK(cudaDeviceSynchronize());
      };
      reset();
      for (int i = 0; i < 6; ++i) step(true);
      const std::vector<uint16_t> expected = state.get<uint16_t>();
      for (uint16_t bits : expected) ASSERT_NE(bits & 0x7f80, 0x7f80);
      for (int repeat = 0; repeat < 30; ++repeat) {
        reset();
        for (int i = 0; i < 6; ++i) step(false);
        ASSERT_EQ(state.get<uint16_t>(), expected) << kernel.name << " m " << m;
      }
      std::unique_ptr<Graph> graph = backend().capture([&] {
        for (int i = 0; i < 6; ++i) step(false);
      });
      for (int repeat = 0; repeat < 30; ++repeat) {
        reset();
        backend().replay(*graph);
        ASSERT_EQ(state.get<uint16_t>(), expected) << kernel.name << ", graph, m " << m;
      }
    }
  }
}

TEST(Skinny, LlamaShapes) {
  TACO_SKIP_WITHOUT_DEVICE();
  check({.m = 1, .n = 6144, .k = 4096});
  check({.m = 2, .n = 1024, .k = 14336, .epilogue = Epilogue::kAccumulate});
  check({.m = 2, .n = 7168, .k = 4096, .epilogue = Epilogue::kGated, .activation = Activation::kSilu});
  check({.m = 2, .n = 1024, .k = 14336, .dtype = DType::kF8E4M3, .epilogue = Epilogue::kAccumulate});
}

}  // namespace
}  // namespace taco::cuda::test
