// Attention of few rows: up to 8, 16 or 32 packed query rows against the keys of a split. The products stand
// transposed, with keys (then value dims) in the 16 rows of an mma and the queries in its 8 columns, so that
// a group of up to eight heads fills the instruction; a draft's rows of all heads of a group take 32. Each of
// the four warps has its own ring of units (16 tokens' K and V) that it fills by cp.async and drains without
// waiting for the others; the ring runs on across the items of a chunk. Unit u of a sequence belongs to warp
// u % 4 wherever a split begins, so that a row's arithmetic depends on the splits' places only.
#pragma once

#include <type_traits>

#include "backend/cuda/attention/mma_common.cuh"

namespace taco::cuda::mma {

inline constexpr int kDecodeWarps = 4, kUnit = 16;

template <typename T, int kDim>
constexpr int unit_bytes() {
  return 2 * kUnit * kDim * T::kBytes;
}

// Shared memory behind the ring: items, the warps' maxima and sums, a place to add up results (some of the
// dims at a time); with many rows also what the registers have no room for, the queries and the rows' rules.
template <int kDim, int kTiles>
struct DecodeShared {
  static constexpr bool kSmemQ = kTiles > 2;
  static constexpr int kRows = kTiles * 8, kParts = kTiles > 2 ? 4 : 2;
  static constexpr int kPartDim = kDim / kParts, kPitch = kPartDim + 4;
  WorkItem items[kMaxChunkItems];
  float max[kDecodeWarps][kRows], sum[kDecodeWarps][kRows];
  int flag, pad[3];
  float values[kDecodeWarps][kRows][kPitch];
  struct Queries {
    uint2 query[kDim / 16][kTiles][32];  // as the lanes want them
    RowRule rules[kRows];
  };
  struct None {};
  [[no_unique_address]] std::conditional_t<kSmemQ, Queries, None> q;
};

// The 16-row operands of steps [step, step + kCount): keys as they stand, or values transposed.
template <typename T, int kRowBytes, bool kValues, int kCount>
__device__ __forceinline__ void load_operands(uint32_t (&a)[kCount][4], uint32_t tile, int step, int lane,
                                              bool e5m2) {
  if constexpr (T::kFp8) {
    uint32_t bytes[kCount / 2][4];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const uint32_t at = tile + tile_offset<kRowBytes>(lane & 15, step + 2 * i + lane / 16);
      kValues ? ldmatrix4_trans(bytes[i], at) : ldmatrix4(bytes[i], at);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t low = bytes[i / 2][i % 2 * 2], high = bytes[i / 2][i % 2 * 2 + 1];
      // Keys: dims 4c, 4c + 1 and 4c + 2, 4c + 3; values: even dims, odd dims.
      a[i][0] = widen_fp8(low, kValues ? kBytes02 : kBytes01, e5m2);
      a[i][kValues ? 1 : 2] = widen_fp8(low, kValues ? kBytes13 : kBytes23, e5m2);
      a[i][kValues ? 2 : 1] = widen_fp8(high, kValues ? kBytes02 : kBytes01, e5m2);
      a[i][3] = widen_fp8(high, kValues ? kBytes13 : kBytes23, e5m2);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if constexpr (kValues) {
        ldmatrix4_trans(
            a[i], tile + tile_offset<kRowBytes>((lane & 7) + lane / 16 * 8, 2 * (step + i) + (lane / 8 & 1)));
      } else {
        ldmatrix4(a[i], tile + tile_offset<kRowBytes>(lane & 15, 2 * (step + i) + lane / 16));
      }
    }
  }
}

