#include "backend/cuda/attention/mma.h"

#include <algorithm>
#include <bit>

namespace taco::cuda {
namespace {

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }
bool is_fp8(DType dtype) { return dtype == DType::kF8E4M3 || dtype == DType::kF8E5M2; }
int padded_dim(int head_dim) { return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256; }

}  // namespace

bool takes_mma(const AttentionParams& p) {
  const KvCacheView& c = p.cache;
  bool rows = p.dtype == DType::kBF16 || p.dtype == DType::kF16;
  bool cache = c.dtype == DType::kBF16 || c.dtype == DType::kF16 || is_fp8(c.dtype);
  return p.pattern.block == 0 && rows && cache && c.head_dim % 16 == 0 && c.head_dim <= 256 &&
         c.block_size >= 8 && std::has_single_bit(static_cast<unsigned>(c.block_size)) &&
         aligned(c.data, 16) && aligned(p.q, 4) && aligned(p.out, 4) && p.q_stride % 2 == 0 &&
         p.out_stride % 2 == 0;
}

int decode_rows(DType kv_dtype, int head_dim, int group) {
  return group > 8 && head_dim <= 128 && kv_dtype == DType::kBF16 ? 16 : 8;
}

int few_rows(int head_dim) { return head_dim <= 128 ? 32 : 0; }

DecodeLaunch decode_launch(const Context& ctx, DType kv_dtype, int head_dim, int rows) {
  const int dim = padded_dim(head_dim);
  const size_t stage = size_t{4} * 2 * 16 * dim * (is_fp8(kv_dtype) ? 1 : 2);
  const size_t fixed = decode_fixed_smem(dim, rows);
  // A multiprocessor holds a kilobyte more than a block may have, and each block takes one for the system.
  const size_t total = ctx.max_smem + 1024;
  for (int blocks = 2; blocks >= 1; --blocks) {
    const size_t room = total / blocks - 1024;
    if (room < fixed + 2 * stage && blocks > 1) continue;
    int stages = std::clamp(static_cast<int>((room - fixed) / stage), 1, 6);
    return {stages, blocks, fixed + stages * stage};
  }
  fail(ErrorCode::kInternal, "no room for attention");
}

void launch_decode(const Context& ctx, DType kv_dtype, int rows, int grid, const PagedParams& p) {
  const size_t smem = decode_launch(ctx, kv_dtype, p.head_dim, rows).smem;
  auto go = kv_dtype == DType::kBF16  ? launch_decode_bf16
            : kv_dtype == DType::kF16 ? launch_decode_f16
                                      : launch_decode_fp8;
  go(ctx, rows, grid, smem, p);
}

void launch_tile(const Context& ctx, DType kv_dtype, int rows, int grid, const PagedParams& p) {
  auto go = kv_dtype == DType::kBF16  ? launch_tile_bf16
            : kv_dtype == DType::kF16 ? launch_tile_f16
                                      : launch_tile_fp8;
  go(ctx, rows, grid, p);
}

}  // namespace taco::cuda
