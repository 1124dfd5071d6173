// Products of many rows and everything that follows them, against float64 of the rounded inputs.
#include "backend/cuda/linear/linear.h"

#include "backend/cpu/ref/ref.h"
#include "backend/cuda/linear/cublaslt.h"
#include "backend/cuda/linear/gated_sm90.h"
#include "weights.h"

namespace taco::cuda::test {
namespace {

struct Case {
  int64_t rows, n, k;
  DType dtype = DType::kBF16;
  bool fp8 = false;
  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kNone;
  float out_scale = 1.0f;
  bool bias = false, float_out = false;
  int64_t in_pad = 0, out_pad = 0;  // extra elements in a row's stride
  bool gated_sm90 = false;          // the fused kernel, whatever it is worth there
  Gating gating{};
};

std::string text(const Case& c) {
  return str_cat(c.rows, " x ", c.n, " x ", c.k, " ", dtype_name(c.dtype), c.fp8 ? " fp8" : "", " epilogue ",
                 static_cast<int>(c.epilogue), " activation ", static_cast<int>(c.activation),
                 c.bias ? " bias" : "", c.float_out ? " float out" : "", " pads ", c.in_pad, " ", c.out_pad,
                 c.gating.plain() ? "" : " limited");
}

void check(const Case& c) {
  SCOPED_TRACE(text(c));
  const bool gated = c.epilogue == Epilogue::kGated, accumulate = c.epilogue == Epilogue::kAccumulate;
  const int64_t width = gated ? c.n / 2 : c.n, in_stride = c.k + c.in_pad, out_stride = width + c.out_pad;
  const DType out_type = c.float_out ? DType::kF32 : c.dtype;
  const TestMatrix m = random_matrix(WeightFormat::kF32, c.n, c.k, 11);
  const std::vector<float> bias = random_floats(c.n, 12);
  auto linear =
      backend().prepare_linear({&m.host, 1}, c.bias ? bias.data() : nullptr,
                               {.compute = c.dtype, .gated = gated, .fp8 = c.fp8, .activation = c.dtype});
  const bool fp8 = as_cuda(*linear).dtype == DType::kF8E4M3;
  ASSERT_EQ(fp8, c.fp8);
  std::vector<float> w = rounded(m.values, c.dtype);
  if (fp8) w = through_fp8_tensor(w);

  std::vector<float> x = rounded(random_floats(c.rows * c.k, 13), c.dtype);
  std::vector<float> padded(c.rows * in_stride, NAN);
  for (int64_t r = 0; r < c.rows; ++r) std::copy_n(&x[r * c.k], c.k, &padded[r * in_stride]);
  if (fp8) x = through_fp8_rows(x, c.k);
  const std::vector<float> old = rounded(random_floats(c.rows * out_stride, 14), out_type);

  DeviceBuffer in = to_device(padded, c.dtype);
  DeviceBuffer out = accumulate ? to_device(old, out_type) : DeviceBuffer(old.size() * dtype_size(out_type));
  LinearParams p{};
  p.weight = linear.get();
  p.in = in.as();
  p.rows = c.rows;
  p.in_stride = in_stride;
  p.out_stride = out_stride;
  p.epilogue = c.epilogue;
  p.activation = c.activation;
  p.out_scale = c.out_scale;
  p.gating = c.gating;
  p.out = out.as();
  p.float_out = c.float_out;
  p.dtype = c.dtype;
  Context& ctx = backend().context();
  const QuantizedRows* rows = fp8 ? quantize_rows(p.in, c.rows, c.k, in_stride, c.dtype, ctx) : nullptr;
  if (c.gated_sm90) {
    run_gated_sm90(p, rows, ctx);
  } else {
    run_dense(p, rows, ctx);
  }
  const std::vector<float> got = from_device(out, out_type);

  std::vector<float> result, expected;
  for (int64_t r = 0; r < c.rows; ++r) {
    auto product = [&](int64_t j) {
      double sum = c.bias ? bias[j] : 0.0;
      for (int64_t i = 0; i < c.k; ++i) sum += double{x[r * c.k + i]} * w[j * c.k + i];
      return sum;
    };
    for (int64_t j = 0; j < width; ++j) {
      double y = product(j);
      if (c.epilogue == Epilogue::kActivation) y = cpu::ref::activate(c.activation, y);
      if (gated) y = cpu::ref::gate(c.activation, c.gating, y, product(width + j));
      if (accumulate) y = old[r * out_stride + j] + y * c.out_scale;
      expected.push_back(static_cast<float>(y));
      result.push_back(got[r * out_stride + j]);
    }
    for (int64_t j = width; j < out_stride; ++j) {  // nothing beside the rows is written
      const float v = got[r * out_stride + j];
      EXPECT_TRUE(accumulate ? v == old[r * out_stride + j] : std::isnan(v));
    }
  }
  EXPECT_LE(relative_error(result, expected), tolerance(c.dtype));
}

TEST(CudaLinearDense, HasTheLibrary) {
  TACO_SKIP_WITHOUT_DEVICE();
  EXPECT_TRUE(backend().context().lt->available()) << backend().context().lt->problem();
}

TEST(CudaLinearDense, ShapesAndTypes) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (auto [rows, n, k] : {std::array<int64_t, 3>{1, 64, 64},
                              {3, 200, 96},
                              {33, 48, 520},
                              {130, 264, 136},
                              {300, 96, 1000},
                              {5, 7, 3},
                              {70, 65, 33},
                              {64, 1, 100}}) {
      check({.rows = rows, .n = n, .k = k, .dtype = dtype});
      check({.rows = rows, .n = n, .k = k, .dtype = dtype, .float_out = true});
    }
  }
}