// kTiles: query rows, in eights.
template <typename T, int kDim, int kTiles>
__global__ void __launch_bounds__(kDecodeWarps * 32) decode_kernel(const __grid_constant__ PagedParams p) {
  constexpr int kRowBytes = kDim * T::kBytes, kHalfUnit = kUnit * kRowBytes;
  constexpr int kSteps = kDim / 16;              // of 16 dims
  constexpr int kChunks = kRowBytes / 16;        // of a token's row
  constexpr int kCopies = kUnit * kChunks / 32;  // of 16 bytes, for each lane, for K as for V
  constexpr int kTokensPerCopy = 32 / kChunks;
  // Steps whose operands are loaded ahead; with many rows each serves many products.
  constexpr int kMostAhead = kTiles > 2 ? 4 : 8, kGroup = kSteps < kMostAhead ? kSteps : kMostAhead;
  static_assert(kTokensPerCopy >= 1 && kTokensPerCopy <= 8);
  using Shared = DecodeShared<kDim, kTiles>;
  constexpr bool kSmemQ = Shared::kSmemQ;
  static_assert(sizeof(Shared) <= decode_fixed_smem(kDim, kTiles * 8));
  extern __shared__ __align__(128) uint8_t smem[];
  Shared& sh = *reinterpret_cast<Shared*>(smem + p.stages * kDecodeWarps * 2 * kHalfUnit);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = smem_address(smem) + warp * p.stages * 2 * kHalfUnit;
  const int row_bytes = p.head_dim * T::kBytes, panel_bytes = row_bytes * p.block_size;
  const int64_t block_bytes = int64_t{2} * p.num_kv_heads * panel_bytes, value_bytes = block_bytes / 2;
  pdl_launch();
  // What the first chunk may be is read beside the count, not behind it.
  const int work_count = p.header->num_chunks * p.num_kv_heads, chunked = p.header->chunked;
  const int guess = min(divide(blockIdx.x, p.kv_heads_inverse), kMaxChunks - 2);
  int first_item = p.header->chunk_start[guess], end_item = p.header->chunk_start[guess + 1];
  if (static_cast<int>(blockIdx.x) >= work_count) {
    if (work_count == 0) pdl_wait();
    return;
  }
  // This lane's chunk of the tokens that a copy of the warp takes, and its places in shared memory.
  const int col = lane % kChunks, sub = lane / kChunks;
  uint32_t place[kCopies / 2];
#pragma unroll
  for (int i = 0; i < kCopies / 2; ++i) place[i] = tile_offset<kRowBytes>(i * kTokensPerCopy + sub, col);
  bool waited = false;
  for (int work = blockIdx.x; work < work_count; work += gridDim.x) {
    const int chunk = divide(work, p.kv_heads_inverse), kv_head = work - chunk * p.num_kv_heads;
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
      if (p.head_dim < kDim) {  // the columns that no copy writes
        for (int i = lane * 16; i < p.stages * 2 * kHalfUnit; i += 32 * 16)
          asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(ring + i), "r"(0) : "memory");
        __syncwarp();
      }
    }

    // The producer's place: the next unit of this warp to copy, and the blocks of the next 16 units.
    int at_item = -1, at_unit = 0, end_unit = 0, ids_unit = 0, ids = 0, copy_begin = 0, copy_end = 0;
    const int32_t* table = nullptr;
    const uint8_t* panels =
        static_cast<const uint8_t*>(p.cache) + int64_t{kv_head} * panel_bytes + sub * row_bytes + col * 16;
    auto load_ids = [&] {
      ids_unit = at_unit;
      int token = (at_unit + (lane / 2) * kDecodeWarps) * kUnit + (lane % 2) * 8;
      ids = token < copy_end && token + 8 > copy_begin ? __ldg(table + (token >> p.block_shift)) : 0;
    };
    auto next_item = [&] {
      do {
        if (++at_item >= count) return;
        const WorkItem& item = sh.items[at_item];
        copy_begin = item.kv_begin;
        copy_end = item.kv_end;
        table = p.block_tables + item.seq * p.max_blocks;
        int begin = copy_begin / kUnit;
        at_unit = begin + ((warp - begin) & (kDecodeWarps - 1));
        end_unit = (copy_end + kUnit - 1) / kUnit;
      } while (at_unit >= end_unit);
      load_ids();
    };
    auto copy_unit = [&](int stage) {
      if (at_item < count) {
        if (at_unit - ids_unit >= 16 * kDecodeWarps) load_ids();
        const int slot = (at_unit - ids_unit) / kDecodeWarps * 2;
        const int64_t id0 = __shfl_sync(0xffffffffu, ids, slot),
                      id1 = __shfl_sync(0xffffffffu, ids, slot + 1);
        const int token0 = at_unit * kUnit;
        if (col * 16 < row_bytes) {
          const uint8_t* half0 = panels + id0 * block_bytes + (token0 & (p.block_size - 1)) * row_bytes;
          const uint8_t* half1 = panels + id1 * block_bytes + ((token0 + 8) & (p.block_size - 1)) * row_bytes;
          const int first = copy_begin - token0 - sub, last = copy_end - token0 - sub;
          const uint32_t to = ring + stage * 2 * kHalfUnit;
#pragma unroll
          for (int i = 0; i < kCopies / 2; ++i) {
            const int token = i * kTokensPerCopy;
            const int bytes0 = token >= first && token < last ? 16 : 0;
            const int bytes1 = token + 8 >= first && token + 8 < last ? 16 : 0;
            cp_async16(to + place[i], half0, bytes0);
            cp_async16(to + place[i] + kHalfUnit, half0 + value_bytes, bytes0);
            cp_async16(to + place[i] + 8 * kRowBytes, half1, bytes1);
            cp_async16(to + place[i] + 8 * kRowBytes + kHalfUnit, half1 + value_bytes, bytes1);
            half0 += kTokensPerCopy * row_bytes;
            half1 += kTokensPerCopy * row_bytes;
          }
        }
        at_unit += kDecodeWarps;
        if (at_unit >= end_unit) next_item();
      }
      cp_async_commit();
    };
    next_item();
    int copied = 0;
    if (!waited) {
      if (p.early) {
        while (copied < p.stages && at_item < count &&
               (at_unit + 1) * kUnit <= sh.items[at_item].kv_len - sh.items[at_item].q_len)
          copy_unit(copied++);
      }
      pdl_wait();
      waited = true;
    }
    for (; copied < p.stages; ++copied) copy_unit(copied);

    int stage = 0;
    for (int index = 0; index < count; ++index) {
      const WorkItem& item = sh.items[index];
      // The queries: columns of the products. With FP8 the dims of a step stand in the order in which its
      // bytes fall into the registers.
      uint32_t query[kSmemQ ? 1 : kSteps][kTiles][2];
      RowRule rules[kTiles][2];
      auto load_query = [&](int k, int n) {
        const int row = n * 8 + lane / 4, d = k * 16 + (lane % 4) * (T::kFp8 ? 4 : 2);
        const bool load = row < item.num_rows && k * 16 < p.head_dim;
        const int packed = item.first_row + (load ? row : 0), j = divide(packed, p.group_inverse);
        const uint16_t* from = static_cast<const uint16_t*>(p.q) + (item.row0 + j) * p.q_stride +
                               int64_t{kv_head * p.group + packed - j * p.group} * p.head_dim;
        return make_uint2(load ? *reinterpret_cast<const uint32_t*>(from + d) : 0u,
                          load ? *reinterpret_cast<const uint32_t*>(from + d + (T::kFp8 ? 2 : 8)) : 0u);
      };
      if constexpr (kSmemQ) {
        uint2 loaded[kSteps / kDecodeWarps][kTiles];
#pragma unroll
        for (int k = 0; k < kSteps / kDecodeWarps; ++k) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) loaded[k][n] = load_query(k * kDecodeWarps + warp, n);
        }
        if (threadIdx.x < Shared::kRows)
          sh.q.rules[threadIdx.x] = row_rule(p, item, kv_head, item.first_row + threadIdx.x);
