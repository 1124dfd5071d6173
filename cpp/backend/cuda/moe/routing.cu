#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/element.cuh"
#include "backend/cuda/moe/moe_kernels.h"

namespace taco::cuda {
namespace {

using namespace element;

constexpr int kPerLane = kMaxExperts / 32;
constexpr int kFusedRows = 64;  // up to here one block routes and sorts

struct RouteParams {
  const float* logits;  // [rows, num_experts]
  int64_t logits_stride, rows;
  int num_experts, top_k, tile;
  MoeRouting routing;
  bool renormalize;
  float jitter, weight_scale;
  MoePlan plan;
};

// Grows with the logit; equal logits: with falling expert. 0 is less than any. A NaN counts as -inf.
__device__ __forceinline__ uint64_t sort_key(float logit, int expert) {
  const float x = isnan(logit) ? -INFINITY : logit + 0.0f;
  const uint32_t bits = __float_as_uint(x);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(expert));
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// One warp, one row.
__device__ void route_row(const RouteParams& p, int64_t row) {
  const int lane = threadIdx.x % 32;
  const float* logits = p.logits + row * p.logits_stride;
  int32_t* experts = p.plan.experts + row * p.top_k;
  float* weights = p.plan.weights + row * p.top_k;
  uint64_t keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    keys[i] = e < p.num_experts ? sort_key(logits[e], e) : 0;
  }
  float top = 0.0f, sum = 0.0f;
  for (int k = 0; k < p.top_k; ++k) {
    uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = keys[i] > best ? keys[i] : best;
    for (int offset = 16; offset > 0; offset /= 2) {
      const uint64_t other = __shfl_xor_sync(~0u, best, offset);
      best = other > best ? other : best;
    }
    const int e = static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
    const float logit = logits[e];
    if (k == 0) top = logit;
    float weight = 0.0f;
    if (p.routing == MoeRouting::kSparseMixer) {
      // Over the experts that are left, this one included.
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (keys[i] == 0) continue;
        const float other = logits[i * 32 + lane];
        if (!(__fdiv_rn(logit - other, fmaxf(fabsf(other), logit)) > 2.0f * p.jitter))
          weight += expf(other - logit);
      }
      weight = __fdiv_rn(1.0f, warp_sum(weight));
    } else {
      weight = p.routing == MoeRouting::kSigmoidTopK ? 1.0f / (1.0f + expf(-logit)) : expf(logit - top);
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) keys[i] = keys[i] == best ? 0 : keys[i];
    sum += weight;
    if (lane == 0) {
      experts[k] = e;
      weights[k] = weight;
    }
  }
  const bool softmax = p.routing != MoeRouting::kSigmoidTopK && p.routing != MoeRouting::kSparseMixer;
  if (!softmax && !p.renormalize) sum = 1.0f;
  if (p.routing == MoeRouting::kSoftmaxTopK && !p.renormalize) {
    sum = 0.0f;
    for (int e = lane; e < p.num_experts; e += 32) sum += expf(logits[e] - top);
    sum = warp_sum(sum);
  }
  __syncwarp();
  for (int k = lane; k < p.top_k; k += 32) weights[k] = __fdiv_rn(weights[k], sum) * p.weight_scale;
}