TEST(CudaLinearDense, Epilogues) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (bool bias : {false, true}) {
      for (auto [n, k, pad] : {std::array<int64_t, 3>{128, 72, 0}, {96, 40, 8}, {36, 30, 3}}) {
        Case c{.rows = 37, .n = n, .k = k, .dtype = dtype, .bias = bias, .in_pad = pad, .out_pad = pad};
        check(c);
        c.epilogue = Epilogue::kAccumulate;
        check(c);
        c.out_scale = 0.3f;
        check(c);
        c.epilogue = Epilogue::kGated;
        for (Activation a :
             {Activation::kSilu, Activation::kGeluTanh, Activation::kRelu, Activation::kNone}) {
          c.activation = a;
          check(c);
        }
        c.gating = {.limit = 0.7f, .up_offset = 1.0f};
        check(c);
        c.gating = {};
        c.epilogue = Epilogue::kActivation;
        for (Activation a : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                             Activation::kGeluQuick, Activation::kRelu, Activation::kRelu2}) {
          c.activation = a;
          check(c);
        }
      }
    }
  }
}

TEST(CudaLinearDense, Fp8) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    for (bool bias : {false, true}) {
      for (auto [rows, n, k] :
           {std::array<int64_t, 3>{64, 256, 512}, {1, 32, 64}, {77, 48, 208}, {600, 128, 256}}) {
        Case c{.rows = rows, .n = n, .k = k, .dtype = dtype, .fp8 = true, .bias = bias};
        check(c);
        c.float_out = true;
        check(c);
        c.float_out = false;
        c.epilogue = Epilogue::kAccumulate;
        c.out_scale = 0.7f;
        check(c);
        c.epilogue = Epilogue::kGated;
        c.activation = Activation::kSilu;
        check(c);
      }
    }
  }
}

TEST(CudaLinearDense, GatedOnHopper) {
  TACO_SKIP_WITHOUT_DEVICE();
  if (!backend().context().hopper()) GTEST_SKIP() << "needs Hopper";
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    for (bool fp8 : {false, true}) {
      for (auto [rows, n, k, pad] : {std::array<int64_t, 4>{128, 256, 64, 0},
                                     {256, 512, 256, 0},
                                     {1, 32, 16, 0},
                                     {130, 272, 208, 8},
                                     {300, 240, 1040, 0},
                                     {2500, 2080, 48, 16},
                                     {520, 1056, 400, 0}}) {
        for (Activation a : {Activation::kSilu, Activation::kGeluTanh}) {
          check({.rows = rows,
                 .n = n,
                 .k = k,
                 .dtype = dtype,
                 .fp8 = fp8,
                 .epilogue = Epilogue::kGated,
                 .activation = a,
                 .in_pad = pad,
                 .out_pad = pad,
                 .gated_sm90 = true});
        }
      }
    }
  }
}

