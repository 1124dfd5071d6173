// What the mma.sync attention kernels share: instructions, the cache's place in
// shared memory, score rules, merging of splits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/attention/mma.h"
#include "backend/cuda/launch.cuh"

namespace taco::cuda::mma {

// The cache's element types. Products are in bf16 or fp16; FP8 is turned into
// fp16.
struct Bf16 {
  static constexpr int kBytes = 2;
  static constexpr bool kHalf = false, kFp8 = false;
};
struct F16 {
  static constexpr int kBytes = 2;
  static constexpr bool kHalf = true, kFp8 = false;
};
struct Fp8 {
  static constexpr int kBytes = 1;
  static constexpr bool kHalf = true, kFp8 = true;
};

__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes to shared memory; `bytes` 0 writes zeros and reads nothing.
__device__ __forceinline__ void cp_async16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
// All but the `pending` newest groups have landed.
__device__ __forceinline__ void cp_async_wait(int pending) {
  switch (pending) {
    case 0:
      cp_async_wait<0>();
      break;
    case 1:
      cp_async_wait<1>();
      break;
    case 2:
      cp_async_wait<2>();
      break;
    case 3:
      cp_async_wait<3>();
      break;
    case 4:
      cp_async_wait<4>();
      break;
    default:
      cp_async_wait<5>();
      break;
  }
}

__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4_trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix2(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix2_trans(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ uint32_t transpose8x8(uint32_t a) {
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
  return d;
}

// d += a b, 16 x 8 x 16.
template <bool kHalf>
__device__ __forceinline__ void mma16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kHalf) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <bool kHalf>
__device__ __forceinline__ uint32_t pack2(float x, float y) {
  if constexpr (kHalf) {
    __half2 h = __floats2half2_rn(x, y);
    return *reinterpret_cast<uint32_t*>(&h);
  } else {
    __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<uint32_t*>(&h);
  }
}

// Two 16-bit queries in the form that the products want.
template <bool kHalf>
__device__ __forceinline__ uint32_t convert_query2(uint32_t bits, bool q_half) {
  float x, y;
  if (q_half) {
    float2 f = __half22float2(*reinterpret_cast<__half2*>(&bits));
    x = f.x, y = f.y;
  } else {
    x = __uint_as_float(bits << 16), y = __uint_as_float(bits & 0xffff0000u);
  }
  if (kHalf) x = fminf(fmaxf(x, -65504.0f), 65504.0f), y = fminf(fmaxf(y, -65504.0f), 65504.0f);
  return pack2<kHalf>(x, y);
}
template <bool kHalf>
__device__ __forceinline__ uint32_t load_query2(const uint16_t* p, bool q_half) {
  uint32_t bits = *reinterpret_cast<const uint32_t*>(p);
  return q_half == kHalf ? bits : convert_query2<kHalf>(bits, q_half);
}

// FP8 pairs to fp16. The bits of e5m2 are the upper ones of fp16; those of
// e4m3, moved below the longer exponent, are the number times 2^-8, which the
// scales make up for.
__device__ __forceinline__ uint32_t widen_fp8(uint32_t bytes, uint32_t select, bool e5m2) {
  uint32_t wide = __byte_perm(bytes, 0, select);
  return e5m2 ? wide : (wide & 0x80008000u) | ((wide & 0x7f007f00u) >> 1);
}
// Bytes (0, 1), (2, 3), (0, 2), (1, 3) to the upper bytes of two halves.
inline constexpr uint32_t kBytes01 = 0x1404, kBytes23 = 0x3424, kBytes02 = 0x2404, kBytes13 = 0x3414;

// A tile's row of one token is kRowBytes long; 16-byte chunks stand where no
// eight rows of a chunk share banks.
template <int kRowBytes>
__device__ __forceinline__ uint32_t tile_offset(int token, int chunk) {
  static_assert(kRowBytes == 64 || kRowBytes % 128 == 0);
  int place = kRowBytes == 64 ? chunk ^ ((token >> 1) & 3) : chunk ^ (token & 7);
  return static_cast<uint32_t>(token * kRowBytes + place * 16);
}

// x / divisor for small x, by the divisor's inverse (PagedParams).
__device__ __forceinline__ int divide(int x, uint32_t inverse) {
  return inverse == 0 ? x : static_cast<int>(__umulhi(static_cast<uint32_t>(x), inverse));
}

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kInfinity = __builtin_huge_valf();

// What a packed query row sees.
struct RowRule {
  int last = -1;       // the row's position: keys up to it (with a tree: of those
                       // before the tree's)
  int first = 0;       // the window's first position
  float slope = 0.0f;  // ALiBi, times log2(e)
  uint64_t nodes = 0;  // of the newest q_len slots, with a tree
};

__device__ __forceinline__ RowRule row_rule(const PagedParams& p, const WorkItem& item, int kv_head,
                                            int packed) {
  RowRule r;
  if (packed >= item.first_row + item.num_rows) return r;
  int j = divide(packed, p.group_inverse), row = item.row0 + j;
  if (p.tree_mask != nullptr) {
    r.last = p.positions[row];
    r.nodes = p.tree_mask[row];
  } else {
    r.last = item.kv_len - item.q_len + j;
  }
  r.first = p.window > 0 ? r.last - p.window + 1 : 0;
  if (p.alibi_slopes != nullptr) r.slope = p.alibi_slopes[kv_head * p.group + packed - j * p.group] * kLog2e;
  return r;
}

// The range of keys that every row of the item sees.
struct SeenRange {
  int begin, end;
};
__device__ __forceinline__ SeenRange seen_range(const PagedParams& p, const WorkItem& item) {
  if (p.alibi_slopes != nullptr) return {0, 0};  // each score has its own rule
  int oldest = item.kv_len - item.q_len;         // of the new tokens
  int end = p.tree_mask != nullptr ? oldest : oldest + divide(item.first_row, p.group_inverse) + 1;
  int begin = p.window > 0 ? item.kv_len - p.window : 0;
  return {max(begin, item.kv_begin), min(end, item.kv_end)};
}

// log2(e) times the scores.
template <int kCount>
__device__ __forceinline__ void cap_scores(float (&s)[kCount], const PagedParams& p) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) s[i] *= p.score_scale;
  if (p.capped) {
    // tanh by the exponential: the hardware's tanh is too rough for scores.
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      s[i] = p.score_cap * (1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * s[i])));
  }
}

