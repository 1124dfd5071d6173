// Products of the rows of each expert with its weight, by mma.sync with a pipeline of cp.async. The weight is
// the operand of sixteen rows, tokens that of eight, so that few tokens cost little: blocks walk over (token
// tile, weight tile) pairs of all experts, whose number only the device knows, and their loads run ahead over
// tile borders.
#pragma once

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/element.cuh"
#include "backend/cuda/moe/moe_kernels.h"

namespace taco::cuda {
namespace grouped {

using namespace element;

__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// bytes: 16, or 0 to write zeros.
__device__ __forceinline__ void copy16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wait_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
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
__device__ __forceinline__ uint32_t transpose8x8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float a, float b) {
  Elements<T, 2> e{{from_float<T>(a), from_float<T>(b)}};
  return *reinterpret_cast<uint32_t*>(&e);
}

// Two e4m3 values, in bytes kByte and kByte + 1 of v, as a pair of T: the exponent and mantissa bits moved to
// T's places, and the difference of the biases made up by a multiplication, which is exact for subnormal
// values too.
template <typename T, int kByte>
__device__ __forceinline__ uint32_t widen(uint32_t v) {
  const uint32_t spread = __byte_perm(v, 0, kByte == 0 ? 0x1404 : 0x3424);
  if constexpr (std::is_same_v<T, __half>) {
    const uint32_t bits = (spread & 0x80008000u) | ((spread >> 1) & 0x3f803f80u);
    const __half2 y = __hmul2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(256.0f));
    return *reinterpret_cast<const uint32_t*>(&y);
  } else {
    const uint32_t bits = (spread & 0x80008000u) | ((spread >> 4) & 0x07f007f0u);
    const __nv_bfloat162 y =
        __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits), __float2bfloat162_rn(0x1p120f));
    return *reinterpret_cast<const uint32_t*>(&y);
  }
}

// kRows weight rows by kTokens tokens for a block, kWarpRows by kWarpTokens for a warp; K in steps of 64.
template <bool kFp8, int kRows, int kTokens, int kWarpRows, int kWarpTokens, int kStages, int kBlocks>
struct Config {
  static constexpr bool fp8 = kFp8;
  static constexpr int rows = kRows, tokens = kTokens, warp_rows = kWarpRows, warp_tokens = kWarpTokens;
  static constexpr int stages = kStages, blocks = kBlocks;  // blocks on a multiprocessor
  static constexpr int threads = kRows / kWarpRows * (kTokens / kWarpTokens) * 32;
  static constexpr int step = 64;
  static constexpr int row_bytes = kFp8 ? 64 : 128;
  static constexpr int weight_bytes = kRows * row_bytes, stage_bytes = weight_bytes + kTokens * 128;
  static constexpr int weight_loads = weight_bytes / 16 / threads;
  static constexpr int token_loads = (kTokens * 8 + threads - 1) / threads;
  static constexpr size_t smem =
      static_cast<size_t>(kStages) * stage_bytes + (kMaxExperts + 1) * sizeof(int32_t);
  static_assert(weight_bytes % (16 * threads) == 0 && kWarpRows % 16 == 0 && kWarpTokens % 8 == 0);
};

struct Tile {
  int expert, split;
  int64_t row0;    // of the weight
  int begin, end;  // positions of its tokens
};

template <int kTokens>
__device__ __forceinline__ Tile find_tile(const GroupedParams& p, const int32_t* starts, int64_t index,
                                          int64_t rows) {
  const int split = static_cast<int>(index % p.splits);
  index /= p.splits;
  // Token tiles of one weight tile are side by side: blocks that run together share the weight through L2.
  int lo = 0, hi = p.num_experts;
  const int64_t weight_tiles = (p.n + rows - 1) / rows;
  while (hi - lo >
         1) {  // the last expert that starts at or before the index: those before it there are empty
    const int mid = (lo + hi) / 2;
    if (starts[mid] * weight_tiles <= index) {
      lo = mid;
    } else {
      hi = mid;
    }
  }
  const int tiles = starts[lo + 1] - starts[lo];
  const int64_t local = index - starts[lo] * weight_tiles;
  const int first = p.plan.offsets[lo], end = p.plan.offsets[lo + 1];
  const int begin = first + static_cast<int>(local % tiles) * kTokens;
  return {lo, split, local / tiles * rows, begin, min(begin + kTokens, end)};
}

