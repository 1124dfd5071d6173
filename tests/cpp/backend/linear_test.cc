// Every weight format x instruction set of this machine x shape x epilogue against a plain double-precision
// product of the dequantised weights.
#include "backend/cpu/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include "backend/cpu/isa/dispatch.h"
#include "base/error.h"

namespace taco {
namespace {

using cpu::Isa;

// A random matrix with its bytes. Quantised ones take random blocks: every bit pattern is a valid block, only
// the half-precision scales have to be of ordinary size.
struct Matrix {
  HostMatrix host;
  std::vector<uint8_t> bytes;
  std::vector<double> values;  // [rows][cols], dequantised
};

Matrix random_matrix(WeightFormat format, int64_t rows, int64_t cols, std::mt19937& rng) {
  Matrix m;
  m.host.format = format;
  m.host.rows = rows;
  m.host.cols = cols;
  m.bytes.resize(m.host.bytes());
  std::normal_distribution<float> normal(0.0f, 0.5f);
  std::uniform_real_distribution<float> scale(0.002f, 0.02f);
  const FormatInfo& info = format_info(format);
  auto put_half = [](uint8_t* p, float v) {
    f16 h = to_f16(v);
    std::memcpy(p, &h, 2);
  };
  for (size_t i = 0; i < m.bytes.size(); i += info.block_bytes) {
    uint8_t* b = m.bytes.data() + i;
    if (!is_quantized(format)) {
      float v = normal(rng);
      if (format == WeightFormat::kF32) std::memcpy(b, &v, 4);
      if (format == WeightFormat::kF16) put_half(b, v);
      if (format == WeightFormat::kBF16) {
        bf16 h = to_bf16(v);
        std::memcpy(b, &h, 2);
      }
      continue;
    }
    for (int j = 0; j < info.block_bytes; ++j) b[j] = static_cast<uint8_t>(rng());
    if (format == WeightFormat::kQ6_K) {
      put_half(b + 208, scale(rng) / 64);
    } else {
      put_half(b, format == WeightFormat::kQ4_K ? scale(rng) / 16 : scale(rng));
    }
    if (format == WeightFormat::kQ4_1) put_half(b + 2, -8 * scale(rng));
    if (format == WeightFormat::kQ4_K) put_half(b + 2, scale(rng) / 8);
  }
  m.host.data = m.bytes.data();
  std::vector<float> row(cols);
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_row(m.host, r, row.data());
    m.values.insert(m.values.end(), row.begin(), row.end());
  }
  return m;
}

double activate(Activation a, double x) {
  switch (a) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::kGeluQuick:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kRelu2:
      return x > 0 ? x * x : 0;
  }
  return 0;
}

// The largest error of one rounding, relative to the value's magnitude.
constexpr double kHalfUlpBf16 = 1.0 / 256, kHalfUlpF16 = 1.0 / 2048, kHalfUlpF32 = 6e-8;

struct Reference {
  std::vector<double> y;      // products plus bias, [rows][n]
  std::vector<double> bound;  // on the error of each, if all roundings went the same way
  double relative = 0;        // on the error of all, as a share of `scale`: roundings average out
  double scale = 0;           // the norm that products of random signs would have
};

