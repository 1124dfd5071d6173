// The prefill kernel of Hopper. One block an SM walks over work items (128 rows of one sequence, one head):
//   * warp 0 copies K and V pages to shared memory by TMA, two tiles deep each;
//   * warps 1-3 copy the item's query rows;
//   * two warpgroups of 64 rows each compute: S = Q K^T of the next tile and O += P V of this one run on the
//     tensor cores while the softmax of the next tile waits only for S; the two take turns at issuing
//     products, so that one's softmax runs below the other's products.
// Keys are walked from the diagonal backwards, in tiles at fixed places: a row's result depends on its own
// sequence alone.
#pragma once

#include <algorithm>

#include "backend/cuda/attention/prefill_sm90_params.h"
#include "backend/cuda/attention/prefill_sm90_ptx.cuh"
#include "backend/cuda/attention/prefill_wgmma.cuh"
#include "backend/cuda/launch.cuh"

namespace taco::cuda::sm90 {

template <int kHeadDim>
struct PrefillShape {
  static constexpr int kRows = kPrefillSm90Rows;
  static constexpr int kGroups = 2;                         // consumer warpgroups
  static constexpr int kKeys = kHeadDim <= 128 ? 128 : 64;  // of a tile
  static constexpr int kStages = 2;
  static constexpr int kChunks = kHeadDim / 64;  // 128-byte columns
  static constexpr int kQBytes = kRows * kHeadDim * 2;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kBarrierBytes = 256;
  static constexpr size_t kSmem = 1024 + kQBytes + 2 * kStages * kTileBytes + kBarrierBytes;
};

// What a block does for one item.
struct alignas(16) PrefillTile {
  int row;       // of q and out
  int rows;      // valid ones
  int position;  // of the first row
  int kv_len;
  int first, end;  // tiles of keys
  int head, seq;
};

// A unit is an item for one head, or for kPair heads, one for each block of a cluster.
template <int kKeys, bool kFull, int kPair>
__device__ __forceinline__ PrefillTile prefill_tile(const PrefillParams& p, int unit) {
  PrefillTile t;
  const int heads = p.num_heads / kPair;
  PrefillSm90Item item = p.items[unit / heads];
  t.head = unit % heads * kPair + blockIdx.x % kPair;
  t.seq = item.seq;
  int start = p.q_start[item.seq], q_len = p.q_start[item.seq + 1] - start;
  int skipped = item.tile * kPrefillSm90Rows;
  t.kv_len = p.kv_len[item.seq];
  t.row = start + skipped;
  t.rows = min(kPrefillSm90Rows, q_len - skipped);
  t.position = t.kv_len - q_len + skipped;
  t.end = (t.position + t.rows - 1) / kKeys + 1;
  t.first = kFull && p.window > 0 ? max(0, t.position - p.window + 1) / kKeys : 0;
  return t;
}

// The units of a block, longest first: there and back over the blocks, so that none always gets the longer
// one.
template <int kPair>
__device__ __forceinline__ int prefill_unit(int round) {
  int columns = gridDim.x / kPair, column = blockIdx.x / kPair;
  return round * columns + (round & 1 ? columns - 1 - column : column);
}

template <int kHeadDim, bool kHalf, bool kFull, int kPair>
__global__ void __cluster_dims__(kPair, 1, 1) __launch_bounds__(PrefillShape<kHeadDim>::kThreads, 1)
    prefill_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ PrefillParams p) {
  using Shape = PrefillShape<kHeadDim>;
  constexpr int kKeys = Shape::kKeys, kChunks = Shape::kChunks, kStages = Shape::kStages;
  constexpr int kLoaders = 96;  // threads that copy q
  extern __shared__ uint8_t smem_raw[];
  const uint32_t base = (smem_address(smem_raw) + 1023) & ~1023u;
  const uint32_t q_smem = base, k_smem = q_smem + Shape::kQBytes,
                 v_smem = k_smem + kStages * Shape::kTileBytes;
  const uint32_t barriers = v_smem + kStages * Shape::kTileBytes;
  auto k_full = [&](int s) { return barriers + 8 * s; };
  auto k_empty = [&](int s) { return barriers + 8 * (kStages + s); };
  auto v_full = [&](int s) { return barriers + 8 * (2 * kStages + s); };
  auto v_empty = [&](int s) { return barriers + 8 * (3 * kStages + s); };
  const uint32_t q_full = barriers + 8 * (4 * kStages), q_empty = q_full + 8;

  // What the consumers do next: of the threads that copy q.
  auto* shared_tile = reinterpret_cast<PrefillTile*>(smem_raw + (barriers + 128 - smem_address(smem_raw)));
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    tma_prefetch_map(&map);
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(k_full(s), 1);
      mbarrier_init(v_full(s), 1);
      mbarrier_init(k_empty(s), 4 * Shape::kGroups * kPair);
      mbarrier_init(v_empty(s), 4 * Shape::kGroups * kPair);
    }
    mbarrier_init(q_full, kLoaders);
    mbarrier_init(q_empty, 4 * Shape::kGroups);
    fence_barrier_init();
  }
  if constexpr (kPair > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  pdl_wait();
  const int units = *p.num_items * (p.num_heads / kPair);

  if (warp < 4) {
    registers_down<40>();
    if (warp == 0) {
      const int block_size = 1 << p.block_shift, pages = kKeys >> p.block_shift;
      const int page = lane / kChunks, chunk = lane % kChunks;  // a lane's box of each tile
      const uint32_t place = chunk * kKeys * 128 + page * block_size * 128;
      int count = 0;  // tiles so far
      for (int round = 0, unit; (unit = prefill_unit<kPair>(round)) < units; ++round) {
        PrefillTile t = prefill_tile<kKeys, kFull, kPair>(p, unit);
        const int32_t* table = p.block_tables + t.seq * p.max_blocks;
        const int needed = t.position + t.rows;  // keys
        const int kv_head = t.head / p.group;
        // Coordinate -1 is outside of the map: zeros, and no memory is touched.
        auto page_of = [&](int n) {
          int i = n * pages + page;
          return page < pages && n >= t.first && i * block_size < needed ? table[i] : -1;
        };
        auto load = [&](uint32_t full, uint32_t to, int block, int which) {
          if (lane == 0) mbarrier_expect(full, Shape::kTileBytes);
          __syncwarp();
          const int row = block < 0 ? -1 : 2 * block + which;
          if constexpr (kPair == 1) {
            if (page < pages) tma_load(to + place, &map, full, chunk * 64, 0, kv_head, row);
          } else {  // each block copies its part of the pages, for both
            if (page < pages && page % kPair == blockIdx.x % kPair)
              tma_load_both(to + place, &map, full, chunk * 64, 0, kv_head, row);
          }
        };
        auto load_k = [&](int i, int block) {
          int s = i % kStages;
          mbarrier_wait(k_empty(s), (i / kStages & 1) ^ 1);
          load(k_full(s), k_smem + s * Shape::kTileBytes, block, 0);
        };
        auto load_v = [&](int i, int block) {
          int s = i % kStages;
          mbarrier_wait(v_empty(s), (i / kStages & 1) ^ 1);
          load(v_full(s), v_smem + s * Shape::kTileBytes, block, 1);
        };
        int block = page_of(t.end - 1), next = page_of(t.end - 2);
        load_k(count, block);
        for (int n = t.end - 2; n >= t.first; --n) {
          int after = page_of(n - 1);
          load_k(count + 1, next);
          load_v(count, block);
          block = next;
          next = after;
          ++count;
        }
        load_v(count++, block);
      }
      pdl_launch();
    } else {
      const int thread = threadIdx.x - 32;
      for (int round = 0, unit; (unit = prefill_unit<kPair>(round)) < units; ++round) {
        const PrefillTile t = prefill_tile<kKeys, kFull, kPair>(p, unit);
        const char* q = static_cast<const char*>(p.q) + 2 * (t.row * p.q_stride + int64_t{t.head} * kHeadDim);
        mbarrier_wait(q_empty, (round & 1) ^ 1);
        if (thread == 0) *shared_tile = t;
        constexpr int kPieces = kHeadDim / 8;  // of 16 bytes in a row
#pragma unroll 4
        for (int i = thread; i < Shape::kRows * kPieces; i += kLoaders) {
          int row = i / kPieces, piece = i % kPieces;
          // 64 rows of a warpgroup are a tile of their own: [chunk][row][128 bytes], swizzled.
          uint32_t to = q_smem + row / 64 * (64 * kHeadDim * 2) + piece / 8 * (64 * 128) + row % 64 * 128 +
                        ((piece % 8) ^ (row % 8)) * 16;
          cp_async16(to, q + 2 * (min(row, t.rows - 1) * p.q_stride) + piece * 16, row < t.rows);
        }
        cp_async_wait_all();
        fence_async_proxy();
        mbarrier_arrive(q_full);
      }
    }
  } else {
    registers_up<232>();
    using QK = Wgmma<kKeys, kHalf>;
    using PV = Wgmma<kHeadDim, kHalf>;
    const int group = warp / 4 - 1;
    const int row = group * 64 + warp % 4 * 16 + lane / 4;  // this thread's; the other one is row + 8
    const int column = lane % 4 * 2;
    const uint64_t q_desc = descriptor(q_smem + group * 64 * kHeadDim * 2, 16, 1024);
    const uint64_t k_desc = descriptor(k_smem, 16, 1024);
    const uint64_t v_desc = descriptor(v_smem, kKeys * 128, 1024);
    const int own_turn = 1 + group, other_turn = 2 - group;
    if (group == 1) barrier_arrive(other_turn, 256);

    float s[kKeys / 2], o[kHeadDim / 2];
    uint32_t prob[kKeys / 4];
    float row_max[2], row_sum[2];
    int count = 0;

    for (int round = 0, unit; (unit = prefill_unit<kPair>(round)) < units; ++round) {
      mbarrier_wait(q_full, round & 1);
      const PrefillTile t = *shared_tile;
      const int group_position = t.position + group * 64;
      const int position = t.position + row;

      auto issue_qk = [&](int i) {
        uint64_t k = k_desc + (i % kStages) * (Shape::kTileBytes >> 4);
#pragma unroll
        for (int j = 0; j < kHeadDim / 16; ++j) {
          QK::ss(s, q_desc + (j / 4 * (64 * 128) + j % 4 * 32 >> 4),
                 k + (j / 4 * (kKeys * 128) + j % 4 * 32 >> 4), j > 0);
        }
        wgmma_commit();
      };
      auto issue_pv = [&](int i) {
        uint64_t v = v_desc + (i % kStages) * (Shape::kTileBytes >> 4);
#pragma unroll
        for (int j = 0; j < kKeys / 16; ++j) PV::rs(o, prob + 4 * j, v + j * (16 * 128 >> 4));
        wgmma_commit();
      };
      auto release = [&](uint32_t barrier) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(barrier);
      };
      auto release_tile = [&](uint32_t barrier) {
        __syncwarp();
        if constexpr (kPair == 1) {
          if (lane == 0) mbarrier_arrive(barrier);
        } else {
          if (lane < kPair) mbarrier_arrive_at(barrier, lane);
        }
      };
      auto mask = [&](int n) {
        // Key c of the tile is seen by row r where c <= limit[r] and, with a window, c > limit[r] - window.
        int limit0 = min(position, t.kv_len - 1) - n * kKeys - column;
        int limit1 = min(position + 8, t.kv_len - 1) - n * kKeys - column;
        int low0 = kFull && p.window > 0 ? position - p.window - n * kKeys - column : -(1 << 30);
        int low1 = low0 + 8;
#pragma unroll
        for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            int c = i * 8 + e;
            bool seen0 = c <= limit0, seen1 = c <= limit1;
            if constexpr (kFull) {
              seen0 = seen0 && c > low0;
              seen1 = seen1 && c > low1;
            }
            s[4 * i + e] = seen0 ? s[4 * i + e] : -INFINITY;
            s[4 * i + 2 + e] = seen1 ? s[4 * i + 2 + e] : -INFINITY;
          }
        }
      };
      auto cap = [&] {
        if constexpr (kFull) {
          if (p.cap_in != 0.0f) {
#pragma unroll
            for (int i = 0; i < kKeys / 2; ++i) {
              // tanh(x) = 1 - 2 / (exp(2 x) + 1)
              float e = exp2_approx(s[i] * (p.cap_in * 2.885390082f));
              s[i] = p.cap_out - 2.0f * p.cap_out * __frcp_rn(e + 1.0f);
            }
          }
        }
      };
      // Turns scores into weights against the new maxima; returns what older sums are multiplied by.
      float alpha[2];
      auto softmax = [&] {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float m = s[2 * h];
#pragma unroll
          for (int i = 0; i < kKeys / 8; ++i) m = fmaxf(m, fmaxf(s[4 * i + 2 * h], s[4 * i + 2 * h + 1]));
          m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
          m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
          m = fmaxf(m, row_max[h]);
          alpha[h] = exp2_approx((row_max[h] - m) * p.scale_log2);
          row_max[h] = m;
          float offset = m * p.scale_log2, sum = 0;
#pragma unroll
          for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float& x = s[4 * i + 2 * h + e];
              x = exp2_approx(x * p.scale_log2 - offset);
              sum += x;
            }
          }
          row_sum[h] = row_sum[h] * alpha[h] + sum;
        }
      };
      auto to_prob = [&] {
#pragma unroll
        for (int i = 0; i < kKeys / 4; ++i) prob[i] = pack<kHalf>(s[2 * i], s[2 * i + 1]);
      };
      auto step = [&](int n, auto masked) {
        mbarrier_wait(k_full((count + 1) % kStages), (count + 1) / kStages & 1);
        barrier_sync(own_turn, 256);
        hold(s);
        hold(o);
        wgmma_fence();
        issue_qk(count + 1);
        mbarrier_wait(v_full(count % kStages), count / kStages & 1);
        issue_pv(count);
        barrier_arrive(other_turn, 256);
        wgmma_wait<1>();
        hold(s);
        release_tile(k_empty((count + 1) % kStages));
        if (n == t.first) release(q_empty);
        cap();
        if constexpr (decltype(masked)::value) mask(n);
        softmax();
        // The compiler knows no reason to do the softmax before the wait, but it belongs below P V.
        stay_before(row_sum[0] + row_sum[1], barriers + 8 * (4 * kStages + 2));
        wgmma_wait<0>();
        hold(o);
        release_tile(v_empty(count % kStages));
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) o[i] *= alpha[i / 2 % 2];
        to_prob();
        ++count;
      };

