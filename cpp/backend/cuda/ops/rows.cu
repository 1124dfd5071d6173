// Small ops on rows: gathering them, scaling logits, copying cache blocks, ids of tokens just chosen.
#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ops/ops.h"

namespace taco::cuda {
namespace {

constexpr int kThreads = 256;

// Unit: what is copied at a time; dims and strides in units.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Unit* in, const int32_t* index, int64_t dim, int64_t in_stride, Unit* out) {
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x;
  const Unit* source = in + index[row] * in_stride;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < dim; i += int64_t{gridDim.y} * kThreads)
    out[row * dim + i] = source[i];
}

template <typename Unit>
void gather(const GatherRowsParams& p, int64_t row_bytes, int64_t stride_bytes, const Context& ctx) {
  const int64_t dim = row_bytes / sizeof(Unit);
  const auto parts = static_cast<unsigned>(std::min<int64_t>((dim + kThreads - 1) / kThreads, 16));
  launch(ctx, gather_kernel<Unit>, dim3(static_cast<unsigned>(p.rows), parts), dim3(kThreads), 0,
         static_cast<const Unit*>(p.in), p.index, dim, stride_bytes / static_cast<int64_t>(sizeof(Unit)),
         static_cast<Unit*>(p.out));
}

// tanh through exp of a negative argument, which cannot overflow; tanhf would be tanh.approx here.
__device__ __forceinline__ float exact_tanh(float x) {
  const float a = fabsf(x);
  // Near 0 the difference 1 - e cancels: the series to a^7, whose next term is under 2^-25 of the value.
  const float a2 = a * a;
  const float e = __expf(-2.0f * a);
  const float y = a < 0.2f ? a * (1.0f + a2 * (-1.0f / 3 + a2 * (2.0f / 15 + a2 * (-17.0f / 315))))
                           : (1.0f - e) / (1.0f + e);
  return copysignf(y, x);
}

__global__ void __launch_bounds__(kThreads)
    scale_kernel(float* logits, int64_t count, float scale, float softcap) {
  pdl_launch();
  pdl_wait();
  const float inner = softcap > 0 ? scale / softcap : scale;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    const float x = logits[i] * inner;
    logits[i] = softcap > 0 ? softcap * exact_tanh(x) : x;
  }
}

// Rows of `width` bytes, dense in the source; blockIdx.y: a row.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    small_copy_kernel(char* to, int64_t pitch, const char* from, int64_t width) {
  pdl_wait();
  auto* row = reinterpret_cast<Unit*>(to + blockIdx.y * pitch);
  const auto* source = reinterpret_cast<const Unit*>(from + blockIdx.y * width);
  const int64_t count = width / static_cast<int64_t>(sizeof(Unit));
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads)
    row[i] = source[i];
}

template <typename Unit>
void copy_rows(void* to, size_t pitch, const void* from, size_t width, int64_t rows, const Context& ctx) {
  const size_t blocks = (width / sizeof(Unit) + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(std::clamp<size_t>(blocks, 1, 32)), static_cast<unsigned>(rows));
  launch(ctx, small_copy_kernel<Unit>, grid, dim3(kThreads), 0, static_cast<char*>(to),
         static_cast<int64_t>(pitch), static_cast<const char*>(from), static_cast<int64_t>(width));
}

__global__ void __launch_bounds__(kThreads)
    mask_kernel(float* logits, int64_t rows, int64_t vocab, const int32_t* ids, int64_t count) {
  pdl_launch();
  pdl_wait();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows * count;
       i += int64_t{gridDim.x} * kThreads)
    logits[i / count * vocab + ids[i % count]] = -__builtin_huge_valf();
}

// A pair's blocks lie at multiples of `units` units.
template <typename Unit>
__global__ void __launch_bounds__(kThreads) copy_kernel(Unit* cache, const int32_t* pairs, int64_t units) {
  pdl_launch();
  pdl_wait();
  const Unit* from = cache + pairs[2 * blockIdx.x] * units;
  Unit* to = cache + pairs[2 * blockIdx.x + 1] * units;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < units; i += int64_t{gridDim.y} * kThreads)
    to[i] = from[i];
}

template <typename Unit>
void copy(const CopyBlocksParams& p, int64_t block_bytes, const Context& ctx) {
  const int64_t units = block_bytes / sizeof(Unit);
  const auto parts = static_cast<unsigned>(std::min<int64_t>((units + kThreads - 1) / kThreads, 64));
  launch(ctx, copy_kernel<Unit>, dim3(static_cast<unsigned>(p.num_pairs), parts), dim3(kThreads), 0,
         static_cast<Unit*>(p.cache.data), p.pairs, units);
}

// One block for each (group, K or V of a head, layer); a thread moves the same units of each token of the
// group, in order, so that a slot is read before it is written.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    slots_kernel(Unit* cache, const int64_t* pairs, const int32_t* group_start, int block_size, int64_t units,
                 int64_t layer_units) {
  pdl_launch();
  pdl_wait();
  cache += blockIdx.z * layer_units;
  const int64_t panels = gridDim.y;  // of a block: K and V of all heads
  auto place = [&](int64_t slot) {
    return ((slot / block_size * panels + blockIdx.y) * block_size + slot % block_size) * units;
  };
  const int end = group_start[blockIdx.x + 1];
  for (int64_t unit = threadIdx.x; unit < units; unit += kThreads)
    for (int pair = group_start[blockIdx.x]; pair < end; ++pair)
      cache[place(pairs[2 * pair + 1]) + unit] = cache[place(pairs[2 * pair]) + unit];
}

