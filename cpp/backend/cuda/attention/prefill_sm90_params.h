// What the host gives to the prefill kernels of Hopper.
#pragma once

#include <cuda.h>

#include "backend/cuda/attention/prefill_sm90.h"

namespace taco::cuda::sm90 {

struct PrefillParams {
  const void* q;
  void* out;
  int64_t q_stride, out_stride;
  const int32_t *q_start, *kv_len, *block_tables;
  int64_t max_blocks;
  const PrefillSm90Item* items;
  const int32_t* num_items;
  int num_heads, num_kv_heads, group, block_shift;  // group: num_heads / num_kv_heads; log2 of the block size
  float scale_log2;                                 // log2(e) times what scores are multiplied by
  float cap_in, cap_out;  // kFull: scores are cap_out * tanh(s * cap_in) where cap_in is not 0
  int window;             // kFull: 0 is all
};

// kHalf: fp16, else bf16. full: a window or a softcap.
template <int kHeadDim, bool kHalf>
void launch_prefill(const Context& ctx, const CUtensorMap& map, const PrefillParams& params, bool full,
                    int grid);

}  // namespace taco::cuda::sm90