// What the panels and the rows may lose, from the number formats they are documented to have:
//  * weights: rounded to the kept format (none where it holds the checkpoint's values exactly);
//  * rows: bfloat16 (bf16 panels), or 8 bits of the largest of 32 (quantised panels), else exact;
//  * sums: float32, k additions.
Reference reference(const std::vector<const Matrix*>& parts, DType compute, const std::vector<float>& x,
                    int64_t rows, int64_t k, int64_t stride, const std::vector<float>& bias) {
  int64_t n = 0;
  for (const Matrix* m : parts) n += m->host.rows;
  Reference out;
  for (const Matrix* m : parts) {
    bool int8 = is_quantized(m->host.format) && compute != DType::kF32;
    double limit = int8 ? 1.5e-2 : compute == DType::kBF16 ? 6e-3 : compute == DType::kF16 ? 6e-4 : 2e-6;
    out.relative = std::max(out.relative, limit);
  }
  out.y.resize(rows * n);
  out.bound.resize(rows * n);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.data() + r * stride;
    std::vector<double> most((k + 31) / 32, 0);
    for (int64_t i = 0; i < k; ++i)
      most[i / 32] = std::max(most[i / 32], std::fabs(static_cast<double>(row[i])));
    int64_t col = 0;
    for (const Matrix* m : parts) {
      WeightFormat f = m->host.format;
      bool int8 = is_quantized(f) && compute != DType::kF32;
      double weight_error = 0;
      if (!is_quantized(f) && compute == DType::kBF16 && f != WeightFormat::kBF16)
        weight_error = kHalfUlpBf16;
      if (!is_quantized(f) && compute == DType::kF16 && f != WeightFormat::kF16) weight_error = kHalfUlpF16;
      for (int64_t j = 0; j < m->host.rows; ++j, ++col) {
        const double* w = m->values.data() + j * k;
        double sum = bias.empty() ? 0 : bias[col], magnitude = std::fabs(sum), bound = 0;
        for (int64_t g = 0; g < k; g += 32) {
          int64_t end = std::min(k, g + 32);
          double w_most = 0;
          for (int64_t i = g; i < end; ++i) w_most = std::max(w_most, std::fabs(w[i]));
          // Q6_K has its own scale per 16; kept as 8 bits of the largest of 32. Q4_K's products of scales are
          // rounded to half precision: scale * 15 and min, each.
          double kept = f == WeightFormat::kQ6_K && int8 ? w_most * (0.5 / 127 + kHalfUlpF16) : 0;
          if (f == WeightFormat::kQ4_K && int8) kept = kHalfUlpF16 * (2 * w_most + 2 * 0.3);
          for (int64_t i = g; i < end; ++i) {
            double a = std::fabs(static_cast<double>(row[i]));
            sum += w[i] * row[i];
            out.scale += w[i] * w[i] * a * a;
            magnitude += std::fabs(w[i]) * a;
            bound += a * (kept + std::fabs(w[i]) * weight_error);
            if (int8) bound += std::fabs(w[i]) * most[g / 32] * (0.5 / 127) * 1.001;
            // Tiles take quantised weights as bfloat16 and rows as bfloat16 instead.
            if (int8 && cpu::active_isa() == Isa::kAmx) bound += std::fabs(w[i]) * a * 2.01 * kHalfUlpBf16;
            if (!int8 && compute == DType::kBF16) bound += std::fabs(w[i]) * a * kHalfUlpBf16;
          }
        }
        out.y[r * n + col] = sum;
        // Sums of nibbles and bytes are larger than the products themselves before their min is taken off.
        out.bound[r * n + col] =
            bound + magnitude * kHalfUlpF32 * (int8 ? 256 : 16 + 2 * std::sqrt(double(k)));
      }
    }
  }
  return out;
}

std::vector<float> random_floats(int64_t n, float sigma, std::mt19937& rng) {
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<float> out(n);
  for (float& v : out) v = normal(rng);
  return out;
}

class LinearTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override { cpu::force_isa(GetParam()); }
  void TearDown() override {
    cpu::force_isa(cpu::best_isa());
    linear_tuning() = {};
  }

  std::vector<float> product(const CpuLinear& w, const std::vector<float>& x, int64_t rows, int64_t stride,
                             int64_t out_cols) {
    std::vector<float> y(rows * out_cols, NAN);
    LinearParams p{};
    p.weight = &w;
    p.in = x.data();
    p.rows = rows;
    p.in_stride = stride;
    p.out_stride = out_cols;
    p.out = y.data();
    run_cpu_linear(p, pool_);
    return y;
  }

  void expect_near(const Reference& ref, const std::vector<float>& y, const std::string& what) {
    ASSERT_EQ(ref.y.size(), y.size());
    double error = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      ASSERT_LE(std::fabs(y[i] - ref.y[i]), ref.bound[i])
          << what << " element " << i << ": " << y[i] << " for " << ref.y[i];
      error += (y[i] - ref.y[i]) * (y[i] - ref.y[i]);
    }
    EXPECT_LE(std::sqrt(error / ref.scale), ref.relative) << what;
  }

  void check_cases();

  ThreadPool pool_{2};
  std::mt19937 rng_{1234};
};

