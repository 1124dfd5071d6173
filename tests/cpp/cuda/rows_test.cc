// Embedding, norms, rotary embedding with the KV write, gathers and block copies against backend/cpu/ref.
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "backend/cpu/ref/ref.h"
#include "backend/cuda/linear/linear.h"
#include "cuda_test_util.h"

namespace taco::cuda::test {
namespace {

namespace ref = ::taco::cpu::ref;

constexpr DType kActivations[] = {DType::kF32, DType::kF16, DType::kBF16};

std::vector<float> uniform(size_t n, uint64_t seed, float low, float high) {
  std::mt19937_64 rng(seed);
  std::uniform_real_distribution<float> u(low, high);
  std::vector<float> out(n);
  for (float& v : out) v = u(rng);
  return out;
}

// Columns [0, dim) of rows of `stride`.
std::vector<float> columns(const std::vector<float>& x, int64_t rows, int64_t dim, int64_t stride) {
  std::vector<float> out;
  for (int64_t r = 0; r < rows; ++r)
    out.insert(out.end(), x.begin() + r * stride, x.begin() + r * stride + dim);
  return out;
}

struct NormCase {
  NormKind kind = NormKind::kRms;
  int64_t rows = 3, dim = 64, pad = 0;
  DType dtype = DType::kBF16;
  bool residual = false, weight = true, bias = false, in_place = false, fp8 = false;
};

void check_norm(const NormCase& c) {
  SCOPED_TRACE(str_cat("kind ", static_cast<int>(c.kind), " rows ", c.rows, " dim ", c.dim, " pad ", c.pad,
                       " ", dtype_name(c.dtype), c.residual ? " residual" : "", c.weight ? " weight" : "",
                       c.bias ? " bias" : "", c.in_place ? " in place" : "", c.fp8 ? " fp8" : ""));
  const int64_t stride = c.dim + c.pad;
  const float offset = c.dim % 16 == 0 ? 1.0f : 0.0f;
  std::vector<float> in = rounded(random_floats(c.rows * stride, 1 + c.dim), c.dtype);
  std::vector<float> residual = rounded(random_floats(c.rows * c.dim, 2 + c.dim, 3.0f), c.dtype);
  std::vector<float> weight = uniform(c.dim, 3, 0.5f, 1.5f), bias = uniform(c.dim, 4, -1.0f, 1.0f);
  DeviceBuffer d_in = to_device(in, c.dtype), d_residual = to_device(residual, c.dtype), d_weight(weight),
               d_bias(bias), d_out(in.size() * dtype_size(c.dtype));
  CudaLinear consumer;
  consumer.dtype = DType::kF8E4M3;
  consumer.k = c.dim;
  NormParams p{.kind = c.kind,
               .in = d_in.as(),
               .residual = c.residual ? d_residual.as() : nullptr,
               .residual_scale = 0.75f,
               .weight = c.weight ? d_weight.as<float>() : nullptr,
               .bias = c.bias ? d_bias.as<float>() : nullptr,
               .weight_offset = offset,
               .eps = 1e-5f,
               .rows = c.rows,
               .dim = c.dim,
               .in_stride = stride,
               .out_stride = stride,
               .out = c.in_place ? d_in.as() : d_out.as(),
               .consumer = c.fp8 ? &consumer : nullptr,
               .dtype = c.dtype};
  backend().norm(p);
  std::vector<float> got = columns(from_device(c.in_place ? d_in : d_out, c.dtype), c.rows, c.dim, stride);
  std::vector<float> got_residual = from_device(d_residual, c.dtype);

  std::vector<float> expected(c.rows * c.dim);
  NormParams q = p;
  q.in = in.data();
  q.residual = c.residual ? residual.data() : nullptr;
  q.weight = c.weight ? weight.data() : nullptr;
  q.bias = c.bias ? bias.data() : nullptr;
  q.out = expected.data();
  q.out_stride = c.dim;
  ref::norm(q);
  EXPECT_LE(relative_error(got, expected), tolerance(c.dtype));
  EXPECT_LE(relative_error(got_residual, residual), tolerance(c.dtype));
  if (!c.fp8) return;
  const QuantizedRows* rows = backend().context().find_quantized(p.out, c.rows, c.dim);
  ASSERT_NE(rows, nullptr);
  std::vector<f8e4m3> data(expected.size());
  std::vector<float> scales(c.rows);
  TACO_CUDA_CHECK(cudaMemcpy(data.data(), rows->data, data.size(), cudaMemcpyDeviceToHost));
  TACO_CUDA_CHECK(cudaMemcpy(scales.data(), rows->scales, scales.size() * 4, cudaMemcpyDeviceToHost));
  std::vector<float> back(expected.size());
  for (int64_t r = 0; r < c.rows; ++r) {
    float largest = 0;
    for (int64_t i = 0; i < c.dim; ++i) {
      back[r * c.dim + i] = to_float(data[r * c.dim + i]) * scales[r];
      largest = std::max(largest, std::abs(expected[r * c.dim + i]));
    }
    EXPECT_NEAR(scales[r] * 448.0f / largest, 1.0f, tolerance(c.dtype));
  }
  // Rounding to three bits of mantissa: uniform errors of up to 1/16 of a binade's start, about 2.6 % in all.
  EXPECT_LE(relative_error(back, expected), 0.03);
}

TEST(CudaNorm, DimsAndTypes) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (int64_t dim : {1, 8, 37, 64, 576, 1001, 2048, 4096, 5120, 8192, 14336, 16384, 16392, 20000})
      for (NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
        if (dim == 1 && kind == NormKind::kLayer) continue;  // nothing is left of one element
        check_norm({.kind = kind, .rows = 3, .dim = dim, .dtype = dtype, .residual = dim % 3 == 0});
        check_norm(
            {.kind = kind, .rows = 2, .dim = dim, .dtype = dtype, .residual = dim % 3 != 0, .bias = true});
      }
}

TEST(CudaNorm, RowsStridesAndPlaces) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (int64_t rows : {1, 64, 1000})
      for (int64_t pad : {0, 8, 3})
        for (bool in_place : {false, true}) {
          check_norm({.rows = rows,
                      .dim = 4096,
                      .pad = pad,
                      .dtype = dtype,
                      .residual = true,
                      .in_place = in_place});
          check_norm(
              {.rows = rows, .dim = 576, .pad = pad, .dtype = dtype, .weight = false, .in_place = in_place});
        }
}

