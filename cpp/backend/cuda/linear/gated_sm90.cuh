// Products of many rows on Hopper whose result is gated on its way out: out = act(x Wg^T) * (x Wu^T), one
// pass over memory instead of three. wgmma on tiles of 128 rows by 256 weight rows (gate and up interleaved
// by eight), loaded by TMA; the two blocks of a cluster have the same weight tile and load half of it each,
// for both (or, with few rows, of the same rows).
#pragma once

#include <cuda.h>

#include "backend/cuda/attention/prefill_sm90_ptx.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/element.cuh"
#include "backend/cuda/linear/gated_sm90.h"

namespace taco::cuda::gated {

using namespace element;

constexpr int kTileRows = 128, kTileColumns = 256, kStages = 4;
constexpr int kRowBytes = kTileRows * 128,
              kWeightBytes = kTileColumns * 128;  // of a stage: 128 bytes of K
constexpr int kStageBytes = kRowBytes + kWeightBytes;
constexpr int kOutBytes = 64 * 128;  // of a warpgroup's store: 64 rows of 64 outputs
constexpr int kMaxGroups = 256;      // experts
constexpr int kSmem = kStages * kStageBytes + 4 * kOutBytes + 2 * kStages * 8 + (kMaxGroups + 1) * 4 + 1024;
static_assert(kSmem <= 227 * 1024);
constexpr int kThreads = 384,
              kGroup = 8;  // pairs of row tiles that are done together, for L2

__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c0,
                                         int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::"
      "complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void load_box_both(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c0,
                                              int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::"
      "complete_tx::bytes.multicast::cluster "
      "[%0], "
      "[%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "h"(static_cast<uint16_t>(3))
      : "memory");
}
__device__ __forceinline__ void store_box(const CUtensorMap* map, uint32_t from, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group "
      "[%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(from), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until earlier stores have read their source, or are done.
__device__ __forceinline__ void stores_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void stores_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void stmatrix4(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}

// Arrives at the barrier which block `rank` of the cluster has at this address. It orders no memory accesses
// between blocks (a release of the cluster's scope would be a fence of the whole device, a microsecond): what
// the barrier guards was read by wgmma, which has ended, and is written by TMA.
__device__ __forceinline__ void arrive_at(uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

// d[4 j + 2 h + i] of a thread: row 16 * warp + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + i. 32 bytes of K.
#define TACO_WGMMA_N256(SHAPE_K, TYPES, TAIL)                                                             \
  asm volatile(                                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, "                                                           \
      "0;\nwgmma.mma_async.sync.aligned.m64n256" SHAPE_K ".f32." TYPES                                    \
      " {"                                                                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                            \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "                            \
      "%30, %31, "                                                                                        \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "                            \
      "%46, %47, "                                                                                        \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "                            \
      "%62, %63, "                                                                                        \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "                            \
      "%78, %79, "                                                                                        \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, "                            \
      "%94, %95, "                                                                                        \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "                              \
      "%108, %109, %110, %111, "                                                                          \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "                                \
      "%123, %124, %125, %126, %127"                                                                      \
      "}, %128, %129, p, " TAIL ";\n}\n"                                                                  \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),   \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),          \
        "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),        \
        "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),        \
        "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),        \
        "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),        \
        "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),        \
        "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),        \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),        \
        "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]),        \
        "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]),        \
        "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]),        \
        "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]),        \
        "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]),        \
        "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]),  \
        "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), \
        "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), \
        "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), \
        "+f"(d[127])                                                                                      \
      : "l"(a), "l"(b), "r"(accumulate))

template <typename T>
__device__ __forceinline__ void wgmma256(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    TACO_WGMMA_N256("k16", "bf16.bf16", "1, 1, 0, 0");
  } else if constexpr (std::is_same_v<T, __half>) {
    TACO_WGMMA_N256("k16", "f16.f16", "1, 1, 0, 0");
  } else {
    TACO_WGMMA_N256("k32", "e4m3.e4m3", "1, 1");
  }
}
#undef TACO_WGMMA_N256

__device__ __forceinline__ float silu(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + sm90::exp2_approx(x * -1.4426950408889634f)));
  return x * inverse;
}