struct Case {
  WeightFormat format;
  DType compute;
};
constexpr Case kCases[] = {
    {WeightFormat::kF32, DType::kF32},   {WeightFormat::kBF16, DType::kF32},
    {WeightFormat::kF16, DType::kF16},   {WeightFormat::kBF16, DType::kF16},
    {WeightFormat::kBF16, DType::kBF16}, {WeightFormat::kF32, DType::kBF16},
    {WeightFormat::kF16, DType::kBF16},  {WeightFormat::kQ8_0, DType::kBF16},
    {WeightFormat::kQ6_K, DType::kBF16}, {WeightFormat::kQ4_0, DType::kBF16},
    {WeightFormat::kQ4_1, DType::kF16},  {WeightFormat::kQ4_K, DType::kBF16},
    {WeightFormat::kQ8_0, DType::kF32},  {WeightFormat::kQ6_K, DType::kF32},
    {WeightFormat::kQ4_0, DType::kF32},  {WeightFormat::kQ4_1, DType::kF32},
    {WeightFormat::kQ4_K, DType::kF32},
};

std::string name_of(const Case& c) {
  return std::string(format_info(c.format).name) + "/" + std::string(dtype_name(c.compute));
}

TEST_P(LinearTest, MatchesTheReference) { check_cases(); }

// The kernels for few rows at any number of them, and those for many rows at few.
TEST_P(LinearTest, MatchesTheReferenceOffItsThresholds) {
  if (GetParam() == Isa::kAmx) {
    linear_tuning() = {1, 1, 1};
    check_cases();
    linear_tuning() = {INT64_MAX, INT64_MAX, INT64_MAX};
    check_cases();
  } else if (GetParam() == Isa::kAvx512) {
    cpu::force_isa(Isa::kAvx512, false);  // processors with VNNI that lack the BF16 instructions
    check_cases();
  } else {
    GTEST_SKIP() << "no thresholds";
  }
}

