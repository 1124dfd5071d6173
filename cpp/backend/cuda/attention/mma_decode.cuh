// Attention of few rows: up to 8 or 16 packed query rows against the keys of a split. The products stand
// transposed, with keys (then value dims) in the 16 rows of an mma and the queries in its 8 columns, so that
// a group of up to eight heads fills the instruction. Each of the four warps has its own ring of units (16
// tokens' K and V) that it fills by cp.async and drains without waiting for the others; the ring runs on
// across the items of a chunk. Unit u of a sequence belongs to warp u % 4 wherever a split begins, so that a
// row's arithmetic depends on the splits' places only.
#pragma once

#include "backend/cuda/attention/mma_common.cuh"

namespace taco::cuda::mma {

inline constexpr int kDecodeWarps = 4, kUnit = 16;

template <typename T, int kDim>
constexpr int unit_bytes() {
  return 2 * kUnit * kDim * T::kBytes;
}

// Shared memory behind the ring: items, the warps' maxima and sums, a place to add up results (half of the
// dims at a time).
template <int kDim, int kTiles>
struct DecodeShared {
  static constexpr int kRows = kTiles * 8, kHalfDim = kDim / 2, kPitch = kHalfDim + 4;
  WorkItem items[kMaxChunkItems];
  float max[kDecodeWarps][kRows], sum[kDecodeWarps][kRows];
  int flag, pad[3];
  float values[kDecodeWarps][kRows][kPitch];
};

// kTiles: query rows, in eights.
template <typename T, int kDim, int kTiles>
__global__ void __launch_bounds__(kDecodeWarps * 32) decode_kernel(const __grid_constant__ PagedParams p) {
  constexpr int kRowBytes = kDim * T::kBytes, kHalfUnit = kUnit * kRowBytes;
  constexpr int kSteps = kDim / 16;              // of 16 dims
  constexpr int kChunks = kRowBytes / 16;        // of a token's row
  constexpr int kCopies = kUnit * kChunks / 32;  // of 16 bytes, for each lane, for K as for V
  constexpr int kTokensPerCopy = kChunks < 32 ? 32 / kChunks : 1;
  using Shared = DecodeShared<kDim, kTiles>;
  extern __shared__ __align__(128) uint8_t smem[];
  Shared& sh = *reinterpret_cast<Shared*>(smem + p.stages * kDecodeWarps * 2 * kHalfUnit);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = smem_address(smem) + warp * p.stages * 2 * kHalfUnit;
  const int steps = p.head_dim / 16, chunks = p.head_dim * T::kBytes / 16;
  const int panel_bytes = p.head_dim * p.block_size * T::kBytes;
  const uint8_t* cache = static_cast<const uint8_t*>(p.cache);

  // The lists come by a plain copy ahead of the step's first kernel, which nothing overtakes.
  // What the first chunk may be is read beside the count, not behind it.
  const int work_count = p.header->num_chunks * p.num_kv_heads, chunked = p.header->chunked;
  const int guess = min(static_cast<int>(blockIdx.x) / p.num_kv_heads, kMaxChunks - 2);
  int first_item = p.header->chunk_start[guess], end_item = p.header->chunk_start[guess + 1];
  if (static_cast<int>(blockIdx.x) >= work_count) {
    pdl_launch();
    if (work_count == 0) pdl_wait();
    return;
  }
  bool waited = false;
  for (int work = blockIdx.x; work < work_count; work += gridDim.x) {
    const int chunk = work / p.num_kv_heads, kv_head = work - chunk * p.num_kv_heads;
    if (!chunked) {
      first_item = chunk, end_item = chunk + 1;
    } else if (waited) {
      first_item = p.header->chunk_start[chunk], end_item = p.header->chunk_start[chunk + 1];
    }
    const int count = end_item - first_item;
    __syncthreads();
    for (int i = threadIdx.x; i < count * 3; i += blockDim.x)
      reinterpret_cast<int4*>(sh.items)[i] = reinterpret_cast<const int4*>(p.items + first_item)[i];
    __syncthreads();
    if (!waited) {
      pdl_launch();
      pdl_wait();
      waited = true;
    }

    // The producer's place: the next unit of this warp to copy, and the blocks of the next 16 units.
    int at_item = -1, at_unit = 0, end_unit = 0, ids_unit = 0, ids = 0;
    auto load_ids = [&] {
      const WorkItem& item = sh.items[at_item];
      ids_unit = at_unit;
      int token = (at_unit + (lane / 2) * kDecodeWarps) * kUnit + (lane % 2) * 8;
      ids = token < item.kv_end && token + 8 > item.kv_begin
                ? __ldg(p.block_tables + item.seq * p.max_blocks + (token >> p.block_shift))
                : 0;
    };
    auto next_item = [&] {
      do {
        if (++at_item >= count) return;
        const WorkItem& item = sh.items[at_item];
        int begin = item.kv_begin / kUnit;
        at_unit = begin + ((warp - begin) & (kDecodeWarps - 1));
        end_unit = (item.kv_end + kUnit - 1) / kUnit;
      } while (at_unit >= end_unit);
      load_ids();
    };
    auto copy_unit = [&](int stage) {
      if (at_item < count) {
        if (at_unit - ids_unit >= 16 * kDecodeWarps) load_ids();
        const WorkItem& item = sh.items[at_item];
        int slot = (at_unit - ids_unit) / kDecodeWarps * 2;
        int id0 = __shfl_sync(0xffffffffu, ids, slot), id1 = __shfl_sync(0xffffffffu, ids, slot + 1);
        int token0 = at_unit * kUnit;
        const int64_t block_bytes = int64_t{2} * p.num_kv_heads * panel_bytes;
        const uint8_t* half0 = cache + id0 * block_bytes + int64_t{kv_head} * panel_bytes +
                               (token0 & (p.block_size - 1)) * (p.head_dim * T::kBytes);
        const uint8_t* half1 = cache + id1 * block_bytes + int64_t{kv_head} * panel_bytes +
                               ((token0 + 8) & (p.block_size - 1)) * (p.head_dim * T::kBytes);
        const int64_t value_bytes = p.value_offset * T::kBytes;
        const uint32_t to = ring + stage * 2 * kHalfUnit;
        const int col = lane % kChunks, sub = kChunks < 32 ? lane / kChunks : 0;
        if (kChunks > 32 || col < chunks) {
#pragma unroll
          for (int i = 0; i < kCopies; ++i) {
            int token = i * kTokensPerCopy + sub;
            const uint8_t* from =
                (token < 8 ? half0 : half1) + (token & 7) * (p.head_dim * T::kBytes) + col * 16;
            bool there = token0 + token >= item.kv_begin && token0 + token < item.kv_end;
            int bytes = there ? 16 : 0;
            uint32_t place = to + tile_offset<kRowBytes>(token, col);
            cp_async16(place, from, bytes);
            cp_async16(place + kHalfUnit, from + value_bytes, bytes);
          }
        }
        at_unit += kDecodeWarps;
        if (at_unit >= end_unit) next_item();
      }
      cp_async_commit();
    };
    next_item();
    for (int i = 0; i < p.stages; ++i) copy_unit(i);

    int stage = 0;
    for (int index = 0; index < count; ++index) {
      const WorkItem& item = sh.items[index];
      // The queries: columns of the products. With FP8 the dims of a step stand in the order in which its
      // bytes fall into the registers.
      uint32_t query[kSteps][kTiles][2];
      RowRule rules[kTiles][2];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        int row = n * 8 + lane / 4, packed = item.first_row + row;
        bool there = row < item.num_rows;
        int j = packed / p.group, head = kv_head * p.group + packed - j * p.group;
        const uint16_t* from =
            static_cast<const uint16_t*>(p.q) + (item.row0 + j) * p.q_stride + int64_t{head} * p.head_dim;
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          int d = k * 16 + (lane % 4) * (T::kFp8 ? 4 : 2);
          bool load = there && k < steps;
          query[k][n][0] = load ? load_query2<T::kHalf>(from + d, p.q_half) : 0u;
          query[k][n][1] = load ? load_query2<T::kHalf>(from + d + (T::kFp8 ? 2 : 8), p.q_half) : 0u;
        }
#pragma unroll
        for (int c = 0; c < 2; ++c)
          rules[n][c] = row_rule(p, item, kv_head, item.first_row + n * 8 + (lane % 4) * 2 + c);
      }

      float out[kSteps][kTiles][4] = {};
      float max[kTiles][2], sum[kTiles][2];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) max[n][0] = max[n][1] = -kInfinity, sum[n][0] = sum[n][1] = 0.0f;

