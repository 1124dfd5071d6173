// The prefill kernel of Hopper. One block an SM walks over work items (128 rows of one sequence, one head):
//   * warp 0 copies pages of K to shared memory by TMA, warp 1 those of V, tiles of 128 keys, two deep each;
//   * warps 2 and 3 copy the item's query rows;
//   * two warpgroups of 64 rows each compute: S = Q K^T of the next tile and O += P V of this one run on the
//     tensor cores while the softmax of the next tile waits only for S; the two take turns at issuing
//     products, so that one's softmax runs below the other's products.
// Keys are walked from the diagonal backwards, in tiles at fixed places: a row's result depends on its own
// sequence alone.
#pragma once

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
  static constexpr int kQStages = kHeadDim <= 128 ? 2 : 1;
  static constexpr int kChunks = kHeadDim / 64;  // 128-byte columns
  static constexpr int kQBytes = kRows * kHeadDim * 2;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kBarrierBytes = 256;
  static constexpr size_t kSmem = 1024 + kQStages * kQBytes + 2 * kStages * kTileBytes + kBarrierBytes;
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

template <int kKeys, bool kFull>
__device__ __forceinline__ PrefillTile prefill_tile(const PrefillParams& p, int unit) {
  PrefillTile t;
  PrefillSm90Item item = p.items[unit / p.num_heads];
  t.head = unit % p.num_heads;
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
__device__ __forceinline__ int prefill_unit(int round) {
  int column = round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  return round * gridDim.x + column;
}

template <int kHeadDim, bool kHalf, bool kFull>
__global__ void __launch_bounds__(PrefillShape<kHeadDim>::kThreads, 1)
    prefill_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ PrefillParams p) {
  using Shape = PrefillShape<kHeadDim>;
  constexpr int kKeys = Shape::kKeys, kChunks = Shape::kChunks, kStages = Shape::kStages,
                kQStages = Shape::kQStages;
  constexpr int kLoaders = 64;  // threads that copy q
  extern __shared__ uint8_t smem_raw[];
  const uint32_t base = (smem_address(smem_raw) + 1023) & ~1023u;
  const uint32_t q_smem = base, k_smem = q_smem + kQStages * Shape::kQBytes,
                 v_smem = k_smem + kStages * Shape::kTileBytes;
  const uint32_t barriers = v_smem + kStages * Shape::kTileBytes;
  auto k_full = [&](int s) { return barriers + 8 * s; };
  auto k_empty = [&](int s) { return barriers + 8 * (kStages + s); };
  auto v_full = [&](int s) { return barriers + 8 * (2 * kStages + s); };
  auto v_empty = [&](int s) { return barriers + 8 * (3 * kStages + s); };
  auto q_full = [&](int s) { return barriers + 8 * (4 * kStages + s); };
  auto q_empty = [&](int s) { return barriers + 8 * (4 * kStages + kQStages + s); };

  const uint32_t unused = barriers + 248;
  // What the consumers do next: of the threads that copy q.
  auto* shared_tile = reinterpret_cast<PrefillTile*>(smem_raw + (barriers + 128 - smem_address(smem_raw)));
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    tma_prefetch_map(&map);
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(k_full(s), 1);
      mbarrier_init(v_full(s), 1);
      mbarrier_init(k_empty(s), 4 * Shape::kGroups);
      mbarrier_init(v_empty(s), 4 * Shape::kGroups);
    }
    for (int s = 0; s < kQStages; ++s) {
      mbarrier_init(q_full(s), kLoaders);
      mbarrier_init(q_empty(s), 4 * Shape::kGroups);
    }
    fence_barrier_init();
  }
  __syncthreads();
  pdl_wait();
  const int units = *p.num_items * p.num_heads;

  if (warp < 4) {
    registers_down<40>();
    if (warp < 2) {  // K; V
      const int block_size = 1 << p.block_shift, pages = kKeys >> p.block_shift;
      const uint32_t tiles = warp == 0 ? k_smem : v_smem;
      const uint32_t full = warp == 0 ? k_full(0) : v_full(0), empty = warp == 0 ? k_empty(0) : v_empty(0);
      const uint32_t place = lane * block_size * kHeadDim * 2;  // a lane's page of each tile
      const int groups = block_size / 8;                        // of 8 tokens in a page
      int count = 0;                                            // tiles so far
      for (int round = 0, unit; (unit = prefill_unit(round)) < units; ++round) {
        const PrefillTile t = prefill_tile<kKeys, kFull>(p, unit);
        const int32_t* table = p.block_tables + t.seq * p.max_blocks;
        const int needed = t.position + t.rows;  // keys
        const int panel = warp * p.num_kv_heads + t.head / p.group;
        // A coordinate outside of the map gives zeros, and no memory is touched.
        auto page_of = [&](int n) {
          int i = n * pages + lane;
          if (lane >= pages || n < t.first || i * block_size >= needed) return -1024;
          return (table[i] * 2 * p.num_kv_heads + panel) * groups;
        };
        int group = page_of(t.end - 1);
        for (int n = t.end - 1; n >= t.first; --n, ++count) {
          const int next = page_of(n - 1), stage = count % kStages;
          mbarrier_wait(empty + 8 * stage, (count / kStages & 1) ^ 1);
          if (lane == 0) mbarrier_expect(full + 8 * stage, Shape::kTileBytes);
          __syncwarp();
          if (lane < pages) {
            tma_load(tiles + stage * Shape::kTileBytes + place, &map, full + 8 * stage, 0, 0, 0, group);
          }
          group = next;
        }
      }
      pdl_launch();
    } else {
      const int thread = threadIdx.x - 64;
      for (int round = 0, unit; (unit = prefill_unit(round)) < units; ++round) {
        const PrefillTile t = prefill_tile<kKeys, kFull>(p, unit);
        const char* q = static_cast<const char*>(p.q) + 2 * (t.row * p.q_stride + int64_t{t.head} * kHeadDim);
        const int stage = round % kQStages;
        mbarrier_wait(q_empty(stage), (round / kQStages & 1) ^ 1);
        if (thread == 0) shared_tile[stage] = t;
        constexpr int kPieces = kHeadDim / 8;  // of 16 bytes in a row
#pragma unroll 4
        for (int i = thread; i < Shape::kRows * kPieces; i += kLoaders) {
          int row = i / kPieces, piece = i % kPieces;
          // 64 rows of a warpgroup are a tile of their own: [chunk][row][128 bytes], swizzled.
          uint32_t to = q_smem + stage * Shape::kQBytes + row / 64 * (64 * kHeadDim * 2) +
                        piece / 8 * (64 * 128) + row % 64 * 128 + ((piece % 8) ^ (row % 8)) * 16;
          cp_async16(to, q + 2 * (min(row, t.rows - 1) * p.q_stride) + piece * 16, row < t.rows);
        }
        cp_async_wait_all();
        fence_async_proxy();
        mbarrier_arrive(q_full(stage));
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
    // Tiles of K and V are [8 tokens' group][chunk][token][128 bytes].
    const uint64_t k_desc = descriptor(k_smem, 16, kChunks * 1024);
    const uint64_t v_desc = descriptor(v_smem, 1024, kChunks * 1024);
    const int own_turn = 1 + group, other_turn = 2 - group;
    if (group == 1) barrier_arrive(other_turn, 256);

    float s[kKeys / 2], o[kHeadDim / 2];
    uint32_t prob[kKeys / 4];
    float row_max[2], row_sum[2];
    int count = 0;

    PrefillTile t{};
    int round = 0;
    auto issue_qk = [&](int i) {
      const uint64_t q = q_desc + round % kQStages * (Shape::kQBytes >> 4);
      const uint64_t k = k_desc + (i % kStages) * (Shape::kTileBytes >> 4);
#pragma unroll
      for (int j = 0; j < kHeadDim / 16; ++j) {
        QK::ss(s, q + (j / 4 * (64 * 128) + j % 4 * 32 >> 4), k + (j / 4 * 1024 + j % 4 * 32 >> 4), j > 0);
      }
      wgmma_commit();
    };
    auto issue_pv = [&](int i) {
      const uint64_t v = v_desc + (i % kStages) * (Shape::kTileBytes >> 4);
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) PV::rs(o, prob + 4 * j, v + j * (2 * kChunks * 1024 >> 4));
      wgmma_commit();
    };
    auto release = [&](uint32_t barrier) {
      __syncwarp();
      if (lane == 0) mbarrier_arrive(barrier);
    };
    auto mask = [&](int n) {
      // Key c of the tile is seen by row r where c <= limit[r] and, with a window, c > limit[r] - window.
      const int position = t.position + row;
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
      release(k_empty((count + 1) % kStages));
      if (n == t.first) release(q_empty(round % kQStages));
      cap();
      if constexpr (decltype(masked)::value) mask(n);
      softmax();
      // The compiler knows no reason to do the softmax before the wait, but it belongs below P V.
      stay_before(row_sum[0] + row_sum[1], unused);
      wgmma_wait<0>();
      hold(o);
      release(v_empty(count % kStages));
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) o[i] *= alpha[i / 2 % 2];
      to_prob();
      ++count;
    };

    // The unit's first scores are in s.
    auto begin = [&] {
      release(k_empty(count % kStages));
      if (t.end - 1 == t.first) release(q_empty(round % kQStages));
      cap();
      mask(t.end - 1);
      row_max[0] = row_max[1] = -1e30f;  // finite: a row's tile without any visible key then weighs nothing
      row_sum[0] = row_sum[1] = 0;
      softmax();
    };
    auto zero_tail = [&] {
      // Slots of the last page behind the sequence's end may hold anything: their weight is zero, but not
      // zero times NaN. Pages behind it came as zeros.
      if (t.kv_len < t.end * kKeys && (t.kv_len & ((1 << p.block_shift) - 1)) != 0) {
        mbarrier_wait(v_full(count % kStages), count / kStages & 1);
        int from = t.kv_len - (t.end - 1) * kKeys, block_size = 1 << p.block_shift;
        int to = (from + block_size - 1) & -block_size;
        uint32_t v = v_smem + count % kStages * Shape::kTileBytes;
        for (int i = threadIdx.x % 128; i < (to - from) * (kHeadDim / 8); i += 128) {
          int token = from + i / (kHeadDim / 8), piece = i % (kHeadDim / 8);
          zero16(v + token / 8 * (kChunks * 1024) + piece / 8 * 1024 + token % 8 * 128 + piece % 8 * 16);
        }
        fence_async_proxy();
        barrier_sync(3 + group, 128);
      }
    };
    auto write = [&](const PrefillTile& t, const float(&row_sum)[2]) {
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
    };
    auto next_unit = [&] {
      mbarrier_wait(q_full(round % kQStages), round / kQStages & 1);
      t = shared_tile[round % kQStages];
      mbarrier_wait(k_full(count % kStages), count / kStages & 1);
    };

    if (prefill_unit(0) < units) {
      next_unit();
      hold(s);
      wgmma_fence();
      issue_qk(count);
      wgmma_wait<0>();
      hold(s);
      begin();
      zero_tail();
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) o[i] = 0;
      to_prob();
      while (true) {
        const int group_position = t.position + group * 64;
        int n = t.end - 2;
        if constexpr (kFull) {
          for (; n >= t.first; --n) step(n, std::true_type{});
        } else {
          for (; n >= t.first && (n + 1) * kKeys > group_position + 1; --n) step(n, std::true_type{});
          for (; n >= t.first; --n) step(n, std::false_type{});
        }
        ++round;
        if (prefill_unit(round) >= units) break;
        // The unit's last P V runs together with the next one's first Q K.
        const PrefillTile done = t;
        const float done_sum[2] = {row_sum[0], row_sum[1]};
        ++count;
        next_unit();
        barrier_sync(own_turn, 256);
        hold(s);
        hold(o);
        wgmma_fence();
        issue_qk(count);
        mbarrier_wait(v_full((count - 1) % kStages), (count - 1) / kStages & 1);
        issue_pv(count - 1);
        barrier_arrive(other_turn, 256);
        wgmma_wait<1>();
        hold(s);
        begin();
        stay_before(row_sum[0] + row_sum[1], unused);
        wgmma_wait<0>();
        hold(o);
        release(v_empty((count - 1) % kStages));
        write(done, done_sum);
        zero_tail();
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) o[i] = 0;
        to_prob();
      }
      mbarrier_wait(v_full(count % kStages), count / kStages & 1);
      hold(o);
      wgmma_fence();
      issue_pv(count);
      wgmma_wait<0>();
      hold(o);
      write(t, row_sum);
    }
  }
}

template <int kHeadDim, bool kHalf>
void launch_prefill(const Context& ctx, const CUtensorMap& map, const PrefillParams& params, bool full,
                    int grid) {
  using Shape = PrefillShape<kHeadDim>;
  launch(ctx, full ? prefill_kernel<kHeadDim, kHalf, true> : prefill_kernel<kHeadDim, kHalf, false>,
         dim3(grid), dim3(Shape::kThreads), Shape::kSmem, map, params);
}

}  // namespace taco::cuda::sm90
