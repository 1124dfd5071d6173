// A tiny random model for tests of the executor and the engine.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"

namespace taco::testing {

inline ModelSpec tiny_spec(int layers = 2, int vocab = 97) {
  ModelSpec spec;
  spec.architecture = "tiny";
  spec.vocab_size = vocab;
  spec.hidden = 32;
  spec.max_positions = 512;
  RopeSpec rope;
  rope.rotary_dim = 8;
  for (int i = 0; i < 4; ++i) rope.inv_freq.push_back(1.0f / static_cast<float>(1 << (2 * i)));
  spec.ropes = {rope};
  LayerSpec layer;
  layer.attn_norm.kind = layer.ffn_norm.kind = NormKind::kRms;
  layer.attn.num_heads = 4;
  layer.attn.num_kv_heads = 2;
  layer.attn.head_dim = 8;
  layer.attn.rope = 0;
  layer.ffn.intermediate = 48;
  spec.layers.assign(layers, layer);
  spec.final_norm.kind = NormKind::kRms;
  spec.tied_head = true;
  return spec;
}

// Weights from a seeded generator, in the order of the slots' names; zeros in slots that begin with `zero`.
inline std::shared_ptr<const Model> random_model(const ModelSpec& spec, std::shared_ptr<Backend> backend,
                                                 DType dtype = DType::kF32, unsigned seed = 1,
                                                 float scale = 0.4f, const std::string& zero = "-") {
  ModelBuilder builder(spec, backend, dtype);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  for (const auto& [slot, shape] : std::map<std::string, std::vector<int64_t>>(builder.slots())) {
    HostMatrix m;
    m.rows = shape.size() == 2 ? shape[0] : 1;
    m.cols = shape.back();
    auto data = std::make_shared<std::vector<float>>(m.rows * m.cols);
    bool norm = slot.ends_with("norm.weight");
    for (float& v : *data) v = norm ? 1.0f + 0.1f * normal(rng) : scale * normal(rng);
    if (slot.starts_with(zero)) std::fill(data->begin(), data->end(), 0.0f);
    m.data = data->data();
    m.owner = data;
    builder.add(slot, m, shape);
  }
  return builder.finish();
}

}  // namespace taco::testing
