// Weights on the device: every format, the interleave, FP8, stand-ins, uploads.
#include "backend/cuda/linear/linear.h"
#include "backend/cuda/linear/upload.h"
#include "weights.h"

namespace taco::cuda::test {
namespace {

std::vector<float> download(const void* device, size_t count, DType dtype) {
  backend().synchronize();
  std::vector<uint8_t> bytes(count * dtype_size(dtype));
  TACO_CUDA_CHECK(cudaMemcpy(bytes.data(), device, bytes.size(), cudaMemcpyDeviceToHost));
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* p = bytes.data() + i * dtype_size(dtype);
    uint16_t half;
    std::memcpy(&half, p, dtype == DType::kF8E4M3 ? 1 : 2);
    switch (dtype) {
      case DType::kF32:
        std::memcpy(&out[i], p, 4);
        break;
      case DType::kF16:
        out[i] = to_float(f16{half});
        break;
      case DType::kBF16:
        out[i] = to_float(bf16{half});
        break;
      default:
        out[i] = to_float(f8e4m3{*p});
    }
  }
  return out;
}
std::vector<float> weights_of(const CudaLinear& w) { return download(w.data, w.n * w.k, w.dtype); }

constexpr WeightFormat kFormats[] = {WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16,
                                     WeightFormat::kQ8_0, WeightFormat::kQ4_0, WeightFormat::kQ4_1,
                                     WeightFormat::kQ4_K, WeightFormat::kQ6_K};

TEST(CudaPrepare, EveryFormatToEveryType) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (WeightFormat format : kFormats) {
    const int64_t cols = is_quantized(format) ? 512 : 40, first = 13, second = 50;
    const TestMatrix a = random_matrix(format, first, cols, 1), b = random_matrix(format, second, cols, 2);
    const std::vector<HostMatrix> parts{a.host, b.host};
    std::vector<float> expected = a.values;
    expected.insert(expected.end(), b.values.begin(), b.values.end());
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      auto linear = backend().prepare_linear(parts, nullptr, {.compute = dtype, .activation = dtype});
      const CudaLinear& w = as_cuda(*linear);
      EXPECT_EQ(w.n, first + second);
      EXPECT_EQ(w.k, cols);
      EXPECT_EQ(w.dtype, dtype);
      EXPECT_FALSE(w.interleaved);
      EXPECT_EQ(weights_of(w), rounded(expected, dtype))
          << format_info(format).name << " " << dtype_name(dtype);
    }
  }
}

TEST(CudaPrepare, OddColumnsAndMixedFormats) {
  TACO_SKIP_WITHOUT_DEVICE();
  const TestMatrix a = random_matrix(WeightFormat::kF32, 5, 37, 3),
                   b = random_matrix(WeightFormat::kBF16, 9, 37, 4);
  const std::vector<HostMatrix> parts{a.host, b.host};
  std::vector<float> expected = a.values;
  expected.insert(expected.end(), b.values.begin(), b.values.end());
  auto linear =
      backend().prepare_linear(parts, nullptr, {.compute = DType::kBF16, .activation = DType::kBF16});
  EXPECT_EQ(weights_of(as_cuda(*linear)), rounded(expected, DType::kBF16));
}

// Halves of 24 rows in three parts, so that a part holds gate and up rows.
TEST(CudaPrepare, InterleavesGateAndUpByEight) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int64_t half = 24, cols = 512;
  for (WeightFormat format : {WeightFormat::kBF16, WeightFormat::kF32, WeightFormat::kQ4_K}) {
    std::vector<TestMatrix> matrices;
    std::vector<HostMatrix> parts;
    std::vector<float> plain, bias = random_floats(2 * half, 9);
    for (int64_t rows : {10, 20, 18}) matrices.push_back(random_matrix(format, rows, cols, 5 + rows));
    for (const TestMatrix& m : matrices) {
      parts.push_back(m.host);
      plain.insert(plain.end(), m.values.begin(), m.values.end());
    }
    plain = rounded(plain, DType::kBF16);
    std::vector<float> expected(plain.size()), expected_bias(bias.size());
    for (int64_t r = 0; r < 2 * half; ++r) {
      std::copy_n(&plain[r * cols], cols, &expected[interleaved_row(r, half) * cols]);
      expected_bias[interleaved_row(r, half)] = bias[r];
    }
    const LinearOptions options{.compute = DType::kBF16, .gated = true, .activation = DType::kBF16};
    auto linear = backend().prepare_linear(parts, bias.data(), options);
    const CudaLinear& w = as_cuda(*linear);
    EXPECT_TRUE(w.interleaved);
    EXPECT_EQ(weights_of(w), expected) << format_info(format).name;
    EXPECT_EQ(download(w.bias, w.n, DType::kF32), expected_bias);
  }
  // float32, and halves that are no multiple of eight: as given.
  for (auto [dtype, rows] : {std::pair{DType::kF32, half}, std::pair{DType::kBF16, int64_t{12}}}) {
    const TestMatrix m = random_matrix(WeightFormat::kF32, 2 * rows, 32, 6);
    auto linear = backend().prepare_linear({&m.host, 1}, nullptr,
                                           {.compute = dtype, .gated = true, .activation = dtype});
    EXPECT_FALSE(as_cuda(*linear).interleaved);
    EXPECT_EQ(weights_of(as_cuda(*linear)), rounded(m.values, dtype));
  }
}