#pragma unroll
        for (int k = 0; k < kSteps / kDecodeWarps; ++k) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            uint2 x = loaded[k][n];
            if (p.q_half != T::kHalf)
              x.x = convert_query2<T::kHalf>(x.x, p.q_half), x.y = convert_query2<T::kHalf>(x.y, p.q_half);
            sh.q.query[k * kDecodeWarps + warp][n][lane] = x;
          }
        }
        __syncthreads();
      } else {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
            const uint2 x = load_query(k, n);
            query[k][n][0] = x.x, query[k][n][1] = x.y;
          }
#pragma unroll
          for (int c = 0; c < 2; ++c)
            rules[n][c] = row_rule(p, item, kv_head, item.first_row + n * 8 + (lane % 4) * 2 + c);
        }
        if (p.q_half != T::kHalf) {
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              query[k][n][0] = convert_query2<T::kHalf>(query[k][n][0], p.q_half);
              query[k][n][1] = convert_query2<T::kHalf>(query[k][n][1], p.q_half);
            }
          }
        }
      }
      const SeenRange seen = seen_range(p, item);

      float out[kSteps][kTiles][4] = {};
      float max[kTiles][2], sum[kTiles][2];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) max[n][0] = max[n][1] = -kInfinity, sum[n][0] = sum[n][1] = 0.0f;

      const int begin = item.kv_begin / kUnit, end = (item.kv_end + kUnit - 1) / kUnit;
      for (int unit = begin + ((warp - begin) & (kDecodeWarps - 1)); unit < end; unit += kDecodeWarps) {
        cp_async_wait(p.stages - 1);
        __syncwarp();
        const uint32_t keys = ring + stage * 2 * kHalfUnit, values = keys + kHalfUnit;

        // Two sums in turn: half the latency.
        float score[kTiles][4] = {}, other[kTiles][4] = {};
        uint32_t a[kGroup][4];
#pragma unroll
        for (int k0 = 0; k0 < kSteps; k0 += kGroup) {
          load_operands<T, kRowBytes, false>(a, keys, k0, lane, p.e5m2);
#pragma unroll
          for (int k = 0; k < kGroup; ++k) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              if constexpr (kSmemQ) {
                const uint2 x = sh.q.query[k0 + k][n][lane];
                mma16816<T::kHalf>(k % 2 ? other[n] : score[n], a[k], x.x, x.y);
              } else {
                mma16816<T::kHalf>(k % 2 ? other[n] : score[n], a[k], query[k0 + k][n][0],
                                   query[k0 + k][n][1]);
              }
            }
          }
        }
        load_operands<T, kRowBytes, true>(a, values, 0, lane, p.e5m2);

        const bool all_seen = unit * kUnit >= seen.begin && unit * kUnit + kUnit <= seen.end;
        uint32_t weights[kTiles][2];
        bool grown = false;
        float scale[kTiles][2];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) score[n][i] += other[n][i];
          cap_scores(score[n], p);
          if (!all_seen) {
            RowRule row_rules[2];
            if constexpr (kSmemQ)
              row_rules[0] = sh.q.rules[n * 8 + lane % 4 * 2],
              row_rules[1] = sh.q.rules[n * 8 + lane % 4 * 2 + 1];
#pragma unroll
            for (int i = 0; i < 4; ++i)
              score[n][i] = rule_score(score[n][i], kSmemQ ? row_rules[i & 1] : rules[n][i & 1], p, item,
                                       unit * kUnit + lane / 4 + (i / 2) * 8);
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
        for (int m0 = 0; m0 < kSteps; m0 += kGroup) {
          if (m0 > 0) load_operands<T, kRowBytes, true>(a, values, m0, lane, p.e5m2);
#pragma unroll
          for (int m = 0; m < kGroup; ++m) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
              mma16816<T::kHalf>(out[m0 + m][n], a[m], weights[n][0], weights[n][1]);
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
      constexpr int kPartDim = Shared::kPartDim, kPartSteps = kPartDim / 16, kVectors = kPartDim / 4;
#pragma unroll
      for (int part = 0; part < Shared::kParts; ++part) {
        if (part * kPartDim < p.head_dim) {
          if (part > 0) __syncthreads();
#pragma unroll
          for (int m = 0; m < kPartSteps; ++m) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                int row = n * 8 + (lane % 4) * 2 + (i & 1);
                int d = m * 16 + (T::kFp8 ? lane / 4 * 2 + i / 2 : lane / 4 + i / 2 * 8);
                if (row < item.num_rows) sh.values[warp][row][d] = out[part * kPartSteps + m][n][i];
              }
            }
          }
          __syncthreads();
          for (int i = threadIdx.x; i < item.num_rows * kVectors; i += kDecodeWarps * 32) {
            const int row = i / kVectors, d = i % kVectors * 4;
            if (part * kPartDim + d >= p.head_dim) continue;
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
              store4(p, out_row(p, item, kv_head, packed) + part * kPartDim + d, v);
            } else {
              int64_t to =
                  item.part_row + (int64_t{item.split} * p.num_kv_heads + kv_head) * item.num_rows + row;
              __stcg(reinterpret_cast<float4*>(p.part_out + to * p.head_dim + part * kPartDim + d), v);
              if (part == 0 && d == 0)
                __stcg(reinterpret_cast<float2*>(p.part_max_sum) + to, make_float2(top, total));
            }
          }
        }
      }
      if (item.num_splits > 1) merge_splits<kTiles == 1 ? 1 : 2>(p, item, kv_head, &sh.flag);
      __syncthreads();
    }
    cp_async_wait<0>();
  }
}

template <typename T>
void launch_decode_of(const Context& ctx, int rows, int grid, size_t smem, const PagedParams& p) {
  auto go = [&](auto kernel) { launch(ctx, kernel, dim3(grid), dim3(kDecodeWarps * 32), smem, p); };
  // 32 rows where drafts are verified; 16 in bf16 only, for groups of more than eight heads (decode_rows).
  // With 256 dims the registers have no room for more than eight.
  if (rows == 32) return p.head_dim <= 64 ? go(decode_kernel<T, 64, 4>) : go(decode_kernel<T, 128, 4>);
  if constexpr (std::is_same_v<T, Bf16>) {
    if (rows == 16) return p.head_dim <= 64 ? go(decode_kernel<T, 64, 2>) : go(decode_kernel<T, 128, 2>);
  }
  if (p.head_dim <= 64) {
    go(decode_kernel<T, 64, 1>);
  } else if (p.head_dim <= 128) {
    go(decode_kernel<T, 128, 1>);
  } else {
    go(decode_kernel<T, 256, 1>);
  }
}

}  // namespace taco::cuda::mma
