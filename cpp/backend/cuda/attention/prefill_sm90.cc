#include "backend/cuda/attention/prefill_sm90.h"

#include <bit>
#include <cmath>

#include "backend/cuda/attention/prefill_sm90_params.h"
#include "backend/cuda/tensor_map.h"

namespace taco::cuda {
namespace {

// The layer's cache as a run of groups of 8 tokens, [groups][chunk of 64 dims][8 tokens][64 dims]; a box is
// one page of a head, so that each page takes one copy, and every 8 tokens of 64 dims are an atom of the
// swizzle.
CUtensorMap cache_map(const KvCacheView& cache) {
  CUtensorMap map;
  const cuuint64_t row = cache.head_dim * 2, page_groups = cache.block_size / 8, chunks = cache.head_dim / 64;
  const cuuint64_t groups = 2 * cache.num_blocks * cache.num_kv_heads * page_groups;
  const cuuint64_t sizes[4] = {64, 8, chunks, groups}, strides[3] = {row, 128, 8 * row};
  const cuuint32_t box[4] = {64, 8, static_cast<cuuint32_t>(chunks), static_cast<cuuint32_t>(page_groups)};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  CUresult result = tensor_map_encoder()(
      &map, cache.dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      4, cache.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TACO_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", static_cast<int>(result));
  return map;
}

bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

bool takes_prefill_sm90(const Context& ctx, const AttentionParams& p) {
  const KvCacheView& cache = p.cache;
  bool dim = cache.head_dim == 64 || cache.head_dim == 128 || cache.head_dim == 256;
  bool dtype = (p.dtype == DType::kBF16 || p.dtype == DType::kF16) && cache.dtype == p.dtype;
  bool block = cache.block_size == 8 || cache.block_size == 16 || cache.block_size == 32;
  bool place = aligned16(p.q) && aligned16(cache.data) && aligned16(p.out) && p.q_stride % 8 == 0 &&
               p.out_stride % 8 == 0 &&
               cache.num_blocks * 2 * cache.num_kv_heads * cache.block_size / 8 < (int64_t{1} << 31);
  return ctx.hopper() && dim && dtype && block && place && p.scale > 0.0f && p.alibi_slopes == nullptr &&
         p.pattern.block == 0 && p.sinks == nullptr && p.tree_mask == nullptr;
}

void run_prefill_sm90(Context& ctx, const AttentionParams& p, const PrefillSm90Work& work) {
  if (work.max_items == 0) return;
  constexpr float kLog2e = 1.4426950408889634f;
  bool capped = p.softcap > 0.0f;
  sm90::PrefillParams params = {
      .q = p.q,
      .out = p.out,
      .q_stride = p.q_stride,
      .out_stride = p.out_stride,
      .q_start = p.q_start,
      .kv_len = p.kv_len,
      .block_tables = p.block_tables,
      .max_blocks = p.max_blocks,
      .items = work.items,
      .num_items = work.num_items,
      .num_heads = p.num_heads,
      .num_kv_heads = p.cache.num_kv_heads,
      .group = p.num_heads / p.cache.num_kv_heads,
      .block_shift = std::countr_zero(static_cast<unsigned>(p.cache.block_size)),
      .scale_log2 = capped ? kLog2e : p.scale * kLog2e,
      .cap_in = capped ? p.scale / p.softcap : 0.0f,
      .cap_out = p.softcap,
      .window = p.window,
  };
  bool full = capped || p.window > 0, half = p.dtype == DType::kF16;
  int grid = static_cast<int>(std::min<int64_t>(ctx.num_sms, work.max_items * p.num_heads));
  auto go = half ? sm90::launch_prefill<128, true> : sm90::launch_prefill<128, false>;
  if (p.cache.head_dim == 64) go = half ? sm90::launch_prefill<64, true> : sm90::launch_prefill<64, false>;
  if (p.cache.head_dim == 256) go = half ? sm90::launch_prefill<256, true> : sm90::launch_prefill<256, false>;
  go(ctx, cache_map(p.cache), params, full, grid);
}

}  // namespace taco::cuda