TEST(CudaNorm, Groups) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (NormKind kind : {NormKind::kRms, NormKind::kLayer})
      for (int64_t dim : {20, 64, 128})
        for (int64_t pad : {0, 13})
          for (bool own : {false, true}) {
            SCOPED_TRACE(str_cat("kind ", static_cast<int>(kind), " dim ", dim, " pad ", pad, " ",
                                 dtype_name(dtype), own ? " own weights" : ""));
            const int groups = 5;
            const int64_t rows = 300, stride = groups * dim + pad;
            std::vector<float> x = rounded(random_floats(rows * stride, 21), dtype);
            std::vector<float> weight = uniform(groups * dim, 22, 0.5f, 1.5f),
                               bias = uniform(groups * dim, 23, -1.0f, 1.0f);
            DeviceBuffer d_x = to_device(x, dtype), d_weight(weight), d_bias(bias);
            NormParams p{.kind = kind,
                         .in = d_x.as(),
                         .weight = d_weight.as<float>(),
                         .bias = d_bias.as<float>(),
                         .weight_offset = 0.5f,
                         .eps = 1e-5f,
                         .rows = rows,
                         .dim = dim,
                         .in_stride = stride,
                         .out_stride = stride,
                         .out = d_x.as(),
                         .groups = groups,
                         .group_weights = own,
                         .dtype = dtype};
            backend().norm(p);
            std::vector<float> got = from_device(d_x, dtype);
            p.in = p.out = x.data();
            p.weight = weight.data();
            p.bias = bias.data();
            ref::norm(p);
            EXPECT_LE(relative_error(got, x), tolerance(dtype));
          }
}

TEST(CudaNorm, NoneAddsOrCopies) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (int64_t dim : {4096, 33})
      for (bool residual : {false, true})
        check_norm({.kind = NormKind::kNone,
                    .rows = 5,
                    .dim = dim,
                    .dtype = dtype,
                    .residual = residual,
                    .weight = false});
}