// The score with ALiBi, or minus infinity where the row does not see the key.
__device__ __forceinline__ float rule_score(float s, const RowRule& r, const PagedParams& p,
                                            const WorkItem& item, int key) {
  int position = key;
  bool seen = key >= item.kv_begin && key < item.kv_end && r.last >= 0;
  if (p.tree_mask != nullptr) {
    int node = key - (item.kv_len - item.q_len);
    if (node >= 0) {
      seen = seen && (r.nodes >> (node & 63) & 1) != 0;
      if (p.window > 0 || p.alibi_slopes != nullptr) {
        // Keys behind the item's range have no row.
        position = seen ? p.positions[item.row0 + node] : 0;
      }
    }
  } else {
    seen = seen && key <= r.last;
  }
  seen = seen && position >= r.first;
  return seen ? s + r.slope * static_cast<float>(position - r.last) : -kInfinity;
}

// Four results of one row to `out`, at 8 bytes' alignment or less.
__device__ __forceinline__ void store4(const PagedParams& p, uint16_t* out, float4 v) {
  uint32_t* to = reinterpret_cast<uint32_t*>(out);
  to[0] = p.q_half ? pack2<true>(v.x, v.y) : pack2<false>(v.x, v.y);
  to[1] = p.q_half ? pack2<true>(v.z, v.w) : pack2<false>(v.z, v.w);
}

// The place of a packed row's results.
__device__ __forceinline__ uint16_t* out_row(const PagedParams& p, const WorkItem& item, int kv_head,
                                             int packed) {
  int j = divide(packed, p.group_inverse), head = kv_head * p.group + packed - j * p.group;
  return static_cast<uint16_t*>(p.out) + (item.row0 + j) * p.out_stride + int64_t{head} * p.head_dim;
}

// What sums of values are multiplied by, from the maximum and the sum of the
// powers: the sink joins here.
__device__ __forceinline__ float result_factor(const PagedParams& p, int kv_head, int packed, float max,
                                               float sum) {
  float factor = 1.0f;
  if (p.sinks != nullptr) {
    float sink = p.sinks[(kv_head - divide(packed, p.group_inverse)) * p.group + packed] * kLog2e;
    float top = fmaxf(sink, max);
    factor = exp2f(max - top);
    sum = sum * factor + exp2f(sink - top);
  }
  return sum > 0.0f ? p.value_scale * factor / sum : 0.0f;
}

