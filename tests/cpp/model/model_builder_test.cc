// ModelSpec validation and the ModelBuilder's checks. Needs nothing but the CPU backend.
#include <gtest/gtest.h>

#include "../exec/tiny_model.h"
#include "base/error.h"

namespace taco {
namespace {

using testing::random_model;
using testing::tiny_spec;

std::string error_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

HostMatrix floats(int64_t rows, int64_t cols) {
  auto data = std::make_shared<std::vector<float>>(rows * cols, 0.5f);
  return {.format = WeightFormat::kF32, .rows = rows, .cols = cols, .data = data->data(), .owner = data};
}

TEST(ModelSpec, RejectsWhatNoModelCanHave) {
  auto with = [](auto change) {
    ModelSpec s = tiny_spec();
    change(s);
    return error_of([&] { validate(s); });
  };
  EXPECT_EQ(with([](ModelSpec&) {}), "");
  EXPECT_NE(with([](ModelSpec& s) { s.layers.clear(); }).find("at least one layer"), std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[1].attn.num_kv_heads = 3; }).find("layer 1"), std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].attn.rope = 4; }).find("rope 4"), std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.ropes[0].inv_freq.pop_back(); }).find("inv_freq"), std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].attn.alibi_slopes = {1}; }).find("alibi"), std::string::npos);
  EXPECT_NE(
      with([](ModelSpec& s) { s.layers[0].ffn.num_experts = 2, s.layers[0].ffn.top_k = 3; }).find("top_k"),
      std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].attn.q_rank = 8; }).find("kv_rank"), std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].attn.kv_rank = 8; }).find("latent_norm"), std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].ffn.shared_intermediate = 8; }).find("without experts"),
            std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].ffn.gate_limit = -1; }).find("gate_limit"),
            std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].attn.pattern.block = 64; }).find("local_blocks"),
            std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[0].attn.log_length = 1; }).find("log_length"),
            std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.unused_tokens = {s.vocab_size}; }).find("unused_tokens"),
            std::string::npos);
  EXPECT_NE(with([](ModelSpec& s) { s.layers[1].attn.head_dim = 16; }).find("same num_kv_heads"),
            std::string::npos);
}

TEST(ModelBuilder, ListsSlotsAndNamesWhatIsWrong) {
  std::shared_ptr<Backend> backend = make_cpu_backend(1);
  ModelBuilder builder(tiny_spec(1), backend, DType::kF32);
  EXPECT_EQ(builder.slots().at("layers.0.attn.k.weight"), (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(builder.slots().count("head.weight"), 0u) << "tied";
  EXPECT_NE(error_of([&] {
              builder.add("layers.0.attn.z.weight", floats(1, 1), {1, 1});
            }).find("attn.z"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              builder.add("layers.0.attn.k.weight", floats(16, 8), {16, 8});
            }).find("[16, 32]"),
            std::string::npos);
  builder.add("layers.0.attn.k.weight", floats(16, 32), {16, 32});
  EXPECT_NE(error_of([&] {
              builder.add("layers.0.attn.k.weight", floats(16, 32), {16, 32});
            }).find("twice"),
            std::string::npos);
  EXPECT_NE(error_of([&] { builder.finish(); }).find("embed.tokens"), std::string::npos);
}

TEST(ModelBuilder, CountsParametersAndDropsCheckpointTensors) {
  std::shared_ptr<Backend> backend = make_cpu_backend(1);
  ModelBuilder builder(tiny_spec(1), backend, DType::kF32);
  HostMatrix norm = floats(1, 32);
  std::weak_ptr<const void> alive = norm.owner;
  builder.add("final_norm.weight", std::move(norm), {32});
  EXPECT_TRUE(alive.expired()) << "a prepared group must not hold its source";
  auto model = random_model(tiny_spec(1), backend);
  EXPECT_EQ(model->num_parameters, 97 * 32 + (32 + 16 + 16) * 32 + 32 * 32 + 3 * 48 * 32 + 3 * 32);
}

}  // namespace
}  // namespace taco
