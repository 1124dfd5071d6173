// Mixtures of experts against the reference: routing rules, shapes, types, tile sizes.
#include "backend/cpu/ref/ref.h"
#include "backend/cuda/linear/linear.h"
#include "backend/cuda/moe/moe_kernels.h"
#include "weights.h"

namespace taco::cuda::test {
namespace {

struct Case {
  int64_t rows, hidden, intermediate;
  int experts, top_k;
  DType dtype = DType::kBF16;
  bool gated = true, fp8 = false, bias = false;
  MoeRouting routing = MoeRouting::kSoftmaxTopK;
  bool renormalize = true;
  Activation activation = Activation::kSilu;
  bool skewed = false;  // nearly all rows choose the same experts
  bool shared = false, shared_gate = false;
  Gating gating{};
  float weight_scale = 1.0f;
};

std::string text(const Case& c) {
  return str_cat(c.rows, " rows, hidden ", c.hidden, ", intermediate ", c.intermediate, ", ", c.top_k, " of ",
                 c.experts, " ", dtype_name(c.dtype), c.gated ? " gated" : "", c.fp8 ? " fp8" : "",
                 " routing ", static_cast<int>(c.routing), c.renormalize ? " renormalized" : "",
                 c.skewed ? " skewed" : "", c.bias ? " bias" : "", c.gating.plain() ? "" : " limited",
                 c.shared ? " shared" : "", c.shared_gate ? " by a gate" : "");
}

struct Experts {
  explicit Experts(const Case& c) {
    const int64_t up_rows = c.gated ? 2 * c.intermediate : c.intermediate;
    for (int e = 0; e < c.experts; ++e) {
      TestMatrix up = random_matrix(WeightFormat::kF32, up_rows, c.hidden, 100 + e);
      TestMatrix out = random_matrix(WeightFormat::kF32, c.hidden, c.intermediate, 900 + e);
      std::vector<float> up_bias, down_bias;
      if (c.bias) {
        up_bias = random_floats(up_rows, 1700 + e);
        down_bias = random_floats(c.hidden, 2500 + e);
      }
      owned.push_back(backend().prepare_linear(
          {&up.host, 1}, c.bias ? up_bias.data() : nullptr,
          {.compute = c.dtype, .gated = c.gated, .fp8 = c.fp8, .activation = c.dtype}));
      gate_up.push_back(owned.back().get());
      owned.push_back(backend().prepare_linear({&out.host, 1}, c.bias ? down_bias.data() : nullptr,
                                               {.compute = c.dtype, .fp8 = c.fp8, .activation = c.dtype}));
      down.push_back(owned.back().get());
      dense.push_back(
          {values(up, c.dtype, *gate_up.back()), values(out, c.dtype, *down.back()), up_bias, down_bias});
    }
  }
  static std::vector<float> values(const TestMatrix& m, DType dtype, const Linear& linear) {
    std::vector<float> w = rounded(m.values, dtype);
    return as_cuda(linear).dtype == DType::kF8E4M3 ? through_fp8_tensor(w) : w;
  }
  std::vector<std::unique_ptr<Linear>> owned;
  std::vector<const Linear*> gate_up, down;
  std::vector<cpu::ref::DenseExpert> dense;
};

void check(const Case& c, const Experts& experts, bool batch_invariant = true, double limit = 0) {
  SCOPED_TRACE(text(c));
  CudaBackend& device = backend(batch_invariant);
  std::vector<float> x = rounded(random_floats(c.rows * c.hidden, 41), c.dtype);
  const int64_t stride = c.experts + c.shared_gate;
  std::vector<float> logits = random_floats(c.rows * stride, 42, 1.5f), expected(c.rows * c.hidden);
  std::vector<float> shared = rounded(random_floats(c.shared ? c.rows * c.hidden : 1, 43), c.dtype);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = std::round(logits[i] * 2) / 2;  // ties
    if (c.skewed) logits[i] -= 0.1f * static_cast<float>(i % stride) * static_cast<float>(i % stride);
  }
  MoeParams p{};
  p.in = x.data();
  p.router_logits = logits.data();
  p.rows = c.rows;
  p.hidden = c.hidden;
  p.intermediate = c.intermediate;
  p.num_experts = c.experts;
  p.top_k = c.top_k;
  p.routing = c.routing;
  p.renormalize = c.renormalize;
  p.router_stride = stride;
  p.jitter = 0.3f;
  p.weight_scale = c.weight_scale;
  p.gating = c.gating;
  if (c.shared) p.shared = shared.data();
  if (c.shared_gate) p.shared_gate = logits.data() + c.experts;
  p.gate_up = experts.gate_up.data();
  p.down = experts.down.data();
  p.gated = c.gated;
  p.activation = c.activation;
  p.out = expected.data();
  cpu::ref::moe(p, experts.dense);