template <typename T, typename C>
__global__ void __launch_bounds__(C::threads, C::blocks) grouped_kernel(GroupedParams p) {
  extern __shared__ __align__(128) char smem[];
  auto* starts = reinterpret_cast<int32_t*>(smem + C::stages * C::stage_bytes);
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  pdl_wait();
  pdl_launch();
  for (int e = tid; e <= p.num_experts; e += C::threads) starts[e] = p.plan.tile_starts[e];
  __syncthreads();
  const int64_t weight_tiles = (p.n + C::rows - 1) / C::rows;
  const int64_t total = starts[p.num_experts] * weight_tiles * p.splits;
  const int all_steps = static_cast<int>((p.k + C::step - 1) / C::step);
  const int split_steps = (all_steps + p.splits - 1) / p.splits;  // the host leaves no split without any

  // The loads' own place in the walk.
  constexpr int kWeightChunks = C::row_bytes / 16;  // of a row
  constexpr int kElement = C::fp8 ? 1 : 2;
  int64_t load_tile = blockIdx.x;
  int load_step = 0, load_end = 0;
  const char* weight = nullptr;
  int64_t weight_rows = 0;
  const char* token_rows[C::token_loads];
  auto start_loads = [&] {
    if (load_tile >= total) return;
    const Tile tile = find_tile<C::tokens>(p, starts, load_tile, C::rows);
    weight = static_cast<const char*>(p.experts[tile.expert].weight) + tile.row0 * p.k * kElement;
    weight_rows = p.n - tile.row0;
    load_step = tile.split * split_steps;
    load_end = min(load_step + split_steps, all_steps);
#pragma unroll
    for (int i = 0; i < C::token_loads; ++i) {
      const int position = tile.begin + (tid + i * C::threads) / 8;
      token_rows[i] = nullptr;
      if ((tid + i * C::threads) / 8 < C::tokens && position < tile.end) {
        const int64_t row = p.by_row ? p.plan.pairs[position] / p.top_k : position;
        token_rows[i] = static_cast<const char*>(p.x) + row * p.x_stride * 2;
      }
    }
  };
  auto load = [&](int stage) {
    if (load_tile < total) {
      const uint32_t at = smem_address(smem) + stage * C::stage_bytes;
      const int64_t k0 = static_cast<int64_t>(load_step) * C::step;
#pragma unroll
      for (int i = 0; i < C::weight_loads; ++i) {
        const int chunk = (tid + i * C::threads) % kWeightChunks,
                  row = (tid + i * C::threads) / kWeightChunks;
        const int64_t k = k0 + chunk * (16 / kElement);
        const int swizzled = C::fp8 ? chunk ^ ((row >> 1) & 3) : chunk ^ (row & 7);
        const bool inside = row < weight_rows && k < p.k;
        copy16(at + row * C::row_bytes + swizzled * 16, inside ? weight + (row * p.k + k) * kElement : weight,
               inside ? 16 : 0);
      }
#pragma unroll
      for (int i = 0; i < C::token_loads; ++i) {
        const int chunk = tid % 8, token = (tid + i * C::threads) / 8;
        const int64_t k = k0 + chunk * 8;
        const bool inside = token_rows[i] != nullptr && k < p.k;
        if (C::tokens * 8 % C::threads == 0 || token < C::tokens) {
          copy16(at + C::weight_bytes + token * 128 + (chunk ^ (token & 7)) * 16,
                 inside ? token_rows[i] + k * 2 : static_cast<const char*>(p.x), inside ? 16 : 0);
        }
      }
      if (++load_step == load_end) {
        load_tile += gridDim.x;
        start_loads();
      }
    }
    commit();
  };

  constexpr int kM = C::warp_rows / 16, kN = C::warp_tokens / 8;
  constexpr int kWarpsDown = C::rows / C::warp_rows;
  const int warp_row = warp % kWarpsDown * C::warp_rows, warp_token = warp / kWarpsDown * C::warp_tokens;
  float acc[kM][kN][4];

  auto compute = [&](int stage) {
    const uint32_t weights = smem_address(smem) + stage * C::stage_bytes, tokens = weights + C::weight_bytes;
    if constexpr (C::fp8) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {  // two steps of sixteen columns
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const int row = warp_row + m * 16 + lane % 16, chunk = pair * 2 + lane / 16;
          ldmatrix4(a[m], weights + row * 64 + (chunk ^ ((row >> 1) & 3)) * 16);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // A thread holds columns 4t..4t+3 of the sixteen; the tokens are read in the same order.
          uint32_t wide[kM][4];
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            wide[m][0] = widen<T, 0>(a[m][2 * half]);
            wide[m][1] = widen<T, 0>(a[m][2 * half + 1]);
            wide[m][2] = widen<T, 2>(a[m][2 * half]);
            wide[m][3] = widen<T, 2>(a[m][2 * half + 1]);
          }
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            const int token = warp_token + n * 8 + lane / 4;
            const int chunk = (pair * 2 + half) * 2 + lane % 4 / 2;
            uint32_t b0, b1;
            asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                         : "=r"(b0), "=r"(b1)
                         : "r"(tokens + token * 128 + (chunk ^ (token & 7)) * 16 + lane % 2 * 8)
                         : "memory");
#pragma unroll
            for (int m = 0; m < kM; ++m) mma<T>(acc[m][n], wide[m], b0, b1);
          }
        }
      }
    } else {
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const int row = warp_row + m * 16 + lane % 16, chunk = kk * 2 + lane / 16;
          ldmatrix4(a[m], weights + row * 128 + (chunk ^ (row & 7)) * 16);
        }
        if constexpr (kN == 1) {
          uint32_t b[2];
          const int token = warp_token + lane % 8, chunk = kk * 2 + lane / 8 % 2;
          ldmatrix2(b, tokens + token * 128 + (chunk ^ (token & 7)) * 16);
#pragma unroll
          for (int m = 0; m < kM; ++m) mma<T>(acc[m][0], a[m], b[0], b[1]);
        } else {
#pragma unroll
          for (int n = 0; n < kN; n += 2) {
            uint32_t b[4];
            const int token = warp_token + n * 8 + lane / 16 * 8 + lane % 8, chunk = kk * 2 + lane / 8 % 2;
            ldmatrix4(b, tokens + token * 128 + (chunk ^ (token & 7)) * 16);
#pragma unroll
            for (int m = 0; m < kM; ++m) {
              mma<T>(acc[m][n], a[m], b[0], b[1]);
              mma<T>(acc[m][n + 1], a[m], b[2], b[3]);
            }
          }
        }
      }
    }
  };

  // Thread (g, t) has rows g and g + 8 of each sixteen, tokens 2t and 2t + 1 of each eight.
  auto store = [&](const Tile& tile) {
    const int g = lane / 4, t = lane % 4;
    const Expert expert = p.experts[tile.expert];
    const int64_t width = p.gated ? p.n / 2 : p.n;
    const float scale = C::fp8 ? *expert.scale : 1.0f;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const int position = tile.begin + warp_token + n * 8 + g;  // of the token that this thread stores
      T* out = nullptr;
      if (position < tile.end)
        out = static_cast<T*>(p.out) + (p.by_row ? position : p.plan.pairs[position]) * width;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const int64_t row = tile.row0 + warp_row + m * 16;
        float(&d)[4] = acc[m][n];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t own = row + half * 8 + g;
          const float bias = expert.bias != nullptr && own < p.n && tile.split == 0 ? expert.bias[own] : 0.0f;
          d[2 * half] = d[2 * half] * scale + bias;
          d[2 * half + 1] = d[2 * half + 1] * scale + bias;
        }
        if (p.splits > 1) {
          float* partial = static_cast<float*>(p.out) + tile.split * p.pairs * p.n;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int64_t own = row + i / 2 * 8 + g;
            const int at = tile.begin + warp_token + n * 8 + 2 * t + i % 2;
            if (at < tile.end && own < p.n) partial[p.plan.pairs[at] * p.n + own] = d[i];
          }
        } else if (p.gated) {
          float gate[2] = {d[0], d[1]};
          gate_inputs(p.gating, gate[0], d[2]);
          gate_inputs(p.gating, gate[1], d[3]);
          activate_all(p.activation, gate);
          const uint32_t v = transpose8x8(pack<T>(gate[0] * d[2], gate[1] * d[3]));
          if (out != nullptr && row < p.n) *reinterpret_cast<uint32_t*>(out + row / 2 + 2 * t) = v;
        } else {
          activate_all(p.activation, d);
          const uint32_t v0 = transpose8x8(pack<T>(d[0], d[1])), v1 = transpose8x8(pack<T>(d[2], d[3]));
          if (out != nullptr && row < p.n) *reinterpret_cast<uint32_t*>(out + row + 2 * t) = v0;
          if (out != nullptr && row + 8 < p.n) *reinterpret_cast<uint32_t*>(out + row + 8 + 2 * t) = v1;
        }
      }
    }
  };

  start_loads();