TEST(CudaNorm, Fp8Consumer) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kF16, DType::kBF16})
    for (int64_t dim : {64, 1001, 4096, 14336, 20000})
      for (bool residual : {false, true})
        check_norm({.rows = 7, .dim = dim, .dtype = dtype, .residual = residual, .fp8 = true});
}

TEST(CudaNorm, RowsDoNotDependOnTheirNumber) {
  TACO_SKIP_WITHOUT_DEVICE();
  const int64_t rows = 1500, dim = 4096;
  DeviceBuffer in = to_device(random_floats(rows * dim, 9), DType::kBF16), weight(random_floats(dim, 10));
  auto run = [&](int64_t n) {
    DeviceBuffer out(n * dim * 2);
    backend().norm({.kind = NormKind::kRms,
                    .in = in.as(),
                    .weight = weight.as<float>(),
                    .eps = 1e-5f,
                    .rows = n,
                    .dim = dim,
                    .in_stride = dim,
                    .out_stride = dim,
                    .out = out.as(),
                    .dtype = DType::kBF16});
    return out.get<uint16_t>();
  };
  std::vector<uint16_t> one = run(1), all = run(rows);
  EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin()));
}

TEST(CudaEmbedding, LooksUpRows) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (WeightFormat format :
         {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16, WeightFormat::kQ8_0,
          WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ4_K, WeightFormat::kQ6_K})
      for (int64_t cols : {int64_t{256}, int64_t{1280}, int64_t{37}}) {
        if (cols % format_info(format).block_cols != 0) continue;
        SCOPED_TRACE(str_cat(dtype_name(dtype), " ", format_info(format).name, " cols ", cols));
        HostMatrix table{.format = format, .rows = 50, .cols = cols};
        std::vector<uint8_t> bytes(table.bytes());
        std::mt19937 rng(5);
        if (format == WeightFormat::kF32) {
          std::vector<float> values = random_floats(50 * cols, 6);
          std::memcpy(bytes.data(), values.data(), bytes.size());
        } else if (!is_quantized(format)) {
          for (size_t i = 0; i < bytes.size(); i += 2) {
            const float v = static_cast<float>(static_cast<int>(rng() % 2001) - 1000) / 256.0f;
            const uint16_t bits = format == WeightFormat::kF16 ? to_f16(v).bits : to_bf16(v).bits;
            std::memcpy(&bytes[i], &bits, 2);
          }
        } else {  // random bytes below 0x40 everywhere: scales stay ordinary numbers
          for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng() % 0x3c);
        }
        table.data = bytes.data();
        std::unique_ptr<Embedding> device = backend().prepare_embedding(table, dtype);
        EXPECT_EQ(device->rows(), 50);
        EXPECT_EQ(device->cols(), cols);
        const std::vector<int32_t> ids = {0, 7, 47, 7, 30, -100, 1000};
        const int32_t offset = 2;
        std::vector<float> start = rounded(random_floats(ids.size() * cols, 8), dtype), row(cols);
        for (bool accumulate : {false, true}) {
          std::vector<float> expected;
          for (size_t r = 0; r < ids.size(); ++r) {
            dequantize_row(table, std::clamp(ids[r] + offset, 0, 49), row.data());
            for (int64_t i = 0; i < cols; ++i)
              expected.push_back(1.5f * row[i] + (accumulate ? start[r * cols + i] : 0.0f));
          }
          DeviceBuffer d_ids(ids);
          DeviceBuffer out =
              accumulate ? to_device(start, dtype) : DeviceBuffer(start.size() * dtype_size(dtype));
          backend().embedding({.table = device.get(),
                               .ids = d_ids.as<int32_t>(),
                               .rows = static_cast<int64_t>(ids.size()),
                               .id_offset = offset,
                               .scale = 1.5f,
                               .accumulate = accumulate,
                               .out = out.as(),
                               .dtype = dtype});
          EXPECT_LE(relative_error(from_device(out, dtype), expected), tolerance(dtype));
        }
      }
}

