// The operations a backend offers to the model. One struct of parameters per op, plain data only.
//
// Layout conventions, for every op:
//  * activations are row-major [rows, dim], one row per token of the step; strides are in elements. Their
//  type
//    is `dtype` of the params: Backend::activation_dtype (CPU: always float32).
//  * index arrays (ids, positions, slots, ...) and small float vectors (norm weights, slopes) are in the
//    backend's memory; `consumer`, where there is one, is the product that will read `out`, or null: a
//    backend may then write `out` in the form which that product wants (CUDA: FP8 rows with their scales).
//  * a paged KV cache of one layer is [num_blocks][2 (K, V)][num_kv_heads][block_size][head_dim].
//    The order inside one (block, K or V, head) panel is the backend's own (CPU:
//    backend/cpu/isa/kv_layout.h).
//  * a slot is block * block_size + offset in the block.
#pragma once

#include <cstdint>

#include "backend/key_pattern.h"
#include "backend/matrix.h"
#include "base/dtype.h"

namespace taco {

enum class Activation : uint8_t { kNone, kSilu, kGelu /* erf */, kGeluTanh, kGeluQuick, kRelu, kRelu2 };

// How Epilogue::kGated joins its halves: out = act(min(gate, limit)) * (clamp(up, -limit, limit) +
// up_offset); limit 0: none.
struct Gating {
  float limit = 0.0f, up_offset = 0.0f;
  bool plain() const { return limit <= 0.0f && up_offset == 0.0f; }
};

enum class NormKind : uint8_t { kNone, kRms, kLayer };

struct EmbeddingParams {
  const Embedding* table;
  const int32_t* ids;  // [rows]
  int64_t rows;
  int32_t id_offset = 0;    // added to each id (learned positions)
  float scale = 1.0f;       // multiplies the looked-up row
  bool accumulate = false;  // out += instead of out = (learned positions)
  void* out;                // [rows, cols]
  DType dtype = DType::kF32;
};

// residual != nullptr: residual += in * residual_scale first, and the sum is what is normalised. With kind
// kNone the sum itself (or `in`) goes to out.
struct NormParams {
  NormKind kind;
  const void* in;            // [rows, dim], stride in_stride
  void* residual = nullptr;  // [rows, dim] dense
  float residual_scale = 1.0f;
  const float* weight = nullptr;  // [dim] or null (ones)
  const float* bias = nullptr;    // [dim] or null
  float weight_offset = 0.0f;     // 1 for norms that multiply by (1 + w)
  float eps;
  int64_t rows, dim, in_stride, out_stride;
  void* out;  // may be `in`
  // A row is `groups` runs of dim elements side by side (heads), each normalised by itself. Above 1: no
  // residual, no consumer.
  int groups = 1;
  bool group_weights = false;  // weight and bias are [groups * dim]: each run has its own
  const Linear* consumer = nullptr;
  DType dtype = DType::kF32;
};

enum class Epilogue : uint8_t {
  kStore,       // out = y
  kAccumulate,  // out += y * out_scale
  kActivation,  // out = act(y)
  kGated,       // the weight is [gate; up], each out_features / 2 rows: out = act(gate) * up
};

struct LinearParams {
  const Linear* weight;
  const void* in;  // [rows, in_features]
  int64_t rows, in_stride, out_stride;
  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kNone;
  float out_scale = 1.0f;
  Gating gating{};
  void* out;               // [rows, out_features], or half as wide for kGated
  bool float_out = false;  // `out` is float32 whatever the activations are: logits, routers
  const Linear* consumer = nullptr;
  DType dtype = DType::kF32;
};

struct KvCacheView {
  void* data;  // this layer's
  DType dtype;
  int64_t num_blocks;
  int block_size, num_kv_heads, head_dim;
  float k_scale = 1.0f, v_scale = 1.0f;  // FP8 only: value = stored * scale
};

// Rotates q in place, rotates k, and writes k and v to the cache. qkv rows are [q heads | k heads | v heads].
struct RopeAndCacheParams {
  void* qkv;
  int64_t rows, stride;
  int num_heads, num_kv_heads, head_dim;
  const int32_t* positions;  // [rows]
  // cos_sin: [max_positions][rotary_dim]: rotary_dim/2 cosines, then as many sines; null: no rotation.
  const float* cos_sin = nullptr;
  int rotary_dim = 0;
  bool interleaved = false;       // pairs (2i, 2i+1) instead of (i, i + rotary_dim/2)
  const int64_t* slots;           // [rows]; -1 writes nothing
  const float* q_norm = nullptr;  // RMS norm of each head before the rotation, [head_dim]
  const float* k_norm = nullptr;
  float qk_norm_eps = 1e-6f;
  const float* q_scale = nullptr;  // [max_positions]: multiplies q after the rotation
  KvCacheView cache;
  DType dtype = DType::kF32;
};

// Causal attention of the step's rows over the paged cache; the step's own K and V are in the cache already.
// Row j of sequence i (j in [0, q_len)) stands at position kv_len - q_len + j and sees positions up to it.
// With a tree mask, row j is a node of a draft tree: it stands at positions[row], and of the sequence's q_len
// (at most 64) newest slots it sees those whose bit is set in tree_mask[row]; of the older ones all.
struct AttentionParams {
  const void* q;  // rows start with the q heads: [rows, num_heads * head_dim], stride q_stride
  int64_t q_stride;
  int num_heads;
  KvCacheView cache;
  int num_seqs;
  const int32_t* q_start;       // [num_seqs + 1] row offsets
  const int32_t* kv_len;        // [num_seqs] tokens in the cache after this step
  const int32_t* block_tables;  // [num_seqs, max_blocks]
  int64_t max_blocks;
  float scale;
  float softcap = 0.0f;  // s = softcap * tanh(s / softcap)
  int window = 0;        // 0: all; else a row sees the last `window` positions, itself included
  KeyPattern pattern{};  // block 0: all
  const float* alibi_slopes = nullptr;  // [num_heads]: s += slope * (key position - row position)
  const float* sinks = nullptr;         // [num_heads]: one more logit in the softmax's denominator
  void* out;                            // [rows, num_heads * head_dim], stride out_stride
  int64_t out_stride;
  const uint64_t* tree_mask = nullptr;  // [rows]
  const int32_t* positions = nullptr;   // [rows], read with a tree mask only
  const Linear* consumer = nullptr;
  DType dtype = DType::kF32;
};

enum class MoeRouting : uint8_t {
  kSoftmaxTopK,  // softmax over all experts, then top-k (renormalize: divide by the kept sum)
  kTopKSoftmax,  // top-k of the logits, softmax over them (equals kSoftmaxTopK with renormalize)
  kSigmoidTopK,
  // top-k; each expert's weight is its part of a softmax over those not chosen before it whose logits are
  // near its own: (logit - other) / max(|other|, logit) <= 2 * jitter. ("GRIN: GRadient-INformed MoE", 2024)
  kSparseMixer,
};

struct MoeParams {
  const void* in;              // [rows, hidden]
  const float* router_logits;  // [rows, num_experts], stride router_stride, always float32
  int64_t rows, hidden, intermediate;
  int num_experts, top_k;
  MoeRouting routing;
  bool renormalize;
  int64_t router_stride = 0;  // 0: num_experts
  float jitter = 0.0f;        // kSparseMixer
  float weight_scale = 1.0f;  // multiplies the weights in the end
  const Linear* const*
      gate_up;  // [num_experts], each [2 * intermediate, hidden] (or [intermediate, hidden] if !gated)
  const Linear* const* down;  // [num_experts], each [hidden, intermediate]
  bool gated = true;
  Activation activation;
  Gating gating{};
  // What every row gets beside its experts: shared[row], times sigmoid(shared_gate[row * router_stride]).
  const void* shared = nullptr;        // [rows, hidden] or null
  const float* shared_gate = nullptr;  // null: times 1
  void* out;                           // [rows, hidden]
  DType dtype = DType::kF32;
};

struct GatherRowsParams {
  const void* in;
  const int32_t* index;  // [rows]
  int64_t rows, dim, in_stride;
  void* out;  // [rows, dim] dense
  DType dtype = DType::kF32;
};

// x = softcap * tanh(x * scale / softcap), or x * scale where softcap is 0.
struct ScaleLogitsParams {
  float* logits;  // in place, always float32
  int64_t count;
  float scale, softcap;
};

// Moves single tokens' K and V in every layer, bit for bit, within groups in order (a pair may read what an
// earlier one of its group wrote over); the groups touch different slots.
struct CopySlotsParams {
  KvCacheView cache;           // of the first layer
  int layers;                  // the same slots of all of them
  int64_t layer_bytes;         // from one layer's data to the next one's
  const int64_t* pairs;        // [group_start[num_groups]][2]: source slot, destination slot
  const int32_t* group_start;  // [num_groups + 1]
  int num_groups;
};

// The logits of some tokens become -inf.
struct MaskLogitsParams {
  float* logits;  // [rows, vocab] in place
  int64_t rows, vocab;
  const int32_t* ids;  // [count]
  int64_t count;
};

struct CopyBlocksParams {
  KvCacheView cache;
  const int32_t* pairs;  // [num_pairs][2]: source block, destination block
  int num_pairs;
};

}  // namespace taco
