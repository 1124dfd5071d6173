// The decoder over the CPU backend: whatever the chunking and the blocks, a float32 row has the same bits.
#include "exec/model_executor.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tiny_model.h"

namespace taco {
namespace {

using testing::random_model;
using testing::tiny_spec;

ModelExecutor make(std::shared_ptr<const Model> model, int block_size = 16) {
  return ModelExecutor(std::move(model), {.max_model_len = 256,
                                          .block_size = block_size,
                                          .num_blocks = 256 / block_size + 4,
                                          .kv_dtype = std::nullopt,
                                          .max_num_batched_tokens = 128,
                                          .max_num_seqs = 8});
}

std::vector<int32_t> some_tokens(int count) {
  std::vector<int32_t> out;
  for (int i = 0; i < count; ++i) out.push_back((i * 37 + 11) % 97);
  return out;
}

class Specs : public ::testing::TestWithParam<int> {
 protected:
  ModelSpec spec() const {
    ModelSpec s = tiny_spec();
    for (LayerSpec& l : s.layers) {
      switch (GetParam()) {
        case 1:
          l.parallel = true, l.ffn_norm.kind = NormKind::kNone;
          break;
        case 2:
          l.parallel = true;
          break;
        case 3:
          l.post_attn_norm.kind = l.post_ffn_norm.kind = NormKind::kRms;
          break;
        case 4:
          l.residual_post_norm = true;
          break;
        case 5:
          l.ffn.num_experts = 4, l.ffn.top_k = 2;
          break;
        case 6:
          l.attn.window = 5, l.attn.softcap = 3.0f, l.attn.sinks = true;
          break;
        case 7:
          l.attn.rope = -1, l.attn.alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
          break;
        case 8:
          l.residual_scale = 0.5f, l.post_attn_norm.kind = NormKind::kLayer;
          break;
        default:
          break;
      }
    }
    return s;
  }
};

TEST_P(Specs, ChunksAndBlockSizesDoNotChangeABit) {
  std::shared_ptr<Backend> backend = make_cpu_backend(2);
  auto model = random_model(spec(), backend);
  std::vector<int32_t> tokens = some_tokens(75);
  std::vector<float> whole = make(model).forward(tokens, {});
  float largest = 0;
  for (float v : whole) largest = std::max(largest, std::abs(v));
  ASSERT_GT(largest, 0.1f);
  ASSERT_TRUE(std::isfinite(largest));
  for (int block_size : {8, 16, 32}) {
    ModelExecutor executor = make(model, block_size);
    for (const std::vector<int>& chunks :
         {std::vector<int>{75}, std::vector<int>{1, 7, 30, 37}, std::vector<int>(75, 1)}) {
      EXPECT_EQ(executor.forward(tokens, chunks), whole)
          << "block size " << block_size << ", " << chunks.size() << " chunks";
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, Specs, ::testing::Range(0, 9));

TEST(ModelExecutor, RefusesImpossibleConfigurations) {
  std::shared_ptr<Backend> backend = make_cpu_backend(1);
  auto model = random_model(tiny_spec(), backend);
  EXPECT_THROW(make(model, 12), Error);
  EXPECT_THROW(make(model).forward({1, 2, 97}, {}), Error);
  EXPECT_THROW(make(model).forward({1, 2, 3}, {1, 1}), Error);
}

}  // namespace
}  // namespace taco