// One block. The order of an expert's pairs is free: no row's result depends on it.
__device__ void sort_pairs(const RouteParams& p) {
  __shared__ int counts[kMaxExperts];
  const int64_t pairs = p.rows * p.top_k;
  for (int e = threadIdx.x; e < p.num_experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < pairs; i += blockDim.x) atomicAdd(&counts[p.plan.experts[i]], 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    // Sums over a lane's own experts, then over lanes.
    const int lane = threadIdx.x, each = (p.num_experts + 31) / 32;
    const int begin = min(lane * each, p.num_experts), end = min(begin + each, p.num_experts);
    int rows = 0, tiles = 0;
    for (int e = begin; e < end; ++e) {
      rows += counts[e];
      tiles += (counts[e] + p.tile - 1) / p.tile;
    }
    int rows_before = rows, tiles_before = tiles;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int r = __shfl_up_sync(~0u, rows_before, offset), t = __shfl_up_sync(~0u, tiles_before, offset);
      if (lane >= offset) {
        rows_before += r;
        tiles_before += t;
      }
    }
    rows_before -= rows;
    tiles_before -= tiles;
    for (int e = begin; e < end; ++e) {
      const int count = counts[e];
      counts[e] = rows_before;
      p.plan.offsets[e] = rows_before;
      p.plan.tile_starts[e] = tiles_before;
      rows_before += count;
      tiles_before += (count + p.tile - 1) / p.tile;
    }
    if (lane == 31) {
      p.plan.offsets[p.num_experts] = rows_before;
      p.plan.tile_starts[p.num_experts] = tiles_before;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < pairs; i += blockDim.x) {
    const int e = p.plan.experts[i];
    const int position = atomicAdd(&counts[e], 1);
    p.plan.pairs[position] = static_cast<int32_t>(i);
    if (p.plan.places != nullptr)
      p.plan.places[i] = p.plan.tile_starts[e] * p.tile + position - p.plan.offsets[e];
  }
}

__global__ void __launch_bounds__(256) route_kernel(RouteParams p) {
  pdl_wait();
  pdl_launch();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row < p.rows) route_row(p, row);
}

__global__ void __launch_bounds__(1024) sort_kernel(RouteParams p) {
  pdl_wait();
  pdl_launch();
  sort_pairs(p);
}

__global__ void __launch_bounds__(1024) route_and_sort_kernel(RouteParams p) {
  pdl_wait();
  pdl_launch();
  for (int64_t row = threadIdx.x / 32; row < p.rows; row += 32) route_row(p, row);
  __syncthreads();
  sort_pairs(p);
}

__global__ void __launch_bounds__(256)
    gather_pairs_kernel(const int32_t* places, const uint4* x, int64_t chunks, int top_k, uint4* out) {
  pdl_wait();
  pdl_launch();
  const uint4* from = x + blockIdx.x / static_cast<unsigned>(top_k) * chunks;
  uint4* to = out + places[blockIdx.x] * chunks;
  for (int64_t c = threadIdx.x; c < chunks; c += blockDim.x) to[c] = from[c];
}

// Rows that are added to what the experts make, or none.
struct SharedRows {
  const void* rows;   // [rows, dim] or null
  const float* gate;  // the logit of each row's factor, or null
  int64_t gate_stride;

  __device__ __forceinline__ float factor(int64_t row) const {
    if (gate == nullptr) return 1.0f;
    return __fdiv_rn(1.0f, 1.0f + expf(-gate[row * gate_stride]));
  }
};

// One block for each row, eight columns a thread where the rows allow it.
template <typename S, typename T>
__global__ void __launch_bounds__(256)
    combine_kernel(MoePlan plan, const S* y, int splits, int64_t split_stride, int64_t dim, int top_k,
                   SharedRows shared, T* out, bool wide) {
  __shared__ int order[kMaxExperts];
  __shared__ float weights[kMaxExperts];
  pdl_wait();
  pdl_launch();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * top_k;
  for (int k = threadIdx.x; k < top_k; k += blockDim.x) {
    int rank = 0;
    for (int j = 0; j < top_k; ++j) rank += plan.experts[first + j] < plan.experts[first + k];
    order[rank] = plan.places != nullptr ? plan.places[first + k] - static_cast<int>(first) : k;
    weights[rank] = plan.weights[first + k];
  }
  __syncthreads();
  const S* rows = y + first * dim;
  const T* add =
      shared.rows == nullptr ? nullptr : static_cast<const T*>(shared.rows) + int64_t{blockIdx.x} * dim;
  const float factor = add == nullptr ? 0.0f : shared.factor(blockIdx.x);
  T* to = out + blockIdx.x * dim;
  if (wide) {
    for (int64_t c = threadIdx.x * 8; c < dim; c += blockDim.x * 8) {
      float sum[8] = {};
#pragma unroll 2
      for (int j = 0; j < top_k; ++j) {
        float x[8];
        load8(rows + order[j] * dim + c, x);
        for (int split = 1; split < splits; ++split) {
          float part[8];
          load8(rows + split * split_stride + order[j] * dim + c, part);
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] += part[i];
        }
        const float w = weights[j];
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += x[i] * w;
      }
      if (add != nullptr) {
        float x[8];
        load8(add + c, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += x[i] * factor;
      }
      store8(to + c, sum);
    }
  } else {
    for (int64_t c = threadIdx.x; c < dim; c += blockDim.x) {
      float sum = 0.0f;
      for (int j = 0; j < top_k; ++j) {
        float x = as_float(rows[order[j] * dim + c]);
        for (int split = 1; split < splits; ++split)
          x += as_float(rows[split * split_stride + order[j] * dim + c]);
        sum += x * weights[j];
      }
      if (add != nullptr) sum += as_float(add[c]) * factor;
      to[c] = from_float<T>(sum);
    }
  }
}

