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
  Experts(Backend& backend, int count, int64_t hidden, int64_t intermediate, bool gated) {
    std::mt19937 rng(11);
    std::normal_distribution<float> normal(0.0f, 0.2f);
    dense.resize(count);
    for (ref::DenseExpert& e : dense) {
      const int64_t up_rows = gated ? 2 * intermediate : intermediate;
      e.gate_up.resize(up_rows * hidden);
      e.down.resize(hidden * intermediate);
      for (float& x : e.gate_up) x = normal(rng);
      for (float& x : e.down) x = normal(rng);
      const HostMatrix up{WeightFormat::kF32, up_rows, hidden, e.gate_up.data(), nullptr};
      const HostMatrix down_matrix{WeightFormat::kF32, hidden, intermediate, e.down.data(), nullptr};
      // Gate and up are two parts of one weight, as a checkpoint has them.
      const HostMatrix halves[] = {{WeightFormat::kF32, intermediate, hidden, e.gate_up.data(), nullptr},
                                   {WeightFormat::kF32, intermediate, hidden,
                                    e.gate_up.data() + (gated ? intermediate * hidden : 0), nullptr}};
      owned.push_back(gated ? backend.prepare_linear(halves, nullptr, {.compute = DType::kF32})
                            : backend.prepare_linear({&up, 1}, nullptr, {.compute = DType::kF32}));
      gate_up.push_back(owned.back().get());
      owned.push_back(backend.prepare_linear({&down_matrix, 1}, nullptr, {.compute = DType::kF32}));
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

INSTANTIATE_TEST_SUITE_P(Levels, MoeTest, testing::ValuesIn(available_levels()), level_name);

TEST(Route, TiesGoToTheLowestId) {
  const float logits[] = {1, 3, 3, 0, 3};
  int32_t experts[2];
  float weights[2];
  route(logits, 5, 2, MoeRouting::kTopKSoftmax, true, experts, weights);
  EXPECT_EQ(experts[0], 1);
  EXPECT_EQ(experts[1], 2);
  EXPECT_FLOAT_EQ(weights[0], 0.5f);
  EXPECT_FLOAT_EQ(weights[1], 0.5f);
}

TEST(Route, NaNsStillChooseExpertsThatExist) {
  const float logits[] = {NAN, NAN, NAN};
  int32_t experts[3];
  float weights[3];
  route(logits, 3, 3, MoeRouting::kSoftmaxTopK, true, experts, weights);
  for (int k = 0; k < 3; ++k) EXPECT_EQ(experts[k], k);
  EXPECT_TRUE(std::isnan(weights[0]));
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