TEST(CudaEmbedding, StandInsAreUniformAndDependOnTheSeed) {
  TACO_SKIP_WITHOUT_DEVICE();
  auto values = [&](uint64_t seed) {
    auto table = backend().prepare_embedding({.format = WeightFormat::kBF16,
                                              .rows = 64,
                                              .cols = 512,
                                              .data = nullptr,
                                              .owner = nullptr,
                                              .seed = seed},
                                             DType::kF32);
    std::vector<int32_t> ids(64);
    for (int i = 0; i < 64; ++i) ids[i] = i;
    DeviceBuffer d_ids(ids), out(64 * 512 * 4);
    backend().embedding({.table = table.get(), .ids = d_ids.as<int32_t>(), .rows = 64, .out = out.as()});
    return out.get<float>();
  };
  std::vector<float> a = values(1), again = values(1), b = values(2);
  EXPECT_EQ(a, again);
  double mean = 0, square = 0, product = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_LE(std::abs(a[i]), 1e-3f);
    mean += a[i] * 1e3 / a.size();
    square += a[i] * a[i] * 1e6 / a.size();
    product += a[i] * b[i] * 1e6 / a.size();
  }
  // Of 32,768 uniform values: standard errors 0.0032, 0.0016 and 0.0018.
  EXPECT_NEAR(mean, 0.0, 0.016);
  EXPECT_NEAR(square, 1.0 / 3, 0.008);
  EXPECT_NEAR(product, 0.0, 0.009);
}

struct RopeCase {
  int head_dim = 128, rotary = 128, heads = 8, kv_heads = 2, block_size = 16;
  int64_t rows = 9, pad = 0;
  bool interleaved = false, norms = false, scaled = false;
  DType dtype = DType::kBF16, cache = DType::kBF16;
};

// Of a stored value: half a unit in the last place, relative, and absolute near zero.
float cache_slack(DType dtype, float x, float scale) {
  const float a = std::abs(x);
  switch (dtype) {
    case DType::kF32:
      return 2e-6f * a + 1e-6f;
    case DType::kF16:
      return a / 2048 + 2e-6f;
    case DType::kBF16:
      return a / 256 + 2e-6f;
    case DType::kF8E4M3:
      return a / 16 * 1.001f + scale * 0x1p-10f * 1.001f + 2e-6f;
    default:
      return a / 8 * 1.001f + scale * 0x1p-17f * 1.001f + 2e-6f;
  }
}

float load_element(const std::vector<uint8_t>& bytes, DType dtype, int64_t i) {
  auto as = [&](auto v) {
    std::memcpy(&v, bytes.data() + i * sizeof(v), sizeof(v));
    return v;
  };
  if (dtype == DType::kF32) return as(0.0f);
  if (dtype == DType::kF16) return to_float(as(f16{}));
  if (dtype == DType::kBF16) return to_float(as(bf16{}));
  if (dtype == DType::kF8E4M3) return to_float(as(f8e4m3{}));
  return to_float(as(f8e5m2{}));
}

