// Rotary position embedding of q and k, norms of their heads before it, and the step's K and V into the
// cache.
#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/ops/vec.cuh"

namespace taco::cuda {
namespace {

constexpr int kThreads = 128, kPer = 16;

struct RopeArgs {
  void* qkv;
  int64_t stride;
  int rows, num_heads, num_kv_heads, head_dim;
  int first_head;  // heads before it are left alone: num_heads where nothing happens to q
  const int32_t* positions;
  const float* cos_sin;
  int rotary_dim;  // 0 without a table
  bool interleaved;
  const int64_t* slots;
  const float *q_norm, *k_norm;
  float eps;
  const float* q_scale;  // [positions] or null
  void* cache;
  DType cache_dtype;
  int block_size, block_shift;  // shift: -1 where the size is not a power of two
  float k_inverse, v_inverse;   // of the FP8 scales
};

// The element of the cache where dimension 0 of a head's vector goes; `head` counts the KV heads.
__device__ __forceinline__ int64_t cache_place(const RopeArgs& p, int64_t slot, int head, int value) {
  const int64_t block = p.block_shift >= 0 ? slot >> p.block_shift : slot / p.block_size;
  const int64_t token = slot - block * p.block_size;
  return (((block * 2 + value) * p.num_kv_heads + head) * p.block_size + token) * p.head_dim;
}

__device__ __forceinline__ void store_cache8(const RopeArgs& p, int64_t at, float inverse,
                                             const float (&x)[8]) {
  switch (p.cache_dtype) {
    case DType::kF32:
      return store8(static_cast<float*>(p.cache) + at, x);
    case DType::kF16:
      return store8(static_cast<__half*>(p.cache) + at, x);
    case DType::kBF16:
      return store8(static_cast<__nv_bfloat16*>(p.cache) + at, x);
    default: {
      float y[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = x[i] * inverse;
      *reinterpret_cast<uint2*>(static_cast<uint8_t*>(p.cache) + at) =
          p.cache_dtype == DType::kF8E4M3 ? pack8_fp8<__NV_E4M3>(y) : pack8_fp8<__NV_E5M2>(y);
    }
  }
}
__device__ __forceinline__ void store_cache(const RopeArgs& p, int64_t at, float inverse, float x) {
  switch (p.cache_dtype) {
    case DType::kF32:
      static_cast<float*>(p.cache)[at] = x;
      return;
    case DType::kF16:
      static_cast<__half*>(p.cache)[at] = from_f32<__half>(x);
      return;
    case DType::kBF16:
      static_cast<__nv_bfloat16*>(p.cache)[at] = from_f32<__nv_bfloat16>(x);
      return;
    default:
      static_cast<uint8_t*>(p.cache)[at] =
          to_fp8(x * inverse, p.cache_dtype == DType::kF8E4M3 ? __NV_E4M3 : __NV_E5M2);
  }
}

// Sixteen elements a thread, `group` threads (a power of two) a head: of a rotated part eight pairs, of the
// rest sixteen in a row. head_dim and rotary_dim are multiples of 16.
template <typename T>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeArgs p, int group_shift) {
  pdl_launch();
  const int heads = p.num_heads + 2 * p.num_kv_heads - p.first_head;
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) >> group_shift;
  const int t = threadIdx.x & ((1 << group_shift) - 1);
  const bool active = item < int64_t{p.rows} * heads && t < p.head_dim / kPer;
  const int row = active ? static_cast<int>(item / heads) : 0;
  const int head = active ? static_cast<int>(item - int64_t{row} * heads) + p.first_head : 0;
  const bool is_q = head < p.num_heads, is_v = head >= p.num_heads + p.num_kv_heads;
  const bool rotates = !is_v && t < p.rotary_dim / kPer;
  // Where the two halves of the sixteen start.
  const int low = rotates && !p.interleaved ? 8 * t : kPer * t;
  const int high = rotates && !p.interleaved ? low + p.rotary_dim / 2 : low + 8;
  T* x = static_cast<T*>(p.qkv) + row * p.stride + int64_t{head} * p.head_dim;
  float a[8], b[8], c[8], s[8];
  int64_t slot = -1;
  // Where the rows stand is the step's own, and the table is constant: read while the product in front ends,
  // whose successor already keeps the memory busy.
  if (active && !is_q) slot = p.slots[row];
  if (active && rotates) {
    const float* table = p.cos_sin + int64_t{p.positions[row]} * p.rotary_dim + 8 * t;
    load8(table, c);
    load8(table + p.rotary_dim / 2, s);
  }
  pdl_wait();
  if (active) {
    load8(x + low, a);
    load8(x + high, b);
  }
  if (p.q_norm != nullptr || p.k_norm != nullptr) {
    float square = 0;
    if (active) {
#pragma unroll
      for (int i = 0; i < 8; ++i) square += a[i] * a[i] + b[i] * b[i];
    }
    for (int d = 1; d < 1 << group_shift; d <<= 1) square += __shfl_xor_sync(0xffffffffu, square, d);
    const float* weight = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
    if (active && weight != nullptr) {
      const float factor = rsqrtf(square / p.head_dim + p.eps);
      float wa[8], wb[8];
      load8(weight + low, wa);
      load8(weight + high, wb);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        a[i] *= factor * wa[i];
        b[i] *= factor * wb[i];
      }
    }
  }
  if (!active) return;
  if (rotates && !p.interleaved) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a0 = a[i], b0 = b[i];
      a[i] = a0 * c[i] - b0 * s[i];
      b[i] = b0 * c[i] + a0 * s[i];
    }
  } else if (rotates) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      float a0 = a[i], a1 = a[i + 1], b0 = b[i], b1 = b[i + 1];
      a[i] = a0 * c[i / 2] - a1 * s[i / 2];
      a[i + 1] = a1 * c[i / 2] + a0 * s[i / 2];
      b[i] = b0 * c[4 + i / 2] - b1 * s[4 + i / 2];
      b[i + 1] = b1 * c[4 + i / 2] + b0 * s[4 + i / 2];
    }
  }
  if (is_q && p.q_scale != nullptr) {
    const float scale = p.q_scale[p.positions[row]];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      a[i] *= scale;
      b[i] *= scale;
    }
  }
  if (is_q) {
    store8(x + low, a);
    store8(x + high, b);
  } else if (slot >= 0) {
    const int64_t at = cache_place(p, slot, head - p.num_heads - (is_v ? p.num_kv_heads : 0), is_v);
    store_cache8(p, at + low, is_v ? p.v_inverse : p.k_inverse, a);
    store_cache8(p, at + high, is_v ? p.v_inverse : p.k_inverse, b);
  }
}