void LinearTest::check_cases() {
  for (const Case& c : kCases) {
    int block = format_info(c.format).block_cols;
    for (int64_t n : {7, 16, 33, 100}) {
      for (int64_t k : {20, 33, 64, 96, 576}) {
        if (block > 1) k = (k + block - 1) / block * block;
        Matrix m = random_matrix(c.format, n, k, rng_);
        std::vector<float> bias = n == 33 ? random_floats(n, 1.0f, rng_) : std::vector<float>{};
        auto w = prepare_cpu_linear({&m.host, 1}, bias.empty() ? nullptr : bias.data(), c.compute, pool_);
        EXPECT_EQ(w->out_features(), n);
        EXPECT_EQ(w->in_features(), k);
        for (int64_t rows : {1, 2, 3, 5, 8, 17, 33, 130}) {
          if (rows > 17 && n == 16) continue;
          int64_t stride = k + 3;
          std::vector<float> x = random_floats(rows * stride, 1.0f, rng_);
          Reference ref = reference({&m}, c.compute, x, rows, k, stride, bias);
          expect_near(ref, product(*w, x, rows, stride, n),
                      str_cat(name_of(c), " n=", n, " k=", k, " rows=", rows));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Long rows are taken in several chunks of columns, and many rows in several blocks.
TEST_P(LinearTest, MatchesTheReferenceInBlocks) {
  for (const Case& c : {Case{WeightFormat::kF32, DType::kF32}, Case{WeightFormat::kBF16, DType::kBF16},
                        Case{WeightFormat::kF16, DType::kF16}, Case{WeightFormat::kQ8_0, DType::kBF16},
                        Case{WeightFormat::kQ4_1, DType::kBF16}}) {
    int64_t n = 72, k = is_quantized(c.format) ? 6880 : 4611;
    Matrix m = random_matrix(c.format, n, k, rng_);
    auto w = prepare_cpu_linear({&m.host, 1}, nullptr, c.compute, pool_);
    for (int64_t rows : {1, 7, 110}) {
      std::vector<float> x = random_floats(rows * k, 1.0f, rng_);
      expect_near(reference({&m}, c.compute, x, rows, k, k, {}), product(*w, x, rows, k, n),
                  str_cat(name_of(c), " rows=", rows));
      if (HasFatalFailure()) return;
    }
  }
  Matrix m = random_matrix(WeightFormat::kF32, 40, 64, rng_);
  auto w = prepare_cpu_linear({&m.host, 1}, nullptr, DType::kF32, pool_);
  std::vector<float> x = random_floats(700 * 64, 1.0f, rng_);
  expect_near(reference({&m}, DType::kF32, x, 700, 64, 64, {}), product(*w, x, 700, 64, 40), "700 rows");
}

TEST_P(LinearTest, StacksPartsOfDifferentFormats) {
  int64_t k = 256;
  Matrix q = random_matrix(WeightFormat::kQ4_K, 23, k, rng_),
         kk = random_matrix(WeightFormat::kQ8_0, 16, k, rng_),
         v = random_matrix(WeightFormat::kF32, 9, k, rng_);
  std::vector<HostMatrix> parts = {q.host, kk.host, v.host};
  std::vector<float> bias = random_floats(48, 1.0f, rng_);
  auto w = prepare_cpu_linear(parts, bias.data(), DType::kBF16, pool_);
  EXPECT_EQ(w->out_features(), 48);
  EXPECT_EQ(w->segments().size(), 3u);
  for (int64_t rows : {1, 4, 40}) {
    std::vector<float> x = random_floats(rows * k, 1.0f, rng_);
    expect_near(reference({&q, &kk, &v}, DType::kBF16, x, rows, k, k, bias), product(*w, x, rows, k, 48),
                str_cat("rows=", rows));
  }
}

TEST_P(LinearTest, Accumulates) {
  int64_t n = 50, k = 96, rows = 5;
  for (WeightFormat f : {WeightFormat::kF32, WeightFormat::kQ8_0}) {
    Matrix m = random_matrix(f, n, k, rng_);
    std::vector<float> bias = random_floats(n, 1.0f, rng_), x = random_floats(rows * k, 1.0f, rng_);
    auto w = prepare_cpu_linear({&m.host, 1}, bias.data(), DType::kF32, pool_);
    Reference ref = reference({&m}, DType::kF32, x, rows, k, k, bias);
    std::vector<float> y = random_floats(rows * n, 1.0f, rng_), before = y;
    LinearParams p{};
    p.weight = w.get();
    p.in = x.data();
    p.rows = rows;
    p.in_stride = k;
    p.out_stride = n;
    p.epilogue = Epilogue::kAccumulate;
    p.out_scale = 0.25f;
    p.out = y.data();
    run_cpu_linear(p, pool_);
    for (size_t i = 0; i < y.size(); ++i) {
      ASSERT_NEAR(y[i], before[i] + 0.25 * ref.y[i], 0.25 * ref.bound[i] + 1e-6 * (1 + std::fabs(y[i])));
    }
  }
}

TEST_P(LinearTest, AppliesActivations) {
  int64_t n = 37, k = 64, rows = 6;
  Matrix m = random_matrix(WeightFormat::kF32, n, k, rng_);
  std::vector<float> bias = random_floats(n, 1.0f, rng_), x = random_floats(rows * k, 2.0f, rng_);
  auto w = prepare_cpu_linear({&m.host, 1}, bias.data(), DType::kF32, pool_);
  Reference ref = reference({&m}, DType::kF32, x, rows, k, k, bias);
  for (Activation a : {Activation::kNone, Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                       Activation::kGeluQuick, Activation::kRelu, Activation::kRelu2}) {
    std::vector<float> y(rows * n, NAN);
    LinearParams p{};
    p.weight = w.get();
    p.in = x.data();
    p.rows = rows;
    p.in_stride = k;
    p.out_stride = n;
    p.epilogue = Epilogue::kActivation;
    p.activation = a;
    p.out = y.data();
    run_cpu_linear(p, pool_);
    for (size_t i = 0; i < y.size(); ++i) {
      double slope = a == Activation::kRelu2 ? 2 * std::fabs(ref.y[i]) + 1 : 1.2;
      ASSERT_NEAR(y[i], activate(a, ref.y[i]), slope * ref.bound[i] + 2e-6 * (1 + std::fabs(ref.y[i])))
          << "activation " << static_cast<int>(a) << " of " << ref.y[i];
    }
  }
}

// Gate and up as two parts and as one matrix, with halves that fill their panels and halves that do not.
TEST_P(LinearTest, GatesProducts) {
  for (WeightFormat f : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kQ4_0}) {
    for (int64_t half : {16, 7, 44, 96}) {
      int64_t k = 64;
      Matrix gate = random_matrix(f, half, k, rng_), up = random_matrix(f, half, k, rng_);
      Matrix both = gate;
      both.bytes.insert(both.bytes.end(), up.bytes.begin(), up.bytes.end());
      both.host.rows = 2 * half;
      both.host.data = both.bytes.data();
      std::vector<float> bias = random_floats(2 * half, 1.0f, rng_);
      std::vector<HostMatrix> apart = {gate.host, up.host}, whole = {both.host};
      for (const auto& parts : {apart, whole}) {
        auto w = prepare_cpu_linear(parts, bias.data(), DType::kF32, pool_);
        for (int64_t rows : {1, 3, 50}) {
          std::vector<float> x = random_floats(rows * k, 1.0f, rng_);
          Reference ref = reference({&gate, &up}, DType::kF32, x, rows, k, k, bias);
          std::vector<float> y(rows * half, NAN);
          LinearParams p{};
          p.weight = w.get();
          p.in = x.data();
          p.rows = rows;
          p.in_stride = k;
          p.out_stride = half;
          p.epilogue = Epilogue::kGated;
          p.activation = Activation::kSilu;
          p.out = y.data();
          run_cpu_linear(p, pool_);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t j = 0; j < half; ++j) {
              size_t g = r * 2 * half + j, u = g + half;
              double want = activate(Activation::kSilu, ref.y[g]) * ref.y[u];
              double bound = 1.2 * ref.bound[g] * std::fabs(ref.y[u]) +
                             std::fabs(activate(Activation::kSilu, ref.y[g])) * ref.bound[u] +
                             2e-6 * (1 + std::fabs(want));
              ASSERT_NEAR(y[r * half + j], want, bound)
                  << format_info(f).name << " half=" << half << " rows=" << rows;
            }
          }
        }
      }
    }
  }
}

// Mixed formats: the gate is kept as nibbles, the up as bytes.
TEST_P(LinearTest, GatesPartsOfDifferentFormats) {
  int64_t half = 48, k = 64, rows = 3;
  Matrix gate = random_matrix(WeightFormat::kQ4_0, half, k, rng_),
         up = random_matrix(WeightFormat::kQ8_0, half, k, rng_);
  std::vector<HostMatrix> parts = {gate.host, up.host};
  auto w = prepare_cpu_linear(parts, nullptr, DType::kBF16, pool_);
  std::vector<float> x = random_floats(rows * k, 1.0f, rng_);
  Reference ref = reference({&gate, &up}, DType::kBF16, x, rows, k, k, {});
  std::vector<float> y(rows * half, NAN);
  LinearParams p{};
  p.weight = w.get();
  p.in = x.data();
  p.rows = rows;
  p.in_stride = k;
  p.out_stride = half;
  p.epilogue = Epilogue::kGated;
  p.activation = Activation::kRelu;
  p.out = y.data();
  run_cpu_linear(p, pool_);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < half; ++j) {
      size_t g = r * 2 * half + j, u = g + half;
      double gated = std::max(ref.y[g], 0.0);
      ASSERT_NEAR(y[r * half + j], gated * ref.y[u],
                  ref.bound[g] * (std::fabs(ref.y[u]) + ref.bound[u]) + gated * ref.bound[u] + 1e-5);
    }
  }
}