TEST(CudaPrepare, QuantisesToFp8WithOneScale) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int64_t half = 32, cols = 96;
  const TestMatrix m = random_matrix(WeightFormat::kBF16, 2 * half, cols, 7);
  for (bool gated : {false, true}) {
    const LinearOptions options{
        .compute = DType::kBF16, .gated = gated, .fp8 = true, .activation = DType::kBF16};
    auto linear = backend().prepare_linear({&m.host, 1}, nullptr, options);
    const CudaLinear& w = as_cuda(*linear);
    ASSERT_EQ(w.dtype, DType::kF8E4M3);
    EXPECT_TRUE(reads_fp8(linear.get()));
    float most = 0;
    for (float v : m.values) most = std::max(most, std::fabs(v));
    const std::vector<float> scales = download(w.scale, w.n, DType::kF32);
    EXPECT_EQ(scales, std::vector<float>(w.n, most / 448.0f));
    std::vector<float> expected(m.values.size());
    for (int64_t r = 0; r < 2 * half; ++r)
      for (int64_t c = 0; c < cols; ++c)
        expected[(gated ? interleaved_row(r, half) : r) * cols + c] =
            fp8_rounded(m.values[r * cols + c] / scales[0]);
    EXPECT_EQ(weights_of(w), expected);
  }
  // Not a shape for FP8 products.
  const TestMatrix odd = random_matrix(WeightFormat::kBF16, 24, 40, 8);
  auto linear = backend().prepare_linear({&odd.host, 1}, nullptr,
                                         {.compute = DType::kBF16, .fp8 = true, .activation = DType::kBF16});
  EXPECT_EQ(as_cuda(*linear).dtype, DType::kBF16);
}

TEST(CudaPrepare, StandInsDependOnTheSeedAlone) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int64_t cols : {64, 37}) {
    auto make = [&](std::vector<std::pair<int64_t, uint64_t>> given) {
      std::vector<HostMatrix> parts;
      for (auto [rows, seed] : given) {
        HostMatrix part;
        part.format = WeightFormat::kBF16;
        part.rows = rows;
        part.cols = cols;
        part.seed = seed;
        parts.push_back(part);
      }
      auto linear =
          backend().prepare_linear(parts, nullptr, {.compute = DType::kF32, .activation = DType::kF32});
      return weights_of(as_cuda(*linear));
    };
    const std::vector<float> one = make({{50, 1}}), both = make({{20, 2}, {50, 1}}), other = make({{50, 3}});
    EXPECT_TRUE(std::equal(one.begin(), one.end(), both.begin() + 20 * cols));
    int same = 0;
    double sum = 0, square = 0;
    for (size_t i = 0; i < one.size(); ++i) {
      ASSERT_LE(std::fabs(one[i]), 1e-3f);
      same += one[i] == other[i];
      sum += one[i];
      square += double{one[i]} * one[i];
    }
    const double n = static_cast<double>(one.size());
    EXPECT_LT(same, 5);
    EXPECT_LT(std::fabs(sum / n), 5e-5);                              // 0 +- 1.3e-5 for 1,850 values
    EXPECT_NEAR(std::sqrt(square / n), 1e-3 / std::sqrt(3.0), 3e-5);  // of a uniform distribution
  }
}

TEST(CudaUpload, CopiesLargeAndOddSizes) {
  TACO_SKIP_WITHOUT_DEVICE();
  Uploader uploader(0);
  for (size_t bytes : {size_t{1}, size_t{4097}, (size_t{33} << 20) + 13}) {
    std::vector<uint8_t> source(bytes);
    std::mt19937_64 rng(bytes);
    for (size_t i = 0; i < bytes; i += 8) {
      const uint64_t word = rng();
      std::memcpy(&source[i], &word, std::min<size_t>(8, bytes - i));
    }
    const std::vector<uint8_t> kept = source;
    DeviceBuffer buffer(bytes);
    for (int repeat = 0; repeat < 3; ++repeat) {
      uploader.copy(buffer.as(), source.data(), bytes, backend().context().stream);
      std::fill(source.begin(), source.end(), uint8_t{0xee});  // it may be reused at once
      EXPECT_EQ(buffer.get<uint8_t>(), kept);
      source = kept;
    }
  }
}

TEST(CudaUpload, PassesErrorsOn) {
  TACO_SKIP_WITHOUT_DEVICE();
  Uploader uploader(0);
  DeviceBuffer buffer(size_t{16} << 20);
  auto bad = [](void*, size_t begin, size_t) {
    if (begin > 0) fail(ErrorCode::kInternal, "a broken file");
  };
  EXPECT_THROW(uploader.produce(buffer.as(), size_t{16} << 20, 1, backend().context().stream, bad), Error);
  const std::vector<uint8_t> source(1000, 7);
  uploader.copy(buffer.as(), source.data(), source.size(), backend().context().stream);
  EXPECT_EQ(buffer.get<uint8_t>()[999], 7);
}

}  // namespace
}  // namespace taco::cuda::test