      const int begin = item.kv_begin / kUnit, end = (item.kv_end + kUnit - 1) / kUnit;
      for (int unit = begin + ((warp - begin) & (kDecodeWarps - 1)); unit < end; unit += kDecodeWarps) {
        cp_async_wait(p.stages - 1);
        __syncwarp();
        const uint32_t keys = ring + stage * 2 * kHalfUnit, values = keys + kHalfUnit;

        float score[kTiles][4] = {};
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          if (k < steps) {
            uint32_t a[4];
            if constexpr (T::kFp8) {
              uint32_t b[2];
              ldmatrix2(b, keys + tile_offset<kRowBytes>(lane & 15, k));
              a[0] = widen_fp8(b[0], kBytes01, p.e5m2), a[2] = widen_fp8(b[0], kBytes23, p.e5m2);
              a[1] = widen_fp8(b[1], kBytes01, p.e5m2), a[3] = widen_fp8(b[1], kBytes23, p.e5m2);
            } else {
              ldmatrix4(a, keys + tile_offset<kRowBytes>(lane & 15, 2 * k + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < kTiles; ++n) mma16816<T::kHalf>(score[n], a, query[k][n][0], query[k][n][1]);
          }
        }

        const bool seen = all_seen(p, item, unit * kUnit, unit * kUnit + kUnit) && p.alibi_slopes == nullptr;
        uint32_t weights[kTiles][2];
        bool grown = false;
        float scale[kTiles][2];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) score[n][i] = cap_score(score[n][i], p);
          if (!seen) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
              score[n][i] =
                  rule_score(score[n][i], rules[n][i & 1], p, item, unit * kUnit + lane / 4 + (i / 2) * 8);
          }
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float top = fmaxf(score[n][c], score[n][c + 2]);
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 4));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 8));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 16));
            top = fmaxf(top, max[n][c]);
            grown = grown || top > max[n][c];
            float base = top == -kInfinity ? 0.0f : top;
            scale[n][c] = exp2f(max[n][c] - base);
            max[n][c] = top;
            score[n][c] = exp2f(score[n][c] - base);
            score[n][c + 2] = exp2f(score[n][c + 2] - base);
            sum[n][c] = sum[n][c] * scale[n][c] + (score[n][c] + score[n][c + 2]);
          }
          weights[n][0] = transpose8x8(pack2<T::kHalf>(score[n][0], score[n][1]));
          weights[n][1] = transpose8x8(pack2<T::kHalf>(score[n][2], score[n][3]));
        }
        if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
          for (int m = 0; m < kSteps; ++m) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
