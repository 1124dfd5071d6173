// y = x W^T for few rows on Hopper. The weight is the 64-row operand of wgmma, the tokens its columns; both
// come by TMA through a ring of stages that one warp fills and one or two warpgroups empty.
//
// The work of a launch, all pieces of 128 bytes x kBoxes of all tiles in order, is cut into equal ranges, one
// for each block: every SM reads the same number of bytes. Tiles cut by a range's border are summed up in the
// order of k by whichever block comes last, from the float32 partial sums of the others: always the same sum.
// The ranges do not depend on the number of tokens.
//
// Weights do not depend on the kernel before: all stages are filled before pdl_wait(), only x comes after it.
#pragma once

#include <cuda.h>

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/skinny_epilogue.cuh"
#include "backend/cuda/linear/skinny_wgmma.cuh"

namespace taco::cuda::skinny {

struct Args {
  SkinnyEpilogue epilogue;
  int64_t n;
  int m;
  int units_per_tile;
  int64_t units;
  int stages;
  float4* partials;
  int* semaphores;
};

__device__ __forceinline__ uint32_t smem_u32(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void barrier_init(uint64_t* bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(bar)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(bar)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(bar)) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "wait:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni end;\nbra.uni wait;\nend:\n}\n" ::"r"(smem_u32(bar)),
      "r"(parity)
      : "memory");
}
// Level-2 policies as createpolicy makes them.
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000, kEvictLast = 0x14F0000000000000;

__device__ __forceinline__ void tma_load(void* to, const CUtensorMap* map, uint64_t* bar, int x, int y,
                                         uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(smem_u32(to)),
      "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y), "l"(policy)
      : "memory");
}
// Block b of `blocks` has units [range_begin(b), range_begin(b + 1)).
__host__ __device__ inline int64_t range_begin(int64_t b, int64_t units, int64_t blocks) {
  return b * units / blocks;
}
// The block that has unit u.
__host__ __device__ inline int64_t range_of(int64_t u, int64_t units, int64_t blocks) {
  return ((u + 1) * blocks - 1) / units;
}

inline constexpr int kSumPitch = 68;  // floats: conflict-free for the fragment's stores and the rows' loads

template <int kTokens, int kTiles, int kBoxes>
struct Layout {
  static constexpr int kRows = 64 * kTiles;
  static constexpr int kWBox = kRows * 128, kXBox = kTokens * 128;
  static constexpr int kStage = kBoxes * (kWBox + kXBox);
  static constexpr int kSumTokens = kTokens < 32 ? kTokens : 32;  // through shared memory at a time
  static constexpr int kSums = kSumTokens * kSumPitch * 4;
  static constexpr int kExtra = kTiles * kSums + 1024 /* alignment */ + 256 /* barriers */;
  static constexpr int kThreads = 128 * kTiles + 32;
  static constexpr int kMaxStages = 12;
};