#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) o[i] = 0;
      row_max[0] = row_max[1] = -1e30f;  // finite: a row's tile without any visible key then weighs nothing
      row_sum[0] = row_sum[1] = 0;

      mbarrier_wait(k_full(count % kStages), count / kStages & 1);
      hold(s);
      wgmma_fence();
      issue_qk(count);
      // Slots of the last page behind the sequence's end may hold anything: their weight is zero, but not
      // zero times NaN. Pages behind it came as zeros.
      if (t.kv_len < t.end * kKeys && (t.kv_len & ((1 << p.block_shift) - 1)) != 0) {
        mbarrier_wait(v_full(count % kStages), count / kStages & 1);
        int from = t.kv_len - (t.end - 1) * kKeys, block_size = 1 << p.block_shift;
        int to = (from + block_size - 1) & -block_size;
        uint32_t v = v_smem + count % kStages * Shape::kTileBytes;
        for (int i = threadIdx.x % 128; i < (to - from) * (kHeadDim / 8); i += 128) {
          int token = from + i / (kHeadDim / 8), piece = i % (kHeadDim / 8);
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(v + piece / 8 * (kKeys * 128) +
                                                                        token * 128 + piece % 8 * 16),
                       "r"(0)
                       : "memory");
        }
        fence_async_proxy();
        barrier_sync(3 + group, 128);
      }
      wgmma_wait<0>();
      hold(s);
      release_tile(k_empty(count % kStages));
      if (t.end - 1 == t.first) release(q_empty);
      cap();
      mask(t.end - 1);
      softmax();
      to_prob();

      int n = t.end - 2;
      if constexpr (kFull) {
        for (; n >= t.first; --n) step(n, std::true_type{});
      } else {
        for (; n >= t.first && (n + 1) * kKeys > group_position + 1; --n) step(n, std::true_type{});
        for (; n >= t.first; --n) step(n, std::false_type{});
      }
      mbarrier_wait(v_full(count % kStages), count / kStages & 1);
      hold(o);
      wgmma_fence();
      issue_pv(count);
      wgmma_wait<0>();
      hold(o);
      release_tile(v_empty(count % kStages));
      ++count;

      char* out = static_cast<char*>(p.out) + 2 * (t.row * p.out_stride + int64_t{t.head} * kHeadDim);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = row_sum[h];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        float inverse = sum > 0 ? 1.0f / sum : 0.0f;
        // A quad's lanes hold two columns each of every 8: exchanged, so that a lane has 16 bytes of every
        // fourth.
        char* to = out + 2 * (row + 8 * h) * p.out_stride + lane % 4 * 16;