  DeviceBuffer in = to_device(x, c.dtype), device_logits(logits), device_shared = to_device(shared, c.dtype);
  DeviceBuffer out(c.rows * c.hidden * dtype_size(c.dtype));
  p.in = in.as();
  p.router_logits = device_logits.as<float>();
  p.out = out.as();
  if (c.shared) p.shared = device_shared.as();
  if (c.shared_gate) p.shared_gate = device_logits.as<float>() + c.experts;
  p.dtype = c.dtype;
  device.moe(p);
  device.synchronize();
  const std::vector<float> got = from_device(out, c.dtype);
  EXPECT_LE(relative_error(got, expected), limit > 0 ? limit : tolerance(c.dtype));

  if (!batch_invariant) return;
  // A row alone gets the same bits, whatever tiles it was in.
  DeviceBuffer alone(c.hidden * dtype_size(c.dtype));
  p.in = in.as<char>() + (c.rows - 1) * c.hidden * dtype_size(c.dtype);
  p.router_logits = device_logits.as<float>() + (c.rows - 1) * stride;
  if (c.shared) p.shared = device_shared.as<char>() + (c.rows - 1) * c.hidden * dtype_size(c.dtype);
  if (c.shared_gate) p.shared_gate += (c.rows - 1) * stride;
  p.rows = 1;
  p.out = alone.as();
  device.moe(p);
  device.synchronize();
  EXPECT_EQ(from_device(alone, c.dtype), std::vector<float>(got.end() - c.hidden, got.end()));
}

TEST(CudaMoe, RoutingRules) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (bool gated : {true, false}) {
    Case c{.rows = 33, .hidden = 64, .intermediate = 48, .experts = 8, .top_k = 3, .gated = gated};
    const Experts experts(c);
    for (MoeRouting routing : {MoeRouting::kSoftmaxTopK, MoeRouting::kTopKSoftmax, MoeRouting::kSigmoidTopK,
                               MoeRouting::kSparseMixer}) {
      for (bool renormalize : {true, false}) {
        for (int64_t rows : {1, 33, 100}) {
          c.rows = rows;
          c.routing = routing;
          c.renormalize = renormalize;
          c.activation = gated ? Activation::kSilu : Activation::kGelu;
          check(c, experts);
        }
      }
    }
  }
}

// Biases, limited gates, a scale, and an expert for all with and without a gate, in every combination and on
// every path: one row, tiles of the tensor cores, many rows, the plain cores.
TEST(CudaMoe, WhatMixturesDifferIn) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    for (int flags = 0; flags < 16; ++flags) {
      const bool bias = flags & 1, limited = flags & 2, shared = flags & 4, gate = flags & 8;
      Case c{.rows = 1,
             .hidden = 136,
             .intermediate = 80,
             .experts = 5,
             .top_k = 2,
             .dtype = dtype,
             .bias = bias,
             .activation = Activation::kGeluQuick,
             .shared = shared,
             .shared_gate = shared && gate};
      if (limited) {
        c.gating = {.limit = 0.8f, .up_offset = 1.0f};
        c.weight_scale = 2.5f;
      }
      const Experts weights(c);
      for (int64_t rows : {1, 40, 700}) {
        c.rows = rows;
        check(c, weights);
        check(c, weights, false);
      }
    }
  }
}

TEST(CudaMoe, ShapesAndTypes) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (auto [hidden, intermediate, experts, top_k] : {std::array<int64_t, 4>{64, 96, 4, 2},
                                                        {200, 88, 5, 2},
                                                        {136, 264, 40, 6},
                                                        {72, 41, 4, 2},
                                                        {50, 30, 3, 3}}) {
      for (bool gated : {true, false}) {
        Case c{.rows = 1,
               .hidden = hidden,
               .intermediate = intermediate,
               .experts = static_cast<int>(experts),
               .top_k = static_cast<int>(top_k),
               .dtype = dtype,
               .gated = gated};
        const Experts weights(c);
        for (int64_t rows : {1, 7, 90}) {
          c.rows = rows;
          check(c, weights);
        }
      }
    }
  }
}

// Every tile size, with experts that have none, few and many tiles.
TEST(CudaMoe, Tiles) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (bool fp8 : {false, true}) {
    for (DType dtype : {DType::kBF16, DType::kF16}) {
      Case c{.rows = 1,
             .hidden = 144,
             .intermediate = 160,
             .experts = 6,
             .top_k = 2,
             .dtype = dtype,
             .fp8 = fp8};
      const Experts experts(c);
      for (int64_t rows : {1, 3, 20, 60, 110, 500}) {
        for (bool skewed : {false, true}) {
          c.rows = rows;
          c.skewed = skewed;
          check(c, experts);
        }
      }
    }
  }
}

// Few rows whose second product is split along K.
TEST(CudaMoe, LongSecondProducts) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (bool fp8 : {false, true}) {
    for (int64_t intermediate : {4096, 6200 / 16 * 16, 9000 / 16 * 16}) {
      Case c{.rows = 1, .hidden = 72, .intermediate = intermediate, .experts = 3, .top_k = 2, .fp8 = fp8};
      const Experts experts(c);
      for (int64_t rows : {1, 5, 40}) {
        c.rows = rows;
        check(c, experts, false);
        check(c, experts, true);
      }
    }
  }
}