struct Shape {
  int m_pairs, n_tiles, steps, step;  // step: elements of K
  // One tile of rows: a cluster's blocks share it and have weight tiles of their own. m_pairs is 1.
  bool share_rows;
  Activation activation;
  const float *x_scales, *w_scale;  // FP8: [rows]; one
  int rows;
  // Experts: the rows of each are whole pairs of tiles, from tile_starts[e] (in pairs) on.
  int groups;
  const int32_t* tile_starts;  // [groups + 1]
  const CUtensorMap* w_maps;   // [groups], in global memory
  const char* w_scales;        // FP8: pointers to the experts' scales, w_scale_stride bytes apart
  int64_t w_scale_stride;
};

struct Place {
  int m, n;  // the block's first row and first weight row
};
__device__ __forceinline__ Place place(const Shape& s, int m_pairs, int index, int rank) {
  if (s.share_rows) return {0, (2 * index + rank) * kTileColumns};
  const int each = kGroup * s.n_tiles, group = index / each, local = index - group * each;
  const int pairs = min(kGroup, m_pairs - group * kGroup);
  return {((group * kGroup + local % pairs) * 2 + rank) * kTileRows, local / pairs * kTileColumns};
}

// The last expert that starts at or before this row: those before it that start there too have no rows.
__device__ __forceinline__ int group_of(const int32_t* starts, int groups, int row) {
  int low = 0, high = groups;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (starts[middle] * 2 * kTileRows <= row ? low : high) = middle;
  }
  return low;
}