void check_rope(const RopeCase& c) {
  SCOPED_TRACE(str_cat("head_dim ", c.head_dim, " rotary ", c.rotary, " rows ", c.rows, " pad ", c.pad,
                       " block ", c.block_size, c.interleaved ? " interleaved" : "", c.norms ? " norms" : "",
                       " ", dtype_name(c.dtype), " cache ", dtype_name(c.cache)));
  const int64_t width = int64_t{c.heads + 2 * c.kv_heads} * c.head_dim, stride = width + c.pad;
  std::vector<float> qkv = rounded(random_floats(c.rows * stride, 11), c.dtype);
  constexpr int kPositions = 50, kBlocks = 7;
  std::vector<float> table = random_floats(kPositions * std::max(c.rotary, 1), 12, 0.7f);
  std::vector<float> q_norm = uniform(c.head_dim, 13, 0.5f, 1.5f),
                     k_norm = uniform(c.head_dim, 14, 0.5f, 1.5f),
                     q_scale = uniform(kPositions, 15, 0.5f, 1.5f);
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  for (int64_t r = 0; r < c.rows; ++r) {
    positions.push_back(static_cast<int32_t>(r * 17 % kPositions));
    slots.push_back(r % 4 == 3 || r >= kBlocks * c.block_size ? -1 : (r * 5 + 3) % (kBlocks * c.block_size));
  }
  const bool fp8 = c.cache == DType::kF8E4M3 || c.cache == DType::kF8E5M2;
  const int64_t elements = int64_t{kBlocks} * 2 * c.kv_heads * c.block_size * c.head_dim;
  // A scale so small that some keys saturate in e4m3.
  KvCacheView view{.data = nullptr,
                   .dtype = c.cache,
                   .num_blocks = kBlocks,
                   .block_size = c.block_size,
                   .num_kv_heads = c.kv_heads,
                   .head_dim = c.head_dim,
                   .k_scale = fp8 ? 0.004f : 1.0f,
                   .v_scale = fp8 ? 0.37f : 1.0f};
  DeviceBuffer d_qkv = to_device(qkv, c.dtype), d_table(table), d_q_norm(q_norm), d_k_norm(k_norm),
               d_q_scale(q_scale), d_positions(positions), d_slots(slots),
               d_cache(elements * dtype_size(c.cache), 0x11);
  RopeAndCacheParams p{.qkv = d_qkv.as(),
                       .rows = c.rows,
                       .stride = stride,
                       .num_heads = c.heads,
                       .num_kv_heads = c.kv_heads,
                       .head_dim = c.head_dim,
                       .positions = d_positions.as<int32_t>(),
                       .cos_sin = c.rotary > 0 ? d_table.as<float>() : nullptr,
                       .rotary_dim = c.rotary,
                       .interleaved = c.interleaved,
                       .slots = d_slots.as<int64_t>(),
                       .q_norm = c.norms ? d_q_norm.as<float>() : nullptr,
                       .k_norm = c.norms ? d_k_norm.as<float>() : nullptr,
                       .qk_norm_eps = 1e-6f,
                       .q_scale = c.scaled ? d_q_scale.as<float>() : nullptr,
                       .cache = view,
                       .dtype = c.dtype};
  p.cache.data = d_cache.as();
  backend().rope_and_cache(p);
  std::vector<float> got = from_device(d_qkv, c.dtype);
  std::vector<uint8_t> cache = d_cache.get<uint8_t>();

  RopeAndCacheParams q = p;
  std::vector<float> plain(elements, -77.0f);  // not written
  q.qkv = qkv.data();
  q.positions = positions.data();
  q.cos_sin = c.rotary > 0 ? table.data() : nullptr;
  q.slots = slots.data();
  q.q_norm = c.norms ? q_norm.data() : nullptr;
  q.k_norm = c.norms ? k_norm.data() : nullptr;
  q.q_scale = c.scaled ? q_scale.data() : nullptr;
  q.cache = view;
  q.cache.dtype = DType::kF32;
  q.cache.data = plain.data();
  ref::rope_and_cache(q);
  EXPECT_LE(relative_error(columns(got, c.rows, int64_t{c.heads} * c.head_dim, stride),
                           columns(qkv, c.rows, int64_t{c.heads} * c.head_dim, stride)),
            tolerance(c.dtype));
  const float largest = c.cache == DType::kF8E4M3 ? 448.0f : 57344.0f;
  int wrong = 0, saturated = 0;
  int64_t i = 0;
  for (int64_t block = 0; block < kBlocks; ++block)
    for (int value = 0; value < 2; ++value)
      for (int h = 0; h < c.kv_heads; ++h)
        for (int token = 0; token < c.block_size; ++token)
          for (int d = 0; d < c.head_dim; ++d, ++i) {
            const float expected = ref::kv_load(q.cache, block, value, h, token, d);
            if (expected == -77.0f) {
              for (size_t b = 0; b < dtype_size(c.cache); ++b)
                wrong += cache[i * dtype_size(c.cache) + b] != 0x11;
              continue;
            }
            const float scale = value ? view.v_scale : view.k_scale;
            float x = load_element(cache, c.cache, i), wanted = expected;
            if (fp8) {
              x *= scale;
              wanted = std::clamp(expected, -largest * scale, largest * scale);
              saturated += wanted != expected;
            }
            wrong += !(std::abs(x - wanted) <= cache_slack(c.cache, wanted, scale));
          }
  EXPECT_EQ(wrong, 0);
  if (c.cache == DType::kF8E4M3) {
    EXPECT_GT(saturated, 0);
  }
}

