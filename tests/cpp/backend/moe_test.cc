// Routing and the mixture of experts through the whole backend, against the reference.
#include <cmath>
#include <cstring>
#include <random>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/ref/ref.h"
#include "base/error.h"
#include "cpu_levels.h"

namespace taco::cpu {
namespace {

struct Experts {
  Experts(Backend& backend, int count, int64_t hidden, int64_t intermediate, bool gated, bool bias = false) {
    std::mt19937 rng(11);
    std::normal_distribution<float> normal(0.0f, 0.2f);
    dense.resize(count);
    for (ref::DenseExpert& e : dense) {
      const int64_t up_rows = gated ? 2 * intermediate : intermediate;
      e.gate_up.resize(up_rows * hidden);
      e.down.resize(hidden * intermediate);
      for (float& x : e.gate_up) x = normal(rng);
      for (float& x : e.down) x = normal(rng);
      if (bias) {
        e.gate_up_bias.resize(up_rows);
        e.down_bias.resize(hidden);
        for (float& x : e.gate_up_bias) x = normal(rng);
        for (float& x : e.down_bias) x = normal(rng);
      }
      const float* up_bias = bias ? e.gate_up_bias.data() : nullptr;
      const float* down_bias = bias ? e.down_bias.data() : nullptr;
      const HostMatrix up{WeightFormat::kF32, up_rows, hidden, e.gate_up.data(), nullptr};
      const HostMatrix down_matrix{WeightFormat::kF32, hidden, intermediate, e.down.data(), nullptr};
      // Gate and up are two parts of one weight, as a checkpoint has them.
      const HostMatrix halves[] = {{WeightFormat::kF32, intermediate, hidden, e.gate_up.data(), nullptr},
                                   {WeightFormat::kF32, intermediate, hidden,
                                    e.gate_up.data() + (gated ? intermediate * hidden : 0), nullptr}};
      owned.push_back(gated ? backend.prepare_linear(halves, up_bias, {.compute = DType::kF32})
                            : backend.prepare_linear({&up, 1}, up_bias, {.compute = DType::kF32}));
      gate_up.push_back(owned.back().get());
      owned.push_back(backend.prepare_linear({&down_matrix, 1}, down_bias, {.compute = DType::kF32}));
      down.push_back(owned.back().get());
    }
  }
  std::vector<ref::DenseExpert> dense;
  std::vector<std::unique_ptr<Linear>> owned;
  std::vector<const Linear*> gate_up, down;
};

class MoeTest : public testing::TestWithParam<Level> {};

TEST_P(MoeTest, AgreesWithTheReference) {
  LevelGuard guard(GetParam());
  CpuBackend backend(2);
  const int64_t hidden = 48, intermediate = 40;
  for (bool gated : {true, false}) {
    Experts experts(backend, 8, hidden, intermediate, gated);
    for (MoeRouting routing :
         {MoeRouting::kSoftmaxTopK, MoeRouting::kTopKSoftmax, MoeRouting::kSigmoidTopK}) {
      for (bool renormalize : {true, false}) {
        for (int64_t rows : {1, 33}) {
          std::mt19937 rng(5);
          std::normal_distribution<float> normal;
          std::vector<float> in(rows * hidden), logits(rows * 8), out(rows * hidden, NAN), expected = out;
          for (float& x : in) x = normal(rng);
          for (float& x : logits) x = std::round(normal(rng) * 2) / 2;  // ties
          MoeParams p{};
          p.in = in.data();
          p.router_logits = logits.data();
          p.rows = rows;
          p.hidden = hidden;
          p.intermediate = intermediate;
          p.num_experts = 8;
          p.top_k = 3;
          p.routing = routing;
          p.renormalize = renormalize;
          p.gate_up = experts.gate_up.data();
          p.down = experts.down.data();
          p.gated = gated;
          p.activation = Activation::kSilu;
          p.out = out.data();
          backend.moe(p);
          MoeParams reference = p;
          reference.out = expected.data();
          ref::moe(reference, experts.dense);
          for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-5f) << i;
          // A row alone gets the same bits.
          std::vector<float> alone(hidden, NAN);
          p.in = in.data() + (rows - 1) * hidden;
          p.router_logits += (rows - 1) * 8;
          p.rows = 1;
          p.out = alone.data();
          backend.moe(p);
          EXPECT_EQ(0, std::memcmp(alone.data(), out.data() + (rows - 1) * hidden, hidden * sizeof(float)));
        }
      }
    }
  }
}

// Biases, limited gates, a scale, and an expert for all with and without a gate, in every combination.
TEST_P(MoeTest, WhatMixturesDifferIn) {
  LevelGuard guard(GetParam());
  CpuBackend backend(2);
  const int64_t hidden = 48, intermediate = 40, rows = 21, experts_count = 6;
  for (int flags = 0; flags < 32; ++flags) {
    const bool bias = flags & 1, limited = flags & 2, shared = flags & 4, shared_gate = flags & 8,
               mixer = flags & 16;
    Experts experts(backend, experts_count, hidden, intermediate, true, bias);
    std::mt19937 rng(6);
    std::normal_distribution<float> normal;
    const int64_t stride = experts_count + shared_gate;
    std::vector<float> in(rows * hidden), logits(rows * stride), common(rows * hidden);
    std::vector<float> out(rows * hidden, NAN), expected = out;
    for (float& x : in) x = normal(rng);
    for (float& x : logits) x = normal(rng);
    for (float& x : common) x = normal(rng);
    MoeParams p{};
    p.in = in.data();
    p.router_logits = logits.data();
    p.rows = rows;
    p.hidden = hidden;
    p.intermediate = intermediate;
    p.num_experts = experts_count;
    p.top_k = 2;
    p.routing = mixer ? MoeRouting::kSparseMixer : MoeRouting::kSoftmaxTopK;
    p.renormalize = false;
    p.router_stride = stride;
    p.jitter = 0.3f;
    p.weight_scale = limited ? 2.5f : 1.0f;
    p.gate_up = experts.gate_up.data();
    p.down = experts.down.data();
    p.activation = Activation::kGeluQuick;
    if (limited) p.gating = {.limit = 0.8f, .up_offset = 1.0f};
    p.shared = shared ? common.data() : nullptr;
    p.shared_gate = shared && shared_gate ? logits.data() + experts_count : nullptr;
    p.out = out.data();
    backend.moe(p);
    p.out = expected.data();
    ref::moe(p, experts.dense);
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-5f) << flags << " " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, MoeTest, testing::ValuesIn(available_levels()), level_name);

MoeParams rule(int num_experts, int top_k, MoeRouting routing) {
  MoeParams p{};
  p.num_experts = num_experts;
  p.top_k = top_k;
  p.routing = routing;
  p.renormalize = true;
  return p;
}

TEST(Route, TiesGoToTheLowestId) {
  const float logits[] = {1, 3, 3, 0, 3};
  int32_t experts[2];
  float weights[2];
  route(rule(5, 2, MoeRouting::kTopKSoftmax), logits, experts, weights);
  EXPECT_EQ(experts[0], 1);
  EXPECT_EQ(experts[1], 2);
  EXPECT_FLOAT_EQ(weights[0], 0.5f);
  EXPECT_FLOAT_EQ(weights[1], 0.5f);
}

TEST(Route, NaNsStillChooseExpertsThatExist) {
  const float logits[] = {NAN, NAN, NAN};
  int32_t experts[3];
  float weights[3];
  route(rule(3, 3, MoeRouting::kSoftmaxTopK), logits, experts, weights);
  for (int k = 0; k < 3; ++k) EXPECT_EQ(experts[k], k);
  EXPECT_TRUE(std::isnan(weights[0]));
}

TEST(Route, SparseMixerComparesWhatIsNear) {
  // Of 4 and its neighbours within 5 %: 4, 3.9. Then of 3.9 and what is left: 3.9, 3.75.
  const float logits[] = {3.75f, 4.0f, -9.0f, 3.9f};
  int32_t experts[2];
  float weights[2];
  MoeParams p = rule(4, 2, MoeRouting::kSparseMixer);
  p.renormalize = false;
  p.jitter = 0.025f;
  route(p, logits, experts, weights);
  EXPECT_EQ(experts[0], 1);
  EXPECT_EQ(experts[1], 3);
  EXPECT_NEAR(weights[0], 1 / (1 + std::exp(-0.1)), 1e-6);
  EXPECT_NEAR(weights[1], 1 / (1 + std::exp(-0.15)), 1e-6);
}

TEST(CpuBackend, HostParallelDoesEveryItemOnceAndPassesErrorsOn) {
  CpuBackend backend(2);
  std::vector<std::atomic<int>> done(100);
  backend.host_parallel(100, [&](int64_t i, int thread) {
    EXPECT_LT(thread, backend.host_threads());
    ++done[i];
  });
  for (auto& d : done) EXPECT_EQ(d, 1);
  EXPECT_THROW(backend.host_parallel(10,
                                     [](int64_t i, int) {
                                       if (i == 7) fail(ErrorCode::kInvalidArgument, "seven");
                                     }),
               Error);
}

}  // namespace
}  // namespace taco::cpu