// In float32 a row's result is the same bits alone and in any batch.
TEST_P(LinearTest, Float32IsRowInvariant) {
  int64_t n = 90, k = 1500;
  Matrix m = random_matrix(WeightFormat::kF32, n, k, rng_);
  auto w = prepare_cpu_linear({&m.host, 1}, nullptr, DType::kF32, pool_);
  int64_t most = 130;
  std::vector<float> x = random_floats(most * k, 1.0f, rng_);
  std::vector<float> alone;
  for (int64_t r = 0; r < most; ++r) {
    std::vector<float> row(x.begin() + r * k, x.begin() + (r + 1) * k);
    std::vector<float> y = product(*w, row, 1, k, n);
    alone.insert(alone.end(), y.begin(), y.end());
  }
  ThreadPool three(3);
  for (int64_t rows : {2, 3, 5, 6, 7, 8, 17, 33, 130}) {
    std::vector<float> y = product(*w, x, rows, k, n);
    ASSERT_EQ(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)), 0) << rows << " rows";
  }
}

TEST_P(LinearTest, WritesNothingBesideItsOutput) {
  int64_t n = 21, k = 40, rows = 4, stride = 30;
  Matrix m = random_matrix(WeightFormat::kBF16, n, k, rng_);
  auto w = prepare_cpu_linear({&m.host, 1}, nullptr, DType::kBF16, pool_);
  std::vector<float> x = random_floats(rows * k, 1.0f, rng_), y(rows * stride, 77.0f);
  LinearParams p{};
  p.weight = w.get();
  p.in = x.data();
  p.rows = rows;
  p.in_stride = k;
  p.out_stride = stride;
  p.out = y.data();
  run_cpu_linear(p, pool_);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < stride; ++i) EXPECT_EQ(y[r * stride + i] == 77.0f, i >= n);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, LinearTest, testing::ValuesIn(cpu::available_isas()),
                         [](const auto& info) { return std::string(cpu::isa_name(info.param)); });

