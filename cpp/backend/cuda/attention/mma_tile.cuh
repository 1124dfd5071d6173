// Attention of many rows: tiles of 64 or 128 packed query rows, 16 for each warp, against tiles of keys that
// all warps share, two stages deep. Tiles of keys begin at multiples of their length, so that a row's
// arithmetic does not depend on what else its tile holds.
#pragma once

#include "backend/cuda/attention/mma_common.cuh"

namespace taco::cuda::mma {

template <int kDim>
constexpr int tile_keys() {
  return kDim > 128 ? 32 : 64;
}
// With 256 dims the queries' registers live in shared memory.
template <int kDim>
constexpr bool queries_in_smem() {
  return kDim > 128;
}

template <typename T, int kDim>
constexpr size_t tile_smem(int rows) {
  return size_t{2} * 2 * tile_keys<kDim>() * kDim * T::kBytes +
         (queries_in_smem<kDim>() ? rows * kDim * 2 : 0);
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kDim > 128 ? 128 : 256) tile_kernel(const __grid_constant__ PagedParams p) {
  constexpr int kKeys = tile_keys<kDim>(), kRowBytes = kDim * T::kBytes, kTileBytes = kKeys * kRowBytes;
  constexpr int kSteps = kDim / 16, kChunks = kRowBytes / 16, kBlocks = kKeys / 8;
  constexpr bool kSmemQ = queries_in_smem<kDim>();
  extern __shared__ __align__(128) uint8_t smem[];
  __shared__ WorkItem item;
  __shared__ int flag;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t tiles = smem_address(smem);
  uint4* smem_q = reinterpret_cast<uint4*>(smem + 4 * kTileBytes) + warp * kSteps * 32 + lane;
  const int steps = p.head_dim / 16, chunks = p.head_dim * T::kBytes / 16;
  const int token_bytes = p.head_dim * T::kBytes;
  const int64_t panel_bytes = int64_t{token_bytes} * p.block_size;
  const int64_t block_bytes = 2 * p.num_kv_heads * panel_bytes, value_bytes = p.value_offset * T::kBytes;

  pdl_launch();
  pdl_wait();
  const int work_count = p.header->num_chunks * p.num_kv_heads;
  for (int work = blockIdx.x; work < work_count; work += gridDim.x) {
    const int kv_head = work % p.num_kv_heads;
    __syncthreads();
    if (threadIdx.x < 3)
      reinterpret_cast<int4*>(&item)[threadIdx.x] =
          reinterpret_cast<const int4*>(p.items + work / p.num_kv_heads)[threadIdx.x];
    __syncthreads();
    const uint8_t* cache = static_cast<const uint8_t*>(p.cache) + kv_head * panel_bytes;
    const int32_t* table = p.block_tables + item.seq * p.max_blocks;

    auto copy_tile = [&](int tile, int stage) {
      const int col = threadIdx.x % kChunks, sub = threadIdx.x / kChunks, step = blockDim.x / kChunks;
      const uint32_t to = tiles + stage * 2 * kTileBytes;
      if (col < chunks) {
#pragma unroll 4
        for (int t = sub; t < kKeys; t += step) {
          int token = tile * kKeys + t;
          bool there = token >= item.kv_begin && token < item.kv_end;
          int64_t block = there ? __ldg(table + (token >> p.block_shift)) : 0;
          const uint8_t* from =
              cache + block * block_bytes + (token & (p.block_size - 1)) * token_bytes + col * 16;
          uint32_t place = to + tile_offset<kRowBytes>(t, col);
          cp_async16(place, from, there ? 16 : 0);
          cp_async16(place + kTileBytes, from + value_bytes, there ? 16 : 0);
        }
      }
      cp_async_commit();
    };
    const int first_tile = item.kv_begin / kKeys, end_tile = (item.kv_end + kKeys - 1) / kKeys;
    if (first_tile < end_tile) copy_tile(first_tile, 0);

    uint32_t query[kSmemQ ? 1 : kSteps][4];
    RowRule rules[2];
    {
      const uint16_t* from[2];
      bool there[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int row = warp * 16 + h * 8 + lane / 4, packed = item.first_row + row;
        there[h] = row < item.num_rows;
        int j = divide(packed, p.group_inverse), head = kv_head * p.group + packed - j * p.group;
        from[h] =
            static_cast<const uint16_t*>(p.q) + (item.row0 + j) * p.q_stride + int64_t{head} * p.head_dim;
        rules[h] = row_rule(p, item, kv_head, packed);
      }
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        int d = k * 16 + (lane % 4) * (T::kFp8 ? 4 : 2), e = d + (T::kFp8 ? 2 : 8);
        uint32_t a[4];
        a[0] = there[0] && k < steps ? load_query2<T::kHalf>(from[0] + d, p.q_half) : 0u;
        a[1] = there[1] && k < steps ? load_query2<T::kHalf>(from[1] + d, p.q_half) : 0u;
        a[2] = there[0] && k < steps ? load_query2<T::kHalf>(from[0] + e, p.q_half) : 0u;
        a[3] = there[1] && k < steps ? load_query2<T::kHalf>(from[1] + e, p.q_half) : 0u;
        if constexpr (kSmemQ) {
          smem_q[k * 32] = make_uint4(a[0], a[1], a[2], a[3]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) query[k][i] = a[i];
        }
      }
    }

    const SeenRange seen = seen_range(p, item);
    float out[2 * kSteps][4] = {};
    float max[2] = {-kInfinity, -kInfinity}, sum[2] = {0.0f, 0.0f};
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const int stage = (tile - first_tile) & 1;
      cp_async_wait<0>();
      __syncthreads();
      if (tile + 1 < end_tile) copy_tile(tile + 1, stage ^ 1);
      if (warp * 16 >= item.num_rows) continue;  // a tile of few rows
      const uint32_t keys = tiles + stage * 2 * kTileBytes, values = keys + kTileBytes;

      float score[kBlocks][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        if (k < steps) {
          uint32_t a[4];
          if constexpr (kSmemQ) {
            uint4 x = smem_q[k * 32];
            a[0] = x.x, a[1] = x.y, a[2] = x.z, a[3] = x.w;
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = query[k][i];
          }
#pragma unroll
          for (int n = 0; n < kBlocks / 2; ++n) {
            if constexpr (T::kFp8) {
              uint32_t b[2];
              ldmatrix2(b, keys + tile_offset<kRowBytes>(n * 16 + (lane & 15), k));
              mma16816<true>(score[2 * n], a, widen_fp8(b[0], kBytes01, p.e5m2),
                             widen_fp8(b[0], kBytes23, p.e5m2));
              mma16816<true>(score[2 * n + 1], a, widen_fp8(b[1], kBytes01, p.e5m2),
                             widen_fp8(b[1], kBytes23, p.e5m2));
            } else {
              uint32_t b[4];
              ldmatrix4(b, keys + tile_offset<kRowBytes>(n * 16 + (lane & 7) + (lane / 16) * 8,
                                                         2 * k + ((lane / 8) & 1)));
              mma16816<T::kHalf>(score[2 * n], a, b[0], b[1]);
              mma16816<T::kHalf>(score[2 * n + 1], a, b[2], b[3]);
            }
          }
        }
      }

#pragma unroll
      for (int n = 0; n < kBlocks; ++n) cap_scores(score[n], p);
      if (tile * kKeys < seen.begin || (tile + 1) * kKeys > seen.end) {
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            score[n][i] = rule_score(score[n][i], rules[i / 2], p, item,
                                     tile * kKeys + n * 8 + (lane % 4) * 2 + (i & 1));
        }
      }
      float scale[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = max[h];
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) top = fmaxf(top, fmaxf(score[n][2 * h], score[n][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        float base = top == -kInfinity ? 0.0f : top;
        scale[h] = exp2f(max[h] - base);
        max[h] = top;
        sum[h] *= scale[h];
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
          score[n][2 * h] = exp2f(score[n][2 * h] - base);
          score[n][2 * h + 1] = exp2f(score[n][2 * h + 1] - base);
          sum[h] += score[n][2 * h] + score[n][2 * h + 1];
        }
      }
      if (__any_sync(0xffffffffu, scale[0] != 1.0f || scale[1] != 1.0f)) {
#pragma unroll
        for (int m = 0; m < 2 * kSteps; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[m][i] *= scale[i / 2];
        }
      }
#pragma unroll
      for (int t = 0; t < kKeys / 16; ++t) {
        uint32_t a[4] = {pack2<T::kHalf>(score[2 * t][0], score[2 * t][1]),
                         pack2<T::kHalf>(score[2 * t][2], score[2 * t][3]),
                         pack2<T::kHalf>(score[2 * t + 1][0], score[2 * t + 1][1]),
                         pack2<T::kHalf>(score[2 * t + 1][2], score[2 * t + 1][3])};
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          if (m < steps) {
            if constexpr (T::kFp8) {  // even dims, then odd ones
              uint32_t b[2];
              ldmatrix2_trans(b, values + tile_offset<kRowBytes>(t * 16 + (lane & 15), m));
              mma16816<true>(out[2 * m], a, widen_fp8(b[0], kBytes02, p.e5m2),
                             widen_fp8(b[1], kBytes02, p.e5m2));
              mma16816<true>(out[2 * m + 1], a, widen_fp8(b[0], kBytes13, p.e5m2),
                             widen_fp8(b[1], kBytes13, p.e5m2));
            } else {
              uint32_t b[4];
              ldmatrix4_trans(b, values + tile_offset<kRowBytes>(t * 16 + (lane & 15), 2 * m + lane / 16));
              mma16816<T::kHalf>(out[2 * m], a, b[0], b[1]);
              mma16816<T::kHalf>(out[2 * m + 1], a, b[2], b[3]);
            }
          }
        }
      }
    }

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
      int row = warp * 16 + h * 8 + lane / 4, packed = item.first_row + row;
      if (row >= item.num_rows) continue;
      const bool whole = item.num_splits == 1;
      float f = whole ? result_factor(p, kv_head, packed, max[h], sum[h]) : 1.0f;
      int64_t part = item.part_row + (int64_t{item.split} * p.num_kv_heads + kv_head) * item.num_rows + row;
      uint16_t* to = out_row(p, item, kv_head, packed);
      float* part_to = p.part_out + part * p.head_dim;
      if (!whole && lane % 4 == 0)
        __stcg(reinterpret_cast<float2*>(p.part_max_sum) + part, make_float2(max[h], sum[h]));
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
        if (m < steps) {
          // 16 dims: of this lane two and two.
          float x[4] = {out[2 * m][2 * h], out[2 * m][2 * h + 1], out[2 * m + 1][2 * h],
                        out[2 * m + 1][2 * h + 1]};
          int d = m * 16 + (lane % 4) * (T::kFp8 ? 4 : 2), e = d + (T::kFp8 ? 2 : 8);
          if constexpr (T::kFp8) {
            float y = x[1];
            x[1] = x[2], x[2] = y;
          }
          if (whole) {
            uint32_t lo = p.q_half ? pack2<true>(x[0] * f, x[1] * f) : pack2<false>(x[0] * f, x[1] * f);
            uint32_t hi = p.q_half ? pack2<true>(x[2] * f, x[3] * f) : pack2<false>(x[2] * f, x[3] * f);
            *reinterpret_cast<uint32_t*>(to + d) = lo;
            *reinterpret_cast<uint32_t*>(to + e) = hi;
          } else {
            __stcg(reinterpret_cast<float2*>(part_to + d), make_float2(x[0], x[1]));
            __stcg(reinterpret_cast<float2*>(part_to + e), make_float2(x[2], x[3]));
          }
        }
      }
    }
    if (item.num_splits > 1) merge_splits(p, item, kv_head, &flag);
  }
}

template <typename T>
void launch_tile_of(const Context& ctx, int rows, int grid, const PagedParams& p) {
  auto go = [&](auto kernel, size_t smem) { launch(ctx, kernel, dim3(grid), dim3(rows * 2), smem, p); };
  if (p.head_dim <= 64) {
    go(tile_kernel<T, 64>, tile_smem<T, 64>(rows));
  } else if (p.head_dim <= 128) {
    go(tile_kernel<T, 128>, tile_smem<T, 128>(rows));
  } else {
    go(tile_kernel<T, 256>, tile_smem<T, 256>(rows));
  }
}

}  // namespace taco::cuda::mma