#pragma unroll
        for (int i = 0; i < kHeadDim / 8; i += 4) {
          uint32_t piece[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            piece[k] = pack<kHalf>(o[4 * (i + k) + 2 * h] * inverse, o[4 * (i + k) + 2 * h + 1] * inverse);
          }
          transpose_quad(piece, lane);
          if (row + 8 * h < t.rows)
            *reinterpret_cast<uint4*>(to + i * 16) = {piece[0], piece[1], piece[2], piece[3]};
        }
      }
    }
  }
  if constexpr (kPair > 1) cluster_sync();  // the other block may still arrive at this one's barriers
}

template <int kHeadDim, bool kHalf>
void launch_prefill(const Context& ctx, const CUtensorMap& map, const PrefillParams& params, bool full,
                    int64_t max_items) {
  using Shape = PrefillShape<kHeadDim>;
  // Two heads of a group see the same keys: a pair of blocks shares their copies.
  const bool pair = params.group % 2 == 0;
  auto kernel =
      pair ? (full ? prefill_kernel<kHeadDim, kHalf, true, 2> : prefill_kernel<kHeadDim, kHalf, false, 2>)
           : (full ? prefill_kernel<kHeadDim, kHalf, true, 1> : prefill_kernel<kHeadDim, kHalf, false, 1>);
  int64_t blocks = std::min<int64_t>(pair ? ctx.num_sms & ~1 : ctx.num_sms, max_items * params.num_heads);
  launch(ctx, kernel, dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), Shape::kSmem, map, params);
}

}  // namespace taco::cuda::sm90