template <typename Unit>
void move_slots(const CopySlotsParams& p, int64_t row_bytes, const Context& ctx) {
  launch(ctx, slots_kernel<Unit>,
         dim3(static_cast<unsigned>(p.num_groups), static_cast<unsigned>(2 * p.cache.num_kv_heads),
              static_cast<unsigned>(p.layers)),
         dim3(kThreads), 0, static_cast<Unit*>(p.cache.data), p.pairs, p.group_start, p.cache.block_size,
         row_bytes / static_cast<int64_t>(sizeof(Unit)), p.layer_bytes / static_cast<int64_t>(sizeof(Unit)));
}

__global__ void __launch_bounds__(kThreads)
    patch_kernel(int32_t* ids, const int32_t* source, int64_t rows, const SampleResult* results) {
  pdl_launch();
  pdl_wait();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < rows && source[i] >= 0) ids[i] = max(results[source[i]].token, 0);  // -1: sampling failed
}

}  // namespace

void run_gather_rows(const GatherRowsParams& p, Context& ctx) {
  if (p.rows == 0 || p.dim == 0) return;
  const int64_t size = static_cast<int64_t>(dtype_size(p.dtype));
  const int64_t row_bytes = p.dim * size, stride_bytes = p.in_stride * size;
  const auto bits = reinterpret_cast<uintptr_t>(p.in) | reinterpret_cast<uintptr_t>(p.out) |
                    static_cast<uintptr_t>(row_bytes) | static_cast<uintptr_t>(stride_bytes);
  if (bits % 16 == 0) return gather<uint4>(p, row_bytes, stride_bytes, ctx);
  if (bits % 4 == 0) return gather<uint32_t>(p, row_bytes, stride_bytes, ctx);
  if (bits % 2 == 0) return gather<uint16_t>(p, row_bytes, stride_bytes, ctx);
  gather<uint8_t>(p, row_bytes, stride_bytes, ctx);
}

bool run_small_copy(void* to, size_t pitch, const void* from, size_t width, int64_t rows,
                    const Context& ctx) {
  constexpr size_t kMost = size_t{1} << 20;
  if (width == 0 || rows == 0 || width * static_cast<size_t>(rows) > kMost || rows > 65535) return false;
  const size_t odd = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | pitch | width;
  ctx.behind_fence = true;
  if (odd % sizeof(uint4) == 0) {
    copy_rows<uint4>(to, pitch, from, width, rows, ctx);
  } else if (odd % sizeof(uint32_t) == 0) {
    copy_rows<uint32_t>(to, pitch, from, width, rows, ctx);
  } else {
    copy_rows<char>(to, pitch, from, width, rows, ctx);
  }
  ctx.behind_fence = true;
  return true;
}

void run_scale_logits(const ScaleLogitsParams& p, Context& ctx) {
  if (p.count == 0 || (p.scale == 1.0f && p.softcap <= 0)) return;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((p.count + kThreads - 1) / kThreads, ctx.num_sms * 8));
  launch(ctx, scale_kernel, dim3(blocks), dim3(kThreads), 0, p.logits, p.count, p.scale, p.softcap);
}

void run_mask_logits(const MaskLogitsParams& p, Context& ctx) {
  if (p.rows == 0 || p.count == 0) return;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((p.rows * p.count + kThreads - 1) / kThreads, ctx.num_sms * 8));
  launch(ctx, mask_kernel, dim3(blocks), dim3(kThreads), 0, p.logits, p.rows, p.vocab, p.ids, p.count);
}

void run_copy_blocks(const CopyBlocksParams& p, Context& ctx) {
  if (p.num_pairs == 0) return;
  const KvCacheView& c = p.cache;
  const int64_t bytes =
      2 * int64_t{c.num_kv_heads} * c.block_size * c.head_dim * static_cast<int64_t>(dtype_size(c.dtype));
  if (bytes % 16 == 0 && reinterpret_cast<uintptr_t>(c.data) % 16 == 0) return copy<uint4>(p, bytes, ctx);
  copy<uint8_t>(p, bytes, ctx);
}

void run_copy_slots(const CopySlotsParams& p, Context& ctx) {
  if (p.num_groups == 0) return;
  const int64_t bytes = p.cache.head_dim * static_cast<int64_t>(dtype_size(p.cache.dtype));
  if ((bytes | p.layer_bytes) % 4 == 0 && reinterpret_cast<uintptr_t>(p.cache.data) % 4 == 0)
    return move_slots<uint32_t>(p, bytes, ctx);
  move_slots<uint8_t>(p, bytes, ctx);
}

void run_patch_ids(const PatchIdsParams& p, Context& ctx) {
  if (p.rows == 0) return;
  launch(ctx, patch_kernel, dim3(static_cast<unsigned>((p.rows + kThreads - 1) / kThreads)), dim3(kThreads),
         0, p.ids, p.source, p.rows, p.results);
}

}  // namespace taco::cuda
