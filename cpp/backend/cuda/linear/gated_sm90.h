// x [gate; up]^T with the gating in the product's own kernel, on Hopper.
#pragma once

#include <cuda.h>

#include "backend/cuda/linear/linear.h"

namespace taco::cuda {

constexpr int64_t kGatedRows = 1024;  // above, it always is; below it depends on how full its waves are
// Whether the kernel can do this product (Epilogue::kGated), and is expected to beat cuBLASLt with a second
// pass.
bool takes_gated_sm90(const LinearParams& p, const QuantizedRows* x, const Context& ctx);
// p.consumer is not looked at: `out` is written in 16 bits.
void run_gated_sm90(const LinearParams& p, const QuantizedRows* x, Context& ctx);

// The same kernel over the experts of a mixture. Rows of x and out stand by expert, each expert's from a
// multiple of kExpertRows on; what stands in the rows between is computed and means nothing.
constexpr int kExpertRows = 256;
struct ExpertsSm90 {
  const float* x_scales;         // FP8: [rows]
  const float* const* w_scales;  // FP8: [groups] on the device, `w_scale_stride` bytes apart
  int64_t w_scale_stride;
  DType weight_type;           // dtype or kF8E4M3; x is of this type
  DType dtype;                 // 16 bits
  const void* x;               // [rows, k]
  int64_t rows;                // room: at least kExpertRows * tile_starts[groups]
  int64_t n, k;                // multiples of 8; n of 16 where gated
  int groups;                  // at most 256
  const int32_t* tile_starts;  // [groups + 1] on the device, in units of kExpertRows
  const CUtensorMap* maps;     // [groups] on the device: expert_map of each weight
  bool gated;
  Activation activation;
  void* out;  // [rows, n or n / 2]
};
CUtensorMap expert_map(const CudaLinear& w);
void run_experts_sm90(const ExpertsSm90& p, const Context& ctx);

}  // namespace taco::cuda