TEST(CudaRope, HeadDims) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (int head_dim : {16, 20, 40, 64, 80, 96, 112, 128, 192, 256, 576})
      for (bool interleaved : {false, true})
        for (bool norms : {false, true}) {
          check_rope({.head_dim = head_dim,
                      .rotary = head_dim,
                      .interleaved = interleaved,
                      .norms = norms,
                      .dtype = dtype,
                      .cache = dtype});
          // Partial: of a size that the fast kernel takes, where there is one, and one that it does not.
          check_rope({.head_dim = head_dim,
                      .rotary = head_dim >= 64 ? head_dim / 4 : 8,
                      .interleaved = interleaved,
                      .norms = norms,
                      .dtype = dtype,
                      .cache = dtype});
        }
}

TEST(CudaRope, Caches) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (DType cache : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3, DType::kF8E5M2})
      for (int block_size : {8, 16, 24, 32})
        for (int head_dim : {128, 36})
          check_rope({.head_dim = head_dim,
                      .rotary = head_dim,
                      .block_size = block_size,
                      .rows = 33,
                      .dtype = dtype,
                      .cache = cache});
}

TEST(CudaRope, StridesRowsAndNoRotation) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (int64_t rows : {1, 130})
      for (int64_t pad : {0, 8, 5})
        for (int rotary : {0, 32, 128})
          for (bool norms : {false, true})
            check_rope(
                {.rotary = rotary, .rows = rows, .pad = pad, .norms = norms, .dtype = dtype, .cache = dtype});
}

TEST(CudaRope, ScaledQueries) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (int head_dim : {20, 128})
      for (int rotary : {0, 16})
        for (bool norms : {false, true})
          check_rope({.head_dim = head_dim,
                      .rotary = rotary,
                      .rows = 33,
                      .norms = norms,
                      .scaled = true,
                      .dtype = dtype,
                      .cache = dtype});
}

TEST(CudaRows, MaskLogits) {
  TACO_SKIP_WITHOUT_DEVICE();
  std::vector<float> logits = random_floats(7 * 1000, 31);
  const std::vector<int32_t> ids{0, 999, 512, 3};
  DeviceBuffer d(logits), d_ids(ids);
  backend().mask_logits({d.as<float>(), 7, 1000, d_ids.as<int32_t>(), 4});
  ref::mask_logits({logits.data(), 7, 1000, ids.data(), 4});
  EXPECT_EQ(d.get<float>(), logits);
  EXPECT_EQ(std::count(logits.begin(), logits.end(), -INFINITY), 28);
}

TEST(CudaRows, Gather) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : kActivations)
    for (int64_t dim : {1, 7, 64, 4096, 4100})
      for (int64_t pad : {0, 1}) {
        const int64_t stride = dim + pad;
        std::vector<float> in = rounded(random_floats(20 * stride, 21), dtype), expected(5 * dim);
        std::vector<int32_t> index = {19, 0, 3, 3, 8};
        DeviceBuffer d_in = to_device(in, dtype), d_index(index), out(expected.size() * dtype_size(dtype));
        GatherRowsParams p{d_in.as(), d_index.as<int32_t>(), 5, dim, stride, out.as(), dtype};
        backend().gather_rows(p);
        p.in = in.data();
        p.index = index.data();
        p.out = expected.data();
        ref::gather_rows(p);
        EXPECT_EQ(from_device(out, dtype), expected);
      }
}

TEST(CudaRows, ScaleLogits) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (float softcap : {0.0f, 30.0f})
    for (float scale : {1.0f, 0.0625f}) {
      std::vector<float> x = random_floats(100001, 22, 20.0f);
      for (int i = 0; i < 100; ++i) x[i] *= 1e-4f * i;
      x[7] = 1e30f;
      x[8] = -1e30f;
      if (softcap == 0.0f) x[7] = x[8] = 0;
      DeviceBuffer d(x);
      backend().scale_logits({d.as<float>(), static_cast<int64_t>(x.size()), scale, softcap});
      ref::scale_logits({x.data(), static_cast<int64_t>(x.size()), scale, softcap});
      std::vector<float> got = d.get<float>();
      EXPECT_LE(relative_error(got, x), 1e-6);
      for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(got[i], x[i], 1e-6f * std::abs(x[i]) + 1e-7f) << i;
    }
}