// After every thread of the block has written its part of a split: the block
// that comes last of the group adds the splits up, in their order, and writes
// the results. A warp takes kAt rows at a time.
template <int kAt = 1>
__device__ __forceinline__ void merge_splits(const PagedParams& p, const WorkItem& item, int kv_head,
                                             int* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    int* semaphore = p.semaphores + int64_t{item.semaphore} * p.num_kv_heads + kv_head;
    int arrived;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(arrived) : "l"(semaphore) : "memory");
    *flag = arrived == item.num_splits - 1;
    if (*flag) *semaphore = 0;  // nobody else comes: ready for the next layer
  }
  __syncthreads();
  if (*flag == 0) return;
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32, num_splits = item.num_splits;
  const int stride = p.num_kv_heads * item.num_rows;
  for (int r0 = threadIdx.x / 32; r0 < item.num_rows; r0 += warps * kAt) {
    // Rows beyond the last repeat it and are not stored.
    int64_t part[kAt];
    const float2* max_sum[kAt];
    float2 first[kAt];
    float max[kAt];
    const float2 nothing = make_float2(-kInfinity, 0.0f);
#pragma unroll
    for (int a = 0; a < kAt; ++a) {
      part[a] = item.part_row + int64_t{kv_head} * item.num_rows + min(r0 + a * warps, item.num_rows - 1);
      max_sum[a] = reinterpret_cast<const float2*>(p.part_max_sum) + part[a];
      // The first splits' numbers are on their way while the maximum is found.
      first[a] = lane < num_splits ? __ldcg(max_sum[a] + int64_t{lane} * stride) : nothing;
      max[a] = first[a].x;
      for (int s = lane + 32; s < num_splits; s += 32)
        max[a] = fmaxf(max[a], __ldcg(max_sum[a] + int64_t{s} * stride).x);
    }
    for (int d = lane * 4; d - lane * 4 < p.head_dim; d += 128) {
      const bool there = d < p.head_dim;
      float sum[kAt] = {};
      float4 total[kAt] = {};
      for (int base = 0; base < num_splits; base += 32) {
        const int count = min(32, num_splits - base);
        float2 ms[kAt];
        float weight[kAt];
#pragma unroll
        for (int a = 0; a < kAt; ++a) {
          ms[a] = base == 0                  ? first[a]
                  : base + lane < num_splits ? __ldcg(max_sum[a] + int64_t{base + lane} * stride)
                                             : nothing;
          weight[a] = 0.0f;
        }
#pragma unroll 1
        for (int s0 = 0; s0 < count; s0 += 8) {
          float4 v[kAt][8];
#pragma unroll
          for (int a = 0; a < kAt; ++a) {
            const float* values = p.part_out + part[a] * p.head_dim + (there ? d : 0);
#pragma unroll
            for (int s = 0; s < 8; ++s) {
              // Splits beyond the last have no weight.
              int64_t from = base + min(s0 + s, count - 1);
              v[a][s] = __ldcg(reinterpret_cast<const float4*>(values + from * stride * p.head_dim));
            }
          }
#pragma unroll
          for (int a = 0; a < kAt; ++a) {
            if (base == 0 && s0 == 0) {
#pragma unroll
              for (int i = 16; i > 0; i /= 2) max[a] = fmaxf(max[a], __shfl_xor_sync(0xffffffffu, max[a], i));
            }
            if (s0 == 0) {
              weight[a] = exp2f(ms[a].x - (max[a] == -kInfinity ? 0.0f : max[a]));
              sum[a] += ms[a].y * weight[a];
            }
#pragma unroll
            for (int s = 0; s < 8; ++s) {
              float w = __shfl_sync(0xffffffffu, weight[a], s0 + s);
              total[a].x += v[a][s].x * w, total[a].y += v[a][s].y * w;
              total[a].z += v[a][s].z * w, total[a].w += v[a][s].w * w;
            }
          }
        }
      }
#pragma unroll
      for (int a = 0; a < kAt; ++a) {
        const int r = r0 + a * warps;
#pragma unroll
        for (int i = 16; i > 0; i /= 2) sum[a] += __shfl_xor_sync(0xffffffffu, sum[a], i);
        if (r >= item.num_rows) continue;
        const float f = result_factor(p, kv_head, item.first_row + r, max[a], sum[a]);
        total[a].x *= f, total[a].y *= f, total[a].z *= f, total[a].w *= f;
        if (there) store4(p, out_row(p, item, kv_head, item.first_row + r) + d, total[a]);
      }
    }
  }
}

}  // namespace taco::cuda::mma