template <typename T, int kTokens, int kTiles, int kBoxes>
__global__ void __launch_bounds__(Layout<kTokens, kTiles, kBoxes>::kThreads, kTokens <= 64 ? 2 : 1)
    skinny_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ Args args) {
  using L = Layout<kTokens, kTiles, kBoxes>;
  constexpr int kBoxElements = 128 / static_cast<int>(sizeof(T));
  extern __shared__ uint8_t raw_smem[];
  uint8_t* smem = raw_smem + ((1024 - (smem_u32(raw_smem) & 1023)) & 1023);
  const int stages = args.stages;
  float* sums = reinterpret_cast<float*>(smem + stages * L::kStage);
  uint64_t* full = reinterpret_cast<uint64_t*>(smem + stages * L::kStage + kTiles * L::kSums);
  uint64_t* empty = full + L::kMaxStages;
  volatile int* ticket = reinterpret_cast<int*>(empty + L::kMaxStages);  // [kTiles]

  const int64_t units = args.units;
  const int per_tile = args.units_per_tile;
  const int64_t begin = range_begin(blockIdx.x, units, gridDim.x);
  const int64_t end = range_begin(blockIdx.x + 1, units, gridDim.x);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);  // known to be the same in all lanes

  if (threadIdx.x == kTiles * 128) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kTiles * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();

  if (warp == kTiles * 4) {  // the producer
    if (threadIdx.x % 32 == 0) {
      const int count = static_cast<int>(end - begin);
      int tile = static_cast<int>(begin / per_tile), piece = static_cast<int>(begin % per_tile);
      const int first_tile = tile, first_piece = piece;
      auto next = [&](int& t, int& p) {
        if (++p == per_tile) p = 0, ++t;
      };
      auto load_w = [&](int stage, int t, int p) {
        uint8_t* to = smem + stage * L::kStage;
        barrier_expect(&full[stage], L::kStage);
#pragma unroll
        for (int b = 0; b < kBoxes; ++b)
          tma_load(to + b * L::kWBox, &w_map, &full[stage], (p * kBoxes + b) * kBoxElements, t * L::kRows,
                   kEvictFirst);
      };
      auto load_x = [&](int stage, int p) {
        uint8_t* to = smem + stage * L::kStage + kBoxes * L::kWBox;
#pragma unroll
        for (int b = 0; b < kBoxes; ++b)
          tma_load(to + b * L::kXBox, &x_map, &full[stage], (p * kBoxes + b) * kBoxElements, 0, kEvictLast);
      };
      pdl_launch();  // at once: measured better than when little is left to load
      const int ahead = min(stages, count);
      for (int i = 0; i < ahead; ++i) {
        load_w(i, tile, piece);
        next(tile, piece);
      }
      pdl_wait();
      asm volatile("fence.proxy.async;" ::: "memory");  // x was written by ordinary stores
      {
        int t = first_tile, p = first_piece;
        for (int i = 0; i < ahead; ++i) {
          load_x(i, p);
          next(t, p);
        }
      }
      int stage = 0;
      uint32_t parity = 0;
      for (int i = ahead; i < count; ++i) {
        barrier_wait(&empty[stage], parity);
        load_w(stage, tile, piece);
        load_x(stage, piece);
        next(tile, piece);
        if (++stage == stages) stage = 0, parity ^= 1;
      }
    }
    return;
  }
  pdl_wait();

  const int group = warp / 4;  // warpgroup: its 64 rows of the tile
  const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  auto group_sync = [&] {
    if (kTiles == 1 || group == 0)
      asm volatile("bar.sync 1, 128;" ::: "memory");
    else
      asm volatile("bar.sync 2, 128;" ::: "memory");
  };
  float acc[kTokens / 2];
  int stage = 0;
  uint32_t parity = 0;
  int64_t unit = begin;
  while (unit < end) {
    const int64_t tile = unit / per_tile, tile_begin = tile * per_tile;
    const int64_t stop = min(end, tile_begin + per_tile);
    const bool whole = unit == tile_begin && stop == tile_begin + per_tile;
    const int64_t sub_tile = tile * kTiles + group;
    bool fresh = true;
    for (; unit < stop; ++unit) {
      // Who comes last to its final piece adds up; asked here, where the answer's way costs nothing.
      if (!whole && unit + 1 == stop && thread == 0)
        ticket[group] = atomicAdd(&args.semaphores[sub_tile], 1) & 0xffff;
      barrier_wait(&full[stage], parity);
      const uint32_t w = smem_u32(smem + stage * L::kStage) + group * 64 * 128;
      const uint32_t x = smem_u32(smem + stage * L::kStage + kBoxes * L::kWBox);
      const uint64_t w_desc = wgmma_descriptor(w), x_desc = wgmma_descriptor(x);
      if constexpr (sizeof(T) == 1) {
        // The tensor cores add FP8 products with few mantissa bits: only a stage's worth, then in float32.
        float part[kTokens / 2];
        wgmma_fence();
#pragma unroll
        for (int b = 0; b < kBoxes; ++b) {
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma<T, kTokens>(part, w_desc + (b * L::kWBox + k * 32) / 16,
                              x_desc + (b * L::kXBox + k * 32) / 16, b + k > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) acc[i] = fresh ? part[i] : acc[i] + part[i];
      } else {
        wgmma_fence();
#pragma unroll
        for (int b = 0; b < kBoxes; ++b) {
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma<T, kTokens>(acc, w_desc + (b * L::kWBox + k * 32) / 16,
                              x_desc + (b * L::kXBox + k * 32) / 16, !fresh || b + k > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
      }
      fresh = false;
      if (lane == 0) barrier_arrive(&empty[stage]);
      if (++stage == stages) stage = 0, parity ^= 1;
    }

    int first = 0, last = -1;  // the blocks whose sums make this tile; whole: none but this one
    // A block has at most two cut tiles: at its start, slot 0, and at its end.
    auto slot = [&](int block) {
      const int which = range_begin(block, units, gridDim.x) >= tile_begin ? 0 : 1;
      return args.partials + ((int64_t{block} * 2 + which) * kTiles + group) * (kTokens / 8 * 128) + thread;
    };
    if (!whole) {
      first = static_cast<int>(range_of(tile_begin, units, gridDim.x));
      last = static_cast<int>(range_of(tile_begin + per_tile - 1, units, gridDim.x));
      int* semaphore = &args.semaphores[sub_tile];  // tickets taken; above 16 bits: partial sums stored
      group_sync();
      if (ticket[group] != last - first) {
        float4* mine = slot(blockIdx.x);
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j)
          __stcg(mine + j * 128, make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
        __threadfence();
        group_sync();
        if (thread == 0) atomicAdd(semaphore, 1 << 16);
        continue;
      }
      if (thread == 0) {
        while (atomicAdd(semaphore, 0) >> 16 != last - first) {
        }
        *semaphore = 0;  // for the next launch
        __threadfence();
      }
      group_sync();
    }

    float* mine = sums + group * (L::kSums / 4);
    const int row = thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int t0 = 0; t0 < kTokens; t0 += L::kSumTokens) {
      if (t0 < args.m) {
        constexpr int kParts = L::kSumTokens / 8;
        float4 total[kParts];
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
          const float* d = acc + t0 / 2 + 4 * j;
          total[j] = whole ? make_float4(d[0], d[1], d[2], d[3]) : make_float4(0, 0, 0, 0);
        }
        for (int block = first; block <= last; ++block) {
          const bool own = block == static_cast<int>(blockIdx.x);
          const float4* theirs = slot(block) + t0 / 8 * 128;
#pragma unroll
          for (int j = 0; j < kParts; ++j) {
            const float* d = acc + t0 / 2 + 4 * j;
            const float4 v = own ? make_float4(d[0], d[1], d[2], d[3]) : __ldcg(theirs + j * 128);
            total[j].x += v.x, total[j].y += v.y, total[j].z += v.z, total[j].w += v.w;
          }
        }
        group_sync();  // the last reads of `mine` are over
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
          float* to = mine + (8 * j + lane % 4 * 2) * kSumPitch + row;
          to[0] = total[j].x;
          to[kSumPitch] = total[j].y;
          to[8] = total[j].z;
          to[kSumPitch + 8] = total[j].w;
        }
        group_sync();
        skinny_finish<64, 128>(args.epilogue, mine, kSumPitch, sub_tile * 64, args.n, t0,
                               min(L::kSumTokens, args.m - t0), thread);
      }
    }
  }
}