TEST(CudaRows, CopyBlocks) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3})
    for (int head_dim : {128, 5}) {
      KvCacheView view{.data = nullptr,
                       .dtype = dtype,
                       .num_blocks = 9,
                       .block_size = 8,
                       .num_kv_heads = 3,
                       .head_dim = head_dim};
      const size_t bytes = 2 * 8 * 3 * static_cast<size_t>(head_dim) * dtype_size(dtype);
      std::vector<uint8_t> cache(9 * bytes);
      std::mt19937 rng(3);
      for (uint8_t& b : cache) b = static_cast<uint8_t>(rng());
      const std::vector<int32_t> pairs = {0, 5, 8, 1, 2, 7};
      DeviceBuffer d_cache(cache), d_pairs(pairs);
      view.data = d_cache.as();
      backend().copy_blocks({view, d_pairs.as<int32_t>(), 3});
      for (size_t i = 0; i < pairs.size(); i += 2)
        std::copy_n(cache.begin() + static_cast<int64_t>(pairs[i] * bytes), bytes,
                    cache.begin() + static_cast<int64_t>(pairs[i + 1] * bytes));
      EXPECT_EQ(d_cache.get<uint8_t>(), cache);
    }
}

TEST(CudaRows, CopySlots) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3})
    for (int head_dim : {128, 5}) {
      SCOPED_TRACE(str_cat(dtype_name(dtype), " head_dim ", head_dim));
      const int layers = 3, blocks = 9, block_size = 8, heads = 3;
      KvCacheView view{.data = nullptr,
                       .dtype = dtype,
                       .num_blocks = blocks,
                       .block_size = block_size,
                       .num_kv_heads = heads,
                       .head_dim = head_dim};
      const size_t row = static_cast<size_t>(head_dim) * dtype_size(dtype);
      const size_t layer = size_t{2} * blocks * block_size * heads * row;
      std::vector<uint8_t> cache(layers * layer);
      std::mt19937 rng(3);
      for (uint8_t& b : cache) b = static_cast<uint8_t>(rng());
      // In order within a group: 17 is read before it is written.
      const std::vector<int64_t> pairs = {17, 15, 19, 17, 20, 18, 71, 40, 3, 1};
      const std::vector<int32_t> groups = {0, 3, 4, 5};
      DeviceBuffer d_cache(cache), d_pairs(pairs), d_groups(groups);
      view.data = d_cache.as();
      backend().copy_slots({.cache = view,
                            .layers = layers,
                            .layer_bytes = static_cast<int64_t>(layer),
                            .pairs = d_pairs.as<int64_t>(),
                            .group_start = d_groups.as<int32_t>(),
                            .num_groups = 3});
      for (int l = 0; l < layers; ++l)
        for (size_t i = 0; i < pairs.size(); i += 2)
          for (int panel = 0; panel < 2 * heads; ++panel) {
            auto place = [&](int64_t slot) {
              const int64_t token = (slot / block_size * 2 * heads + panel) * block_size + slot % block_size;
              return cache.begin() + static_cast<int64_t>(l * layer) + token * static_cast<int64_t>(row);
            };
            std::copy_n(place(pairs[i]), row, place(pairs[i + 1]));
          }
      EXPECT_EQ(d_cache.get<uint8_t>(), cache);
    }
}

TEST(CudaRows, PatchIds) {
  TACO_SKIP_WITHOUT_DEVICE();
  std::vector<SampleResult> results(3);
  for (int i = 0; i < 3; ++i) results[i] = {100 + i, 0.0f, 1, SampleError::kNone};
  results[2] = {-1, 0.0f, 0, SampleError::kNaN};
  std::vector<int32_t> ids = {7, 8, 9, 10, 11}, source = {-1, 1, -1, 0, 2};
  DeviceBuffer d_ids(ids), d_source(source), d_results(results);
  backend().patch_ids({d_ids.as<int32_t>(), d_source.as<int32_t>(), 5, d_results.as<SampleResult>()});
  EXPECT_EQ(d_ids.get<int32_t>(), (std::vector<int32_t>{7, 101, 9, 100, 0}));  // 0: any valid id
}

}  // namespace
}  // namespace taco::cuda::test
