// Ops that treat each row by itself: norms, rotation and KV write, gathering, block copies.
#include <cstring>
#include <limits>

#include "backend/cpu/activations.h"
#include "backend/cpu/isa/kv_layout.h"
#include "backend/cpu/ops/ops.h"
#include "base/error.h"

namespace taco::cpu {
namespace {

// Elements that are worth waking a thread for (a few microseconds of work).
constexpr int64_t kGrainElements = 16384;

int64_t grain_rows(int64_t row_elements) { return kGrainElements / (row_elements + 1) + 1; }

}  // namespace

KvType kv_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return KvType::kF32;
    case DType::kF16:
      return KvType::kF16;
    case DType::kBF16:
      return KvType::kBF16;
    default:
      fail(ErrorCode::kUnimplemented,
           "the CPU backend keeps its KV cache in float32, float16 or bfloat16, not ", dtype_name(dtype));
  }
}

void run_norm(const NormParams& p, ThreadPool& pool) {
  TACO_CHECK(p.rows >= 0 && p.dim > 0 && p.in && p.out);
  TACO_CHECK(p.groups == 1 || (p.groups > 1 && !p.residual && p.kind != NormKind::kNone));
  if (p.kind == NormKind::kNone) {
    for (int64_t row = 0; row < p.rows; ++row) {
      const float* in = f32(p.in) + row * p.in_stride;
      float* out = f32(p.out) + row * p.out_stride;
      if (p.residual) {
        float* residual = f32(p.residual) + row * p.dim;
        for (int64_t i = 0; i < p.dim; ++i) residual[i] += in[i] * p.residual_scale;
        in = residual;
      }
      if (in != out) std::memmove(out, in, p.dim * sizeof(float));
    }
    return;
  }
  const VectorKernels& kernels = vector_kernels();
  pool.parallel_for(p.rows, grain_rows(p.dim * p.groups), [&](int64_t begin, int64_t end) {
    NormArgs args{
        p.kind == NormKind::kRms, f32(p.in), f32(p.residual), p.residual_scale, p.weight,     p.bias,
        p.weight_offset,          p.eps,     p.dim,           p.in_stride,      p.out_stride, f32(p.out)};
    for (int g = 0; g < p.groups; ++g) {
      kernels.norm(args, begin, end);
      args.in += p.dim;
      args.out += p.dim;
      if (p.group_weights && args.weight) args.weight += p.dim;
      if (p.group_weights && args.bias) args.bias += p.dim;
    }
  });
}

void run_rope_and_cache(const RopeAndCacheParams& p, ThreadPool& pool) {
  const KvCacheView& cache = p.cache;
  TACO_CHECK(p.num_kv_heads == cache.num_kv_heads && p.head_dim == cache.head_dim,
             "the cache is another layer's");
  TACO_CHECK(p.rotary_dim % 2 == 0 && p.rotary_dim <= p.head_dim);
  const RopeArgs args{f32(p.qkv),      p.stride,    p.num_heads, p.num_kv_heads,
                      p.head_dim,      p.positions, p.cos_sin,   p.rotary_dim,
                      p.interleaved,   p.slots,     p.q_norm,    p.k_norm,
                      p.qk_norm_eps,   p.q_scale,   cache.data,  kv_type(cache.dtype),
                      cache.block_size};
  for (int64_t row = 0; row < p.rows; ++row) {
    TACO_CHECK(p.slots[row] < cache.num_blocks * cache.block_size, "slot ", p.slots[row],
               " is outside the cache");
  }
  const VectorKernels& kernels = vector_kernels();
  const int64_t width = static_cast<int64_t>(p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
  pool.parallel_for(p.rows, grain_rows(width),
                    [&](int64_t begin, int64_t end) { kernels.rope_and_cache(args, begin, end); });
}

void run_gather_rows(const GatherRowsParams& p, ThreadPool& pool) {
  pool.parallel_for(p.rows, grain_rows(p.dim), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      std::memcpy(f32(p.out) + row * p.dim, f32(p.in) + p.index[row] * p.in_stride, p.dim * sizeof(float));
  });
}

void run_scale_logits(const ScaleLogitsParams& p, ThreadPool& pool) {
  if (p.scale == 1.0f && p.softcap <= 0.0f) return;
  const VectorKernels& kernels = vector_kernels();
  pool.parallel_for(p.count, kGrainElements, [&](int64_t begin, int64_t end) {
    kernels.scale_logits(p.logits + begin, end - begin, p.scale, p.softcap);
  });
}

namespace {

template <typename T>
void copy_slot(const KvCacheView& c, int64_t from, int64_t to) {
  const bool paired = c.dtype == DType::kBF16;
  const int64_t bs = c.block_size, dim = c.head_dim, panel = bs * dim;
  T* data = static_cast<T*>(c.data);
  T *source = data + from / bs * 2 * c.num_kv_heads * panel,
    *target = data + to / bs * 2 * c.num_kv_heads * panel;
  for (int h = 0; h < c.num_kv_heads; ++h, source += panel, target += panel) {
    T *v_source = source + c.num_kv_heads * panel, *v_target = target + c.num_kv_heads * panel;
    for (int64_t d = 0; d < dim; ++d) {
      target[k_index(paired, d, to % bs, dim, bs)] = source[k_index(paired, d, from % bs, dim, bs)];
      v_target[v_index(paired, d, to % bs, dim, bs)] = v_source[v_index(paired, d, from % bs, dim, bs)];
    }
  }
}

}  // namespace

// A few tokens after a step of drafts: not worth a second thread.
void run_copy_slots(const CopySlotsParams& p) {
  KvCacheView c = p.cache;
  const int64_t slots = c.num_blocks * c.block_size;
  for (int layer = 0; layer < p.layers; ++layer) {
    c.data = static_cast<char*>(p.cache.data) + layer * p.layer_bytes;
    for (int i = 0; i < p.group_start[p.num_groups]; ++i) {
      const int64_t from = p.pairs[2 * i], to = p.pairs[2 * i + 1];
      TACO_CHECK(from >= 0 && from < slots && to >= 0 && to < slots, "slot outside the cache");
      if (dtype_size(c.dtype) == 4) {
        copy_slot<uint32_t>(c, from, to);
      } else {
        copy_slot<uint16_t>(c, from, to);
      }
    }
  }
}

void run_mask_logits(const MaskLogitsParams& p) {
  for (int64_t i = 0; i < p.count; ++i)
    TACO_CHECK(p.ids[i] >= 0 && p.ids[i] < p.vocab, "token ", p.ids[i], " of a vocabulary of ", p.vocab);
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t i = 0; i < p.count; ++i)
      p.logits[row * p.vocab + p.ids[i]] = -std::numeric_limits<float>::infinity();
}

void run_copy_blocks(const CopyBlocksParams& p, ThreadPool& pool) {
  const KvCacheView& c = p.cache;
  const size_t bytes = size_t{2} * c.num_kv_heads * c.block_size * c.head_dim * dtype_size(c.dtype);
  char* data = static_cast<char*>(c.data);
  // In order and by one thread: a pair may read what an earlier one wrote.
  for (int i = 0; i < p.num_pairs; ++i) {
    const int64_t from = p.pairs[2 * i], to = p.pairs[2 * i + 1];
    TACO_CHECK(from >= 0 && from < c.num_blocks && to >= 0 && to < c.num_blocks, "block outside the cache");
    if (from != to) std::memcpy(data + to * bytes, data + from * bytes, bytes);
  }
}

}  // namespace taco::cpu