// Launches, for m <= kTokens.
template <typename T, int kTokens, int kTiles, int kBoxes>
void launch_tile(const SkinnyProduct& p, const SkinnyConfig& config, const CUtensorMap& w_map,
                 const CUtensorMap& x_map, Context& ctx) {
  using L = Layout<kTokens, kTiles, kBoxes>;
  const int64_t k_bytes = p.k * static_cast<int64_t>(sizeof(T));
  Args a;
  a.epilogue = skinny_epilogue(p);
  a.n = p.n;
  a.m = static_cast<int>(p.m);
  a.units_per_tile = static_cast<int>((k_bytes + 128 * kBoxes - 1) / (128 * kBoxes));
  a.units = (p.n + L::kRows - 1) / L::kRows * a.units_per_tile;
  const int smem_limit = static_cast<int>(std::min<size_t>(config.smem_kb * 1024, ctx.max_smem));
  a.stages = std::min((smem_limit - L::kExtra) / L::kStage, L::kMaxStages);
  if (a.stages < 2) a.stages = std::min<int>((static_cast<int>(ctx.max_smem) - L::kExtra) / L::kStage, 3);
  TACO_CHECK(a.stages >= 2, "a skinny product's stages of ", L::kStage, " bytes do not fit");
  // A block with less than two units costs more in sums than it reads.
  const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>(int64_t{ctx.num_sms}, a.units / 2));
  const SkinnyScratch scratch = skinny_scratch(ctx);
  a.partials = reinterpret_cast<float4*>(scratch.partials);
  a.semaphores = scratch.semaphores;
  launch(ctx, skinny_kernel<T, kTokens, kTiles, kBoxes>, dim3(static_cast<unsigned>(blocks)),
         dim3(L::kThreads), static_cast<size_t>(a.stages * L::kStage + L::kExtra), w_map, x_map, a);
}

template <typename T>
void launch_tokens(int tokens, const SkinnyProduct& p, const SkinnyConfig& config, const CUtensorMap& w_map,
                   const CUtensorMap& x_map, Context& ctx);
extern template void launch_tokens<__nv_bfloat16>(int, const SkinnyProduct&, const SkinnyConfig&,
                                                  const CUtensorMap&, const CUtensorMap&, Context&);
extern template void launch_tokens<__half>(int, const SkinnyProduct&, const SkinnyConfig&, const CUtensorMap&,
                                           const CUtensorMap&, Context&);
extern template void launch_tokens<__nv_fp8_e4m3>(int, const SkinnyProduct&, const SkinnyConfig&,
                                                  const CUtensorMap&, const CUtensorMap&, Context&);

}  // namespace taco::cuda::skinny