#pragma unroll
              for (int i = 0; i < 4; ++i) out[m][n][i] *= scale[n][i & 1];
            }
          }
        }
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          if (m < steps) {
            uint32_t a[4];
            if constexpr (T::kFp8) {
              uint32_t b[2];
              ldmatrix2_trans(b, values + tile_offset<kRowBytes>(lane & 15, m));
              a[0] = widen_fp8(b[0], kBytes02, p.e5m2), a[1] = widen_fp8(b[0], kBytes13, p.e5m2);
              a[2] = widen_fp8(b[1], kBytes02, p.e5m2), a[3] = widen_fp8(b[1], kBytes13, p.e5m2);
            } else {
              ldmatrix4_trans(
                  a, values + tile_offset<kRowBytes>((lane & 7) + (lane / 16) * 8, 2 * m + ((lane / 8) & 1)));
            }
#pragma unroll
            for (int n = 0; n < kTiles; ++n) mma16816<T::kHalf>(out[m][n], a, weights[n][0], weights[n][1]);
          }
        }
        __syncwarp();
        copy_unit(stage);
        if (++stage == p.stages) stage = 0;
      }

      // The four warps' results become one.
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          sum[n][c] += __shfl_xor_sync(0xffffffffu, sum[n][c], 4);
          sum[n][c] += __shfl_xor_sync(0xffffffffu, sum[n][c], 8);
          sum[n][c] += __shfl_xor_sync(0xffffffffu, sum[n][c], 16);
          if (lane < 4) {
            sh.max[warp][n * 8 + lane * 2 + c] = max[n][c];
            sh.sum[warp][n * 8 + lane * 2 + c] = sum[n][c];
          }
        }
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          int row = n * 8 + (lane % 4) * 2 + c;
          float top = fmaxf(fmaxf(sh.max[0][row], sh.max[1][row]), fmaxf(sh.max[2][row], sh.max[3][row]));
          float f = exp2f(max[n][c] - (top == -kInfinity ? 0.0f : top));