// T: of x and W. O: of the output.
template <typename T, typename O, bool kGated, bool kGrouped>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    gated_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                 const __grid_constant__ CUtensorMap out_map, const Shape shape) {
  using namespace sm90;
  extern __shared__ char raw_smem[];
  // Swizzled tiles stand at multiples of 1,024 bytes; both blocks have the same addresses.
  const uint32_t smem = (smem_address(raw_smem) + 1023) / 1024 * 1024;
  const uint32_t outs = smem + kStages * kStageBytes;
  const uint32_t full = outs + 4 * kOutBytes, empty = full + kStages * 8;
  const int group = threadIdx.x / 128, rank = blockIdx.x % 2;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(full + s * 8, 1);
      mbarrier_init(empty + s * 8, 4);  // two warpgroups of two blocks
    }
    fence_barrier_init();
  }
  cluster_barrier();
  pdl_wait();
  pdl_launch();
  int m_pairs = shape.m_pairs;
  const uint32_t starts_at = empty + kStages * 8;
  auto* starts = reinterpret_cast<int32_t*>(raw_smem + (starts_at - smem_address(raw_smem)));
  if constexpr (kGrouped) {
    for (int e = threadIdx.x; e <= shape.groups; e += kThreads) starts[e] = shape.tile_starts[e];
    __syncthreads();
    m_pairs = starts[shape.groups];
  }
  const int total = shape.share_rows ? (shape.n_tiles + 1) / 2 : m_pairs * shape.n_tiles,
            first = blockIdx.x / 2, stride = gridDim.x / 2;

  if (group == 0) {
    registers_down<40>();
    if (threadIdx.x == 0) {
      int stage = 0;
      uint32_t phase = 1;  // the first round finds the stages empty
      for (int index = first; index < total; index += stride) {
        const Place at = place(shape, m_pairs, index, rank);
        const CUtensorMap* weights = &w_map;
        if constexpr (kGrouped) weights = shape.w_maps + group_of(starts, shape.groups, at.m);
        for (int step = 0; step < shape.steps; ++step) {
          const uint32_t base = smem + stage * kStageBytes, barrier = full + stage * 8;
          mbarrier_wait(empty + stage * 8, phase);
          mbarrier_expect(barrier, kStageBytes);
          const uint32_t w_base = base + kRowBytes;
          const int k = step * shape.step;
          if (shape.share_rows) {
            load_box_both(base + rank * (kRowBytes / 2), &x_map, barrier, k, at.m + rank * (kTileRows / 2));
            load_box(w_base, weights, barrier, k, at.n);
            load_box(w_base + kWeightBytes / 2, weights, barrier, k, at.n + kTileColumns / 2);
          } else {
            load_box(base, &x_map, barrier, k, at.m);
            load_box(base + kRowBytes / 2, &x_map, barrier, k, at.m + kTileRows / 2);
            load_box_both(w_base + rank * (kWeightBytes / 2), weights, barrier, k,
                          at.n + rank * (kTileColumns / 2));
          }
          if (++stage == kStages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
  } else {
    registers_up<232>();
    const int consumer = group - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const uint32_t out_tile = outs + consumer * 2 * kOutBytes;
    float d[128];
    int stage = 0;
    uint32_t phase = 0;
    auto release = [&](int s) {  // one thread for each block of the cluster
      if (thread % 32 == 0 && warp < 2) arrive_at(empty + s * 8, warp);
    };
    for (int index = first; index < total; index += stride) {
      const Place at = place(shape, m_pairs, index, rank);
      int previous = 0;
      for (int step = 0; step < shape.steps; ++step) {
        mbarrier_wait(full + stage * 8, phase);
        const uint32_t base = smem + stage * kStageBytes;
        const uint64_t a = descriptor(base + consumer * (kRowBytes / 2), 16, 1024);
        const uint64_t b = descriptor(base + kRowBytes, 16, 1024);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)  // 32 bytes of K each: two units of sixteen
          wgmma256<T>(d, a + 2 * k, b + 2 * k, step > 0 || k > 0);
        wgmma_commit();
        if (step > 0) {
          wgmma_wait<1>();
          release(previous);
        }
        previous = stage;
        if (++stage == kStages) {
          stage = 0;
          phase ^= 1;
        }
      }
      wgmma_wait<0>();
      release(previous);

      const int row0 = at.m + consumer * 64, tile_row = warp * 16 + lane / 4;
      float scales[2] = {1.0f, 1.0f};
      if constexpr (sizeof(T) == 1) {
        const float* w_scale = shape.w_scale;
        if constexpr (kGrouped) {
          w_scale = *reinterpret_cast<const float* const*>(
              shape.w_scales + group_of(starts, shape.groups, at.m) * shape.w_scale_stride);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = row0 + tile_row + 8 * h;
          scales[h] = row < shape.rows ? shape.x_scales[row] * *w_scale : 0.0f;
        }
      }
      const int matrix = lane / 8;
      const int store_row = warp * 16 + matrix % 2 * 8 + lane % 8;
      constexpr bool kHalfOut = std::is_same_v<O, __half>;
      // Two boxes of 64 outputs at a time.
      auto write = [&](auto activation) {
#pragma unroll
        for (int round = 0; round < (kGated ? 1 : 2); ++round) {
          if (thread == 0) stores_read();
          barrier_sync(1 + consumer, 128);
#pragma unroll
          for (int j = 0; j < 16; j += 2) {  // groups of eight outputs
            uint32_t v[4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float y[4];
#pragma unroll
              for (int e = 0; e < 4; ++e)
                y[e] = d[kGated ? (j + i) * 8 + e : (round * 16 + j + i) * 4 + e] * scales[e / 2];
              activation(y);
              if constexpr (kGated) {
#pragma unroll
                for (int e = 0; e < 4; ++e) y[e] *= d[(j + i) * 8 + 4 + e] * scales[e / 2];
              }
              v[2 * i] = pack<kHalfOut>(y[0], y[1]);
              v[2 * i + 1] = pack<kHalfOut>(y[2], y[3]);
            }
            const int chunk = (j + matrix / 2) % 8;
            stmatrix4(out_tile + j / 8 * kOutBytes + store_row * 128 + ((chunk ^ (store_row & 7)) << 4), v[0],
                      v[1], v[2], v[3]);
          }
          fence_async_proxy();
          barrier_sync(1 + consumer, 128);
          if (thread == 0) {
            const int column = (kGated ? at.n / 2 : at.n) + round * 128;
            store_box(&out_map, out_tile, column, row0);
            store_box(&out_map, out_tile + kOutBytes, column + 64, row0);
            store_commit();
          }
        }
      };
      // The usual ones without a switch among the outputs.
      if (kGated && shape.activation == Activation::kSilu) {
        write([](float(&y)[4]) {
#pragma unroll
          for (int e = 0; e < 4; ++e) y[e] = silu(y[e]);
        });
      } else if (!kGated && shape.activation == Activation::kNone) {
        write([](float(&)[4]) {});
      } else {
        write([&](float(&y)[4]) { activate_all(shape.activation, y); });
      }
    }
    if (thread == 0) stores_done();
  }
  cluster_barrier();  // the other block may still write here
}

}  // namespace taco::cuda::gated
