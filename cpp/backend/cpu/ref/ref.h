// The oracle: every op in plain loops, double precision inside, one thread. Tests hold all kernels to it.
#pragma once

#include <vector>

#include "backend/ops.h"

namespace taco::cpu::ref {

// Parameters as in ops.h. The KV cache is in the CPU backend's order (isa/kv_layout.h).
void norm(const NormParams& params);
void rope_and_cache(const RopeAndCacheParams& params);
void attention(const AttentionParams& params);
void gather_rows(const GatherRowsParams& params);
void scale_logits(const ScaleLogitsParams& params);
void mask_logits(const MaskLogitsParams& params);
void copy_blocks(const CopyBlocksParams& params);
void copy_slots(const CopySlotsParams& params);

// y = x W^T + bias for one expert of `moe`, float32 matrices.
struct DenseExpert {
  std::vector<float> gate_up;                  // [2 * intermediate (or intermediate), hidden]
  std::vector<float> down;                     // [hidden, intermediate]
  std::vector<float> gate_up_bias, down_bias;  // or empty
};
// params.gate_up and params.down are not looked at.
void moe(const MoeParams& params, const std::vector<DenseExpert>& experts);

double activate(Activation activation, double x);
// What Epilogue::kGated makes of its halves.
double gate(Activation activation, const Gating& gating, double gate, double up);

// One element of a KV cache, by its logical place. `value` 0: K, 1: V. FP8: with the cache's scales.
float kv_load(const KvCacheView& cache, int64_t block, int value, int head, int token, int dim);
void kv_store(const KvCacheView& cache, int64_t block, int value, int head, int token, int dim, float x);

}  // namespace taco::cpu::ref