#pragma unroll
  for (int s = 0; s < C::stages - 1; ++s) load(s);
  int stage = 0;
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0f;
    const int begin = static_cast<int>(index % p.splits) * split_steps;
    for (int step = begin; step < min(begin + split_steps, all_steps); ++step) {
      wait_groups<C::stages - 2>();
      __syncthreads();
      load(stage == 0 ? C::stages - 1 : stage - 1);
      compute(stage);
      stage = stage + 1 == C::stages ? 0 : stage + 1;
    }
    store(find_tile<C::tokens>(p, starts, index, C::rows));
  }
}

template <typename T, bool kFp8, int kTokens>
void launch_tile(const GroupedParams& p, const Context& ctx) {
  // FP8 weights are half as many bytes and need more instructions for each: more warps.
  constexpr int kSmall = kTokens <= 16 ? kTokens : 16;
  using C = std::conditional_t<
      kTokens == 128, Config<kFp8, 128, 128, 64, 64, 3, 2>,
      std::conditional_t<kTokens == 64, Config<kFp8, 64, 64, 32, 32, 6, kFp8 ? 3 : 2>,
                         std::conditional_t<kTokens == 32, Config<kFp8, 64, 32, 16, 32, 7, kFp8 ? 3 : 2>,
                                            Config<kFp8, 64, kSmall, 16, kSmall, 8, kFp8 ? 4 : 2>>>>;
  // No more blocks than there can be tiles.
  const int64_t most = (std::min<int64_t>(p.pairs, p.num_experts) + p.pairs / kTokens) *
                       ((p.n + C::rows - 1) / C::rows) * p.splits;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(most, int64_t{ctx.num_sms} * C::blocks));
  launch(ctx, grouped_kernel<T, C>, dim3(blocks), dim3(C::threads), C::smem, p);
}

template <typename T>
void launch_grouped(const GroupedParams& p, bool fp8, int tile, const Context& ctx) {
#define TACO_GROUPED(tokens) \
  case tokens:               \
    return fp8 ? launch_tile<T, true, tokens>(p, ctx) : launch_tile<T, false, tokens>(p, ctx)
  switch (tile) {
    TACO_GROUPED(8);
    TACO_GROUPED(16);
    TACO_GROUPED(32);
    TACO_GROUPED(64);
    TACO_GROUPED(128);
    default:
      fail(ErrorCode::kInternal, "no grouped product for tiles of ", tile, " tokens");
  }
#undef TACO_GROUPED
}

}  // namespace grouped
}  // namespace taco::cuda
