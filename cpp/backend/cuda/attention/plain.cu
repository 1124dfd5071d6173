// Attention in float32 on the plain cores: any dtype, head dim and block size. Four warps share the keys of
// one query row and head, in turns of 32 (a lane scores a key, then lanes take dims).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "backend/cuda/attention/mma.h"
#include "backend/cuda/launch.cuh"

namespace taco::cuda {
namespace {

constexpr int kWarps = 4;
constexpr float kInfinity = __builtin_huge_valf();

__device__ __forceinline__ float load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[i];
    case DType::kF16:
      return __half2float(static_cast<const __half*>(data)[i]);
    case DType::kBF16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::kF8E4M3:
      return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(data)[i]);
    default:
      return static_cast<float>(static_cast<const __nv_fp8_e5m2*>(data)[i]);
  }
}

__device__ __forceinline__ void store(void* data, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[i] = x;
  } else if (dtype == DType::kF16) {
    static_cast<__half*>(data)[i] = __float2half_rn(x);
  } else {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(x);
  }
}

__global__ void __launch_bounds__(kWarps * 32) plain_kernel(const __grid_constant__ PagedParams p) {
  extern __shared__ float smem[];
  __shared__ float maxima[kWarps], sums[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = p.head_dim;
  float* query = smem;                   // [dim]
  float* out = smem + dim + warp * dim;  // [kWarps][dim]
  pdl_launch();
  pdl_wait();
  const int work_count = p.header->num_chunks * p.num_heads;
  for (int work = blockIdx.x; work < work_count; work += gridDim.x) {
    const WorkItem item = p.items[work / p.num_heads];
    const int head = work % p.num_heads, kv_head = head / p.group;
    const int j = item.first_row / p.group;  // items are of one new token each
    const int64_t row = item.row0 + j;
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += blockDim.x)
      query[d] = load(p.q, p.q_dtype, row * p.q_stride + int64_t{head} * dim + d) * p.score_scale;
    for (int d = lane; d < dim; d += 32) out[d] = 0.0f;
    __syncthreads();

    const bool tree = p.tree_mask != nullptr;
    const int oldest = item.kv_len - item.q_len;
    const int position = tree ? p.positions[row] : oldest + j;
    const uint64_t nodes = tree ? p.tree_mask[row] : 0;
    const int low = p.window > 0 ? position - p.window + 1 : 0;
    const float slope = p.alibi_slopes != nullptr ? p.alibi_slopes[head] : 0.0f;
    const int64_t panel = int64_t{p.block_size} * dim, block_size = 2 * p.num_kv_heads * panel;
    float max = -kInfinity, sum = 0.0f;
    for (int base = item.kv_begin / 32 * 32 + warp * 32; base < item.kv_end; base += kWarps * 32) {
      int key = base + lane, at = key;
      bool seen = key >= item.kv_begin && key < item.kv_end;
      if (tree && key >= oldest) {
        seen = seen && (nodes >> (key - oldest) & 1) != 0;
        if (seen) at = p.positions[item.row0 + key - oldest];
      } else {
        seen = seen && (tree || key <= position);
      }
      seen = seen && at >= low;
      if (p.pattern.block > 0) seen = seen && sees_key(p.pattern, head, position, at);
      int64_t place = 0;
      float score = -kInfinity;
      if (seen) {
        int block = p.block_tables[item.seq * p.max_blocks + key / p.block_size];
        place = block * block_size + kv_head * panel + int64_t{key % p.block_size} * dim;
        float s = 0.0f;
        for (int d = 0; d < dim; ++d) s = fmaf(query[d], load(p.cache, p.kv_dtype, place + d), s);
        if (p.capped) {
          float e = expf(-2.0f * fabsf(s));
          s = copysignf(p.score_cap * ((1.0f - e) / (1.0f + e)), s);
        }
        score = s + slope * static_cast<float>(at - position);
      }
      float top = score;
      for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, i));
      top = fmaxf(top, max);
      if (top == -kInfinity) continue;  // the same for all lanes
      const float scale = expf(max - top), weight = seen ? expf(score - top) : 0.0f;
      max = top;
      sum = sum * scale + weight;
      const unsigned there = __ballot_sync(0xffffffffu, seen);
      for (int d0 = 0; d0 < dim; d0 += 32) {
        const int d = d0 + lane;
        float x = d < dim ? out[d] * scale : 0.0f;
        for (int k = 0; k < 32; ++k) {
          float w = __shfl_sync(0xffffffffu, weight, k);
          int64_t from = __shfl_sync(0xffffffffu, place, k);
          if ((there >> k & 1) != 0 && d < dim)
            x = fmaf(w, load(p.cache, p.kv_dtype, from + p.value_offset + d), x);
        }
        if (d < dim) out[d] = x;
      }
    }
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (lane == 0) maxima[warp] = max, sums[warp] = sum;
    __syncthreads();
    float top = p.sinks != nullptr ? p.sinks[head] : -kInfinity;
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, maxima[w]);
    if (top == -kInfinity) top = 0.0f;
    float total = p.sinks != nullptr ? expf(p.sinks[head] - top) : 0.0f;
    for (int w = 0; w < kWarps; ++w) total += sums[w] * expf(maxima[w] - top);
    const float factor = total > 0.0f ? p.value_scale / total : 0.0f;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
      float x = 0.0f;
      for (int w = 0; w < kWarps; ++w) x = fmaf(smem[(1 + w) * dim + d], expf(maxima[w] - top), x);
      store(p.out, p.q_dtype, row * p.out_stride + int64_t{head} * dim + d, x * factor);
    }
  }
}

}  // namespace

void launch_plain(const Context& ctx, int grid, const PagedParams& p) {
  launch(ctx, plain_kernel, dim3(grid), dim3(kWarps * 32), sizeof(float) * (1 + kWarps) * p.head_dim, p);
}

}  // namespace taco::cuda