int64_t router_stride(const MoeParams& p) { return p.router_stride ? p.router_stride : p.num_experts; }

}  // namespace

void run_routing(const MoeParams& p, int64_t row0, int64_t rows, int tile, const MoePlan& plan,
                 const Context& ctx) {
  const int64_t stride = router_stride(p);
  RouteParams r{p.router_logits + row0 * stride,
                stride,
                rows,
                p.num_experts,
                p.top_k,
                tile,
                p.routing,
                p.renormalize,
                p.jitter,
                p.weight_scale,
                plan};
  if (rows <= kFusedRows) {
    const auto warps = static_cast<unsigned>(std::clamp<int64_t>(rows, 4, 32));
    launch(ctx, route_and_sort_kernel, dim3(1), dim3(warps * 32), 0, r);
    return;
  }
  launch(ctx, route_kernel, dim3(static_cast<unsigned>((rows + 7) / 8)), dim3(256), 0, r);
  launch(ctx, sort_kernel, dim3(1), dim3(1024), 0, r);
}

void run_gather_pairs(const MoePlan& plan, const void* x, int64_t pairs, int64_t dim, int top_k, void* out,
                      const Context& ctx) {
  launch(ctx, gather_pairs_kernel, dim3(static_cast<unsigned>(pairs)), dim3(256), 0, plan.places,
         static_cast<const uint4*>(x), dim / 8, top_k, static_cast<uint4*>(out));
}

void run_combine(const MoeParams& p, const MoePlan& plan, const void* y, DType y_type, int splits,
                 int64_t row0, int64_t rows, const Context& ctx) {
  const int64_t dim = p.hidden, at = row0 * dim * static_cast<int64_t>(dtype_size(p.dtype));
  void* out = static_cast<char*>(p.out) + at;
  SharedRows shared{};
  if (p.shared != nullptr) {
    shared.rows = static_cast<const char*>(p.shared) + at;
    shared.gate_stride = router_stride(p);
    if (p.shared_gate != nullptr) shared.gate = p.shared_gate + row0 * shared.gate_stride;
  }
  auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool wide = dim % 8 == 0 && aligned(y) && aligned(out) && aligned(shared.rows);
  const auto threads = static_cast<unsigned>(std::clamp<int64_t>((dim / 8 + 31) / 32 * 32, 32, 256));
  dispatch_float_type(p.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const dim3 grid(static_cast<unsigned>(rows)), block(threads);
    if (y_type == DType::kF32) {
      launch(ctx, combine_kernel<float, T>, grid, block, 0, plan, static_cast<const float*>(y), splits,
             rows * p.top_k * dim, dim, p.top_k, shared, static_cast<T*>(out), wide);
    } else {
      TACO_CHECK(y_type == p.dtype, "experts' results of ", dtype_name(y_type));
      launch(ctx, combine_kernel<T, T>, grid, block, 0, plan, static_cast<const T*>(y), splits,
             rows * p.top_k * dim, dim, p.top_k, shared, static_cast<T*>(out), wide);
    }
  });
}

}  // namespace taco::cuda