// [gate; up] whose reader wants FP8: the rows stand beside `out`, quantised from the float values.
TEST(CudaLinearDense, GatedRowsForAnFp8Consumer) {
  TACO_SKIP_WITHOUT_DEVICE();
  Context& ctx = backend().context();
  for (int64_t width : {96, 1040, 24608}) {
    const int64_t rows = 9, k = 32;
    const TestMatrix m = random_matrix(WeightFormat::kBF16, 2 * width, k, 21);
    const TestMatrix next = random_matrix(WeightFormat::kBF16, 16, width, 22);
    auto up = backend().prepare_linear({&m.host, 1}, nullptr,
                                       {.compute = DType::kBF16, .gated = true, .activation = DType::kBF16});
    auto down = backend().prepare_linear({&next.host, 1}, nullptr,
                                         {.compute = DType::kBF16, .fp8 = true, .activation = DType::kBF16});
    const std::vector<float> x = rounded(random_floats(rows * k, 23), DType::kBF16);
    DeviceBuffer in = to_device(x, DType::kBF16), out(rows * width * 2);
    LinearParams p{};
    p.weight = up.get();
    p.in = in.as();
    p.rows = rows;
    p.in_stride = k;
    p.out_stride = width;
    p.epilogue = Epilogue::kGated;
    p.activation = Activation::kSilu;
    p.out = out.as();
    p.consumer = down.get();
    p.dtype = DType::kBF16;
    run_dense(p, nullptr, ctx);
    const QuantizedRows* q = ctx.find_quantized(out.as(), rows, width);
    ASSERT_NE(q, nullptr);
    backend().synchronize();
    std::vector<uint8_t> codes(rows * width);
    std::vector<float> scales(rows), got(rows * width), expected(rows * width);
    TACO_CUDA_CHECK(cudaMemcpy(codes.data(), q->data, codes.size(), cudaMemcpyDeviceToHost));
    TACO_CUDA_CHECK(cudaMemcpy(scales.data(), q->scales, scales.size() * 4, cudaMemcpyDeviceToHost));
    for (int64_t r = 0; r < rows; ++r) {
      float most = 0;
      for (int64_t j = 0; j < width; ++j) {
        double gate = 0, value = 0;
        for (int64_t i = 0; i < k; ++i) {
          gate += double{x[r * k + i]} * m.values[j * k + i];
          value += double{x[r * k + i]} * m.values[(width + j) * k + i];
        }
        expected[r * width + j] = static_cast<float>(gate / (1 + std::exp(-gate)) * value);
        const float code = to_float(f8e4m3{codes[r * width + j]});
        most = std::max(most, std::fabs(code));
        got[r * width + j] = code * scales[r];
      }
      EXPECT_EQ(most, 448.0f);
    }
    // Three bits of mantissa: at most 2^-4 of a value, evenly spread.
    EXPECT_LE(relative_error(got, expected), 0.0625 / std::sqrt(3.0) + 8e-3) << width;
    ctx.forget_quantized(out.as());
  }
}

TEST(CudaLinearDense, QuantizesRows) {
  TACO_SKIP_WITHOUT_DEVICE();
  Context& ctx = backend().context();
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    for (auto [cols, stride] :
         {std::pair<int64_t, int64_t>{4096, 4096}, {100, 104}, {33, 35}, {17000, 17000}}) {
      const int64_t rows = 5;
      std::vector<float> x = rounded(random_floats(rows * stride, 31), dtype);
      std::fill_n(x.begin() + stride, cols, 0.0f);  // a row of zeros
      DeviceBuffer in = to_device(x, dtype);
      const QuantizedRows* q = quantize_rows(in.as(), rows, cols, stride, dtype, ctx);
      ASSERT_EQ(q, ctx.find_quantized(in.as(), rows, cols));
      backend().synchronize();
      std::vector<uint8_t> codes(rows * cols);
      std::vector<float> scales(rows), got(rows * cols), expected;
      TACO_CUDA_CHECK(cudaMemcpy(codes.data(), q->data, codes.size(), cudaMemcpyDeviceToHost));
      TACO_CUDA_CHECK(cudaMemcpy(scales.data(), q->scales, scales.size() * 4, cudaMemcpyDeviceToHost));
      for (int64_t r = 0; r < rows; ++r) {
        std::vector<float> row(x.begin() + r * stride, x.begin() + r * stride + cols);
        for (float v : through_fp8_rows(row, cols)) expected.push_back(v);
        for (int64_t c = 0; c < cols; ++c)
          got[r * cols + c] = to_float(f8e4m3{codes[r * cols + c]}) * scales[r];
      }
      EXPECT_LE(relative_error(got, expected), 1e-6) << cols;
      ctx.forget_quantized(in.as());
    }
  }
}

// A gated product whose scratch memory would be too large is made in parts.
TEST(CudaLinearDense, ManyRowsInParts) {
  TACO_SKIP_WITHOUT_DEVICE();
  check({.rows = 9000,
         .n = 16384,
         .k = 8,
         .epilogue = Epilogue::kGated,
         .activation = Activation::kSilu,
         .bias = true});
}

}  // namespace
}  // namespace taco::cuda::test