// Any head_dim: a warp for each head; a pair belongs to one lane.
template <typename T>
__global__ void __launch_bounds__(kThreads) rope_any_kernel(RopeArgs p) {
  pdl_launch();
  pdl_wait();
  const int heads = p.num_heads + 2 * p.num_kv_heads - p.first_head, lane = threadIdx.x & 31;
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) >> 5;
  if (item >= int64_t{p.rows} * heads) return;
  const int64_t row = item / heads;
  const int head = static_cast<int>(item - row * heads) + p.first_head;
  const bool is_q = head < p.num_heads, is_v = head >= p.num_heads + p.num_kv_heads;
  T* x = static_cast<T*>(p.qkv) + row * p.stride + int64_t{head} * p.head_dim;
  const float* weight = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
  float factor = 1;
  if (weight != nullptr) {
    float square = 0;
    for (int i = lane; i < p.head_dim; i += 32) square += to_f32(x[i]) * to_f32(x[i]);
    factor = rsqrtf(warp_sum(square) / p.head_dim + p.eps);
  }
  const int64_t slot = is_q ? -1 : p.slots[row];
  if (!is_q && slot < 0) return;
  const int64_t at = is_q ? 0 : cache_place(p, slot, head - p.num_heads - (is_v ? p.num_kv_heads : 0), is_v);
  const float scale = is_q && p.q_scale != nullptr ? p.q_scale[p.positions[row]] : 1.0f;
  auto value = [&](int i) { return weight == nullptr ? to_f32(x[i]) : to_f32(x[i]) * factor * weight[i]; };
  auto put = [&](int i, float v) {
    if (is_q) {
      x[i] = from_f32<T>(v * scale);
    } else {
      store_cache(p, at + i, is_v ? p.v_inverse : p.k_inverse, v);
    }
  };
  const int rotary = is_v ? 0 : p.rotary_dim, half = rotary / 2;
  const float* table = rotary == 0 ? nullptr : p.cos_sin + int64_t{p.positions[row]} * rotary;
  for (int i = lane; i < half; i += 32) {
    const int first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + 1 : i + half;
    const float a = value(first), b = value(second), c = table[i], s = table[half + i];
    put(first, a * c - b * s);
    put(second, b * c + a * s);
  }
  for (int i = 2 * half + lane; i < p.head_dim; i += 32) put(i, value(i));
}

template <typename T>
void launch_rope(const RopeArgs& p, const Context& ctx) {
  const int64_t items = int64_t{p.rows} * (p.num_heads + 2 * p.num_kv_heads - p.first_head);
  const bool fast = p.head_dim % kPer == 0 && p.rotary_dim % kPer == 0 && p.head_dim <= 32 * kPer &&
                    p.stride % (16 / sizeof(T)) == 0 && aligned16(p.qkv) && aligned16(p.cos_sin) &&
                    aligned16(p.q_norm) && aligned16(p.k_norm) && aligned16(p.cache);
  if (!fast) {
    const int64_t blocks = (items * 32 + kThreads - 1) / kThreads;
    return launch(ctx, rope_any_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, p);
  }
  int shift = 0;
  while (1 << shift < p.head_dim / kPer) ++shift;
  const int64_t blocks = ((items << shift) + kThreads - 1) / kThreads;
  launch(ctx, rope_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, p, shift);
}

}  // namespace

void run_rope_and_cache(const RopeAndCacheParams& p, Context& ctx) {
  if (p.rows == 0) return;
  const bool touches_q = p.cos_sin != nullptr || p.q_norm != nullptr || p.q_scale != nullptr;
  const int size = p.cache.block_size;
  int shift = -1;
  for (int i = 0; i < 30; ++i) {
    if (size == 1 << i) shift = i;
  }
  RopeArgs args{.qkv = p.qkv,
                .stride = p.stride,
                .rows = static_cast<int>(p.rows),
                .num_heads = p.num_heads,
                .num_kv_heads = p.num_kv_heads,
                .head_dim = p.head_dim,
                .first_head = touches_q ? 0 : p.num_heads,
                .positions = p.positions,
                .cos_sin = p.cos_sin,
                .rotary_dim = p.cos_sin == nullptr ? 0 : p.rotary_dim,
                .interleaved = p.interleaved,
                .slots = p.slots,
                .q_norm = p.q_norm,
                .k_norm = p.k_norm,
                .eps = p.qk_norm_eps,
                .q_scale = p.q_scale,
                .cache = p.cache.data,
                .cache_dtype = p.cache.dtype,
                .block_size = size,
                .block_shift = shift,
                .k_inverse = 1.0f / p.cache.k_scale,
                .v_inverse = 1.0f / p.cache.v_scale};
  with_activation_type(p.dtype, [&](auto tag) { launch_rope<decltype(tag)>(args, ctx); });
}

}  // namespace taco::cuda