#pragma unroll
          for (int m = 0; m < kSteps; ++m) out[m][n][c] *= f, out[m][n][c + 2] *= f;
        }
      }
      const int half_dim = Shared::kHalfDim;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half * half_dim < p.head_dim) {
          if (half > 0) __syncthreads();
#pragma unroll
          for (int m = 0; m < kSteps / 2; ++m) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                int row = n * 8 + (lane % 4) * 2 + (i & 1);
                int d = m * 16 + (T::kFp8 ? lane / 4 * 2 + i / 2 : lane / 4 + i / 2 * 8);
                if (row < item.num_rows) sh.values[warp][row][d] = out[half * (kSteps / 2) + m][n][i];
              }
            }
          }
          __syncthreads();
          const int vectors = min(half_dim, p.head_dim - half * half_dim) / 4;
          for (int i = threadIdx.x; i < item.num_rows * vectors; i += blockDim.x) {
            int row = i / vectors, d = (i - row * vectors) * 4;
            float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
            float top = fmaxf(fmaxf(sh.max[0][row], sh.max[1][row]), fmaxf(sh.max[2][row], sh.max[3][row]));
            float base = top == -kInfinity ? 0.0f : top, total = 0.0f;
#pragma unroll
            for (int w = 0; w < kDecodeWarps; ++w) {
              float4 x = *reinterpret_cast<const float4*>(&sh.values[w][row][d]);
              v.x += x.x, v.y += x.y, v.z += x.z, v.w += x.w;
              total += sh.sum[w][row] * exp2f(sh.max[w][row] - base);
            }
            if (item.num_splits == 1) {
              int packed = item.first_row + row;
              float f = result_factor(p, kv_head, packed, top, total);
              v.x *= f, v.y *= f, v.z *= f, v.w *= f;
              store4(p, out_row(p, item, kv_head, packed) + half * half_dim + d, v);
            } else {
              int64_t part =
                  item.part_row + (int64_t{item.split} * p.num_kv_heads + kv_head) * item.num_rows + row;
              __stcg(reinterpret_cast<float4*>(p.part_out + part * p.head_dim + half * half_dim + d), v);
              if (half == 0 && d == 0)
                __stcg(reinterpret_cast<float2*>(p.part_max_sum) + part, make_float2(top, total));
            }
          }
        }
      }
      if (item.num_splits > 1) merge_splits(p, item, kv_head, &sh.flag);
      __syncthreads();
    }
    cp_async_wait<0>();
  }
}

template <typename T>
void launch_decode_of(const Context& ctx, int rows, int grid, size_t smem, const PagedParams& p) {
  auto go = [&](auto kernel) { launch(ctx, kernel, dim3(grid), dim3(kDecodeWarps * 32), smem, p); };
  if (p.head_dim <= 64) {
    rows == 8 ? go(decode_kernel<T, 64, 1>) : go(decode_kernel<T, 64, 2>);
  } else if (p.head_dim <= 128) {
    rows == 8 ? go(decode_kernel<T, 128, 1>) : go(decode_kernel<T, 128, 2>);
  } else {
    go(decode_kernel<T, 256, 1>);  // 16 rows have no room in the registers
  }
}

}  // namespace taco::cuda::mma