// Experts with whole tiles of rows, on Hopper by wgmma.
TEST(CudaMoe, ManyRows) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    for (bool gated : {true, false}) {
      Case c{.rows = 1,
             .hidden = 136,
             .intermediate = 272,
             .experts = 3,
             .top_k = 2,
             .dtype = dtype,
             .gated = gated};
      const Experts experts(c);
      for (int64_t rows : {200, 700}) {
        for (bool skewed : {false, true}) {
          c.rows = rows;
          c.skewed = skewed;
          check(c, experts, false);
        }
      }
    }
  }
}

// FP8 experts with many rows read FP8 rows: three bits of mantissa in both products' inputs.
TEST(CudaMoe, ManyRowsInFp8) {
  TACO_SKIP_WITHOUT_DEVICE();
  if (!backend().context().hopper()) GTEST_SKIP() << "needs Hopper";
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    for (bool gated : {true, false}) {
      Case c{.rows = 300,
             .hidden = 144,
             .intermediate = 272,
             .experts = 3,
             .top_k = 2,
             .dtype = dtype,
             .gated = gated,
             .fp8 = true};
      const Experts experts(c);
      for (bool skewed : {false, true}) {
        c.skewed = skewed;
        check(c, experts, false, 0.06);
      }
    }
  }
}

TEST(CudaMoe, TilesGrowWithTheRows) {
  EXPECT_EQ(grouped_tile(1, 2, 8), 8);
  EXPECT_EQ(grouped_tile(8, 2, 8), 8);
  EXPECT_EQ(grouped_tile(32, 2, 8), 16);
  EXPECT_EQ(grouped_tile(64, 2, 8), 32);
  EXPECT_EQ(grouped_tile(128, 2, 8), 64);
  EXPECT_EQ(grouped_tile(8192, 2, 8), 128);
}

TEST(CudaMoe, ReplaysInAGraphWithOtherRouting) {
  TACO_SKIP_WITHOUT_DEVICE();
  const Case c{.rows = 12, .hidden = 128, .intermediate = 64, .experts = 8, .top_k = 2};
  const Experts experts(c);
  const std::vector<float> x = rounded(random_floats(c.rows * c.hidden, 51), c.dtype);
  DeviceBuffer in = to_device(x, c.dtype), out(c.rows * c.hidden * 2);
  DeviceBuffer logits(c.rows * c.experts * sizeof(float));
  MoeParams p{};
  p.in = in.as();
  p.router_logits = logits.as<float>();
  p.rows = c.rows;
  p.hidden = c.hidden;
  p.intermediate = c.intermediate;
  p.num_experts = c.experts;
  p.top_k = c.top_k;
  p.routing = c.routing;
  p.renormalize = true;
  p.gate_up = experts.gate_up.data();
  p.down = experts.down.data();
  p.activation = c.activation;
  p.out = out.as();
  p.dtype = c.dtype;
  std::unique_ptr<Graph> graph;
  for (uint64_t seed : {61, 62, 63}) {
    const std::vector<float> values = random_floats(c.rows * c.experts, seed);
    backend().upload(logits.as(), values.data(), values.size() * sizeof(float));
    if (!graph) {
      backend().moe(p);
      graph = backend().capture([&] { backend().moe(p); });
    }
    backend().replay(*graph);
    const std::vector<float> got = from_device(out, c.dtype);
    std::vector<float> expected(x.size());
    MoeParams reference = p;
    reference.in = x.data();
    reference.router_logits = values.data();
    reference.out = expected.data();
    cpu::ref::moe(reference, experts.dense);
    EXPECT_LE(relative_error(got, expected), tolerance(c.dtype)) << seed;
  }
}

TEST(CudaMoe, NaNsStillChooseExpertsThatExist) {
  TACO_SKIP_WITHOUT_DEVICE();
  const Case c{.rows = 2, .hidden = 64, .intermediate = 32, .experts = 4, .top_k = 2};
  const Experts experts(c);
  std::vector<float> x = rounded(random_floats(c.rows * c.hidden, 71), c.dtype), logits(8, NAN);
  logits[4] = 1.0f, logits[5] = 2.0f, logits[6] = 0.0f, logits[7] = -1.0f;
  DeviceBuffer in = to_device(x, c.dtype), device_logits(logits), out(c.rows * c.hidden * 2);
  MoeParams p{};
  p.in = in.as();
  p.router_logits = device_logits.as<float>();
  p.rows = 2;
  p.hidden = c.hidden;
  p.intermediate = c.intermediate;
  p.num_experts = c.experts;
  p.top_k = c.top_k;
  p.routing = c.routing;
  p.renormalize = true;
  p.gate_up = experts.gate_up.data();
  p.down = experts.down.data();
  p.activation = c.activation;
  p.out = out.as();
  p.dtype = c.dtype;
  backend().moe(p);
  const std::vector<float> got = from_device(out, c.dtype);
  EXPECT_TRUE(std::isnan(got[0]));
  for (int64_t i = c.hidden; i < 2 * c.hidden; ++i) ASSERT_TRUE(std::isfinite(got[i]));
}

}  // namespace
}  // namespace taco::cuda::test