TEST(Linear, RefusesWhatItCannotHold) {
  ThreadPool pool(1);
  std::mt19937 rng(1);
  Matrix a = random_matrix(WeightFormat::kF32, 4, 32, rng), b = random_matrix(WeightFormat::kF32, 4, 64, rng);
  std::vector<HostMatrix> parts = {a.host, b.host};
  EXPECT_THROW(prepare_cpu_linear(parts, nullptr, DType::kF32, pool), Error);
  EXPECT_THROW(prepare_cpu_linear({}, nullptr, DType::kF32, pool), Error);
  EXPECT_THROW(prepare_cpu_linear({&a.host, 1}, nullptr, DType::kI8, pool), Error);
  HostMatrix odd = random_matrix(WeightFormat::kQ8_0, 4, 32, rng).host;
  odd.cols = 40;
  EXPECT_THROW(prepare_cpu_linear({&odd, 1}, nullptr, DType::kBF16, pool), Error);
}

TEST(Embedding, LooksUpScalesAndAccumulates) {
  ThreadPool pool(2);
  std::mt19937 rng(7);
  for (WeightFormat f : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kQ6_K, WeightFormat::kQ4_1}) {
    Matrix m = random_matrix(f, 11, 256, rng);
    auto table = prepare_cpu_embedding(m.host);
    std::vector<int32_t> ids = {3, 0, 10, 3, 5, 6, 7, 8, 9, 1};
    std::vector<float> out(ids.size() * 256, 1.0f);
    EmbeddingParams p{};
    p.table = table.get();
    p.ids = ids.data();
    p.rows = static_cast<int64_t>(ids.size());
    p.scale = 2.0f;
    p.out = out.data();
    run_cpu_embedding(p, pool);
    for (size_t r = 0; r < ids.size(); ++r) {
      for (int i = 0; i < 256; ++i) ASSERT_FLOAT_EQ(out[r * 256 + i], 2 * m.values[ids[r] * 256 + i]);
    }
    p.accumulate = true;
    run_cpu_embedding(p, pool);
    for (size_t r = 0; r < ids.size(); ++r) {
      for (int i = 0; i < 256; ++i) ASSERT_FLOAT_EQ(out[r * 256 + i], 4 * m.values[ids[r] * 256 + i]);
    }
    std::vector<float> before = out;
    ids[4] = 11;
    EXPECT_THROW(run_cpu_embedding(p, pool), Error);
    ids[4] = -1;
    EXPECT_THROW(run_cpu_embedding(p, pool), Error);
    EXPECT_EQ(out, before);
  }
}

}  // namespace
}  // namespace taco
