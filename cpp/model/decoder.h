// Runs a ModelSpec's layers over backend ops: one decoder for every architecture.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "model/model.h"
#include "model/rope_table.h"

namespace taco {

// The rows of one step, sequence after sequence. Arrays are in the backend's memory.
struct DecoderBatch {
  int64_t rows = 0;
  const int32_t* ids = nullptr;        // [rows]
  const int32_t* positions = nullptr;  // [rows]
  const int64_t* slots = nullptr;      // [rows] where each row's K and V go
  int num_seqs = 0;
  const int32_t* q_start = nullptr;       // [num_seqs + 1]
  const int32_t* kv_len = nullptr;        // [num_seqs]
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks]
  int64_t max_blocks = 0;
  int max_kv_len = 0;
  const uint64_t* tree_mask = nullptr;  // [rows] where a sequence's rows are a draft tree (AttentionParams)
};

struct KvCache {
  void* data;  // [layers][num_blocks][2][kv heads][block_size][head_dim]
  DType dtype;
  int64_t num_blocks;
  int block_size;
};

class Decoder {
 public:
  Decoder(std::shared_ptr<const Model> model, int max_rows, int max_positions);

  // Runs all layers; the residual stream of every row stays inside for `logits`. before_cache(layer) is
  // called before the ops that read and write a layer's part of the cache.
  using LayerHook = std::function<void(size_t layer)>;
  void forward(const DecoderBatch& batch, const KvCache& cache, const LayerHook& before_cache = {});

  // Logits [count, vocab] of chosen rows of the last forward. index: [count] row numbers; both in the
  // backend's memory.
  void logits(const int32_t* index, int64_t count, float* out);

  const Model& model() const { return *model_; }

 private:
  using Buffer = std::shared_ptr<void>;
  Buffer buffer(int64_t elements, DType dtype) const;
  void embed(const DecoderBatch& batch);
  void layer(size_t index, const DecoderBatch& batch, const KvCache& cache);
  void attention(size_t index, const void* in, const DecoderBatch& batch, const KvCache& cache, void* out,
                 Epilogue epilogue);
  // Rows of [q heads | k heads | v heads] into qkv_.
  void project_qkv(size_t index, const void* in, int64_t rows);
  // A dense block, or the shared expert of a mixture.
  void ffn(size_t index, const void* in, int64_t rows, void* out, Epilogue epilogue);
  void moe(size_t index, const void* in, int64_t rows, void* out);
  void normalize(const NormSpec& spec, const NormWeights& w, const void* in, void* out, int64_t rows,
                 bool add_to_residual = false, const Linear* consumer = nullptr);

  std::shared_ptr<const Model> model_;
  Backend& backend_;
  int64_t max_rows_;
  std::vector<RopeTable> ropes_;
  std::map<int, DeviceVector> query_scales_;  // by AttentionSpec.log_length: [max_positions]
  struct Experts {
    std::vector<const Linear*> in, out;
  };
  std::vector<Experts> experts_;  // [layers], as MoeParams wants them; empty for a dense layer
  Buffer unused_tokens_;          // int32, or null
  DType dtype_;                   // of the activations
  Buffer residual_;               // [max_rows, hidden]
  Buffer normed_, normed2_, block_out_;
  Buffer latents_, qkv_, heads_, inner_, router_, shared_;
  Buffer picked_, picked_block_, projected_;  // rows chosen for the logits
  const LayerHook* before_cache_ = nullptr;   // of the forward under way
  bool pending_ = false;                      // block_out_ has not been added to residual_ yet
};

// One layer's part of the cache.
KvCacheView kv_layer(const ModelSpec& spec, const KvCache& cache, size_t layer);

// From one layer's data to the next one's.
size_t kv_layer_bytes(const ModelSpec& spec, const KvCache& cache);

// Bytes of the K and V of one block over all layers.
size_t kv_block_bytes(const ModelSpec& spec, int block_size, DType dtype);

}  // namespace taco
