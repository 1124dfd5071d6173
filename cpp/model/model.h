// A model's weights, repacked for one backend, and the builder that takes them from a checkpoint.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/model_spec.h"

namespace taco {

// A float32 vector in the backend's memory; empty where the spec has none.
class DeviceVector {
 public:
  DeviceVector() = default;
  DeviceVector(std::shared_ptr<Backend> backend, const std::vector<float>& values);
  const float* data() const { return data_.get(); }

 private:
  std::shared_ptr<float> data_;
};

struct NormWeights {
  DeviceVector weight, bias;
};

struct LayerWeights {
  NormWeights attn_norm, post_attn_norm, ffn_norm, post_ffn_norm;
  std::unique_ptr<Linear> qkv, attn_out;  // qkv: [q heads | k heads | v heads]
  // Instead of qkv, with latents: [q_a; kv_a] of x, then q of its latent or of x, and [k heads | v heads].
  std::unique_ptr<Linear> latents, q, kv;
  NormWeights q_latent_norm, kv_latent_norm;
  NormWeights q_norm, k_norm;  // the spec's weight_offset is in the weights
  DeviceVector sinks, alibi_slopes;
  std::unique_ptr<Linear> ffn_in, ffn_out;  // ffn_in: [gate; up] or up. Of a mixture: the shared expert's
  std::unique_ptr<Linear> router;           // [router; shared_gate]
  std::vector<std::unique_ptr<Linear>> experts_in, experts_out;
};

// Immutable once built; shared by executors.
struct Model {
  ModelSpec spec;
  DType dtype;  // of unquantised matrices
  bool quantize_fp8 = false;
  std::shared_ptr<Backend> backend;
  std::unique_ptr<Embedding> tokens, positions;
  std::unique_ptr<Linear> project_in, project_out, head;
  NormWeights embed_norm, final_norm;
  std::vector<LayerWeights> layers;
  int64_t num_parameters = 0;

  size_t weight_bytes() const;
};

// Takes tensors in any order and repacks each group (q, k and v with their biases are one) as soon as it is
// whole, so that a checkpoint is never held twice. Slot names: python/taco_llm/_core.pyi, ModelBuilder.
class ModelBuilder {
 public:
  // quantize_fp8: all products but the head and the routers are kept in FP8 (e4m3), one scale a tensor.
  ModelBuilder(ModelSpec spec, std::shared_ptr<Backend> backend, DType dtype, bool quantize_fp8 = false);
  ~ModelBuilder();

  const std::map<std::string, std::vector<int64_t>>& slots() const;
  // With quantize_fp8: the product that this slot is part of stays as wide as the rest. Before the slot is
  // given.
  void keep_wide(const std::string& slot);
  // tensor.rows/cols describe the matrix; a vector is [1, n]. `shape` is the checkpoint's, for the check and
  // the message. Throws kNotFound (no such slot), kInvalidArgument (given twice, misshapen).
  void add(const std::string& slot, HostMatrix tensor, const std::vector<int64_t>& shape);
  std::vector<std::string> missing() const;
  std::shared_ptr<const Model> finish();  // throws kInvalidArgument naming what is missing

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace taco
