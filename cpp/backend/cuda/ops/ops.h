// The ops of backend/ops.h that treat rows one by one, and sampling.
#pragma once

#include <memory>

#include "backend/cuda/context.h"

namespace taco::cuda {

std::unique_ptr<Embedding> prepare_embedding(const HostMatrix& table, DType compute, Context& ctx);
void run_embedding(const EmbeddingParams& p, Context& ctx);
// With an FP8 consumer (reads_fp8 of linear/linear.h) the rows go to ctx.make_quantized(p.out) instead.
void run_norm(const NormParams& p, Context& ctx);
void run_rope_and_cache(const RopeAndCacheParams& p, Context& ctx);
void run_gather_rows(const GatherRowsParams& p, Context& ctx);
// Between pinned host memory and the device, in either direction: rows of `width` bytes, dense in the source,
// `pitch` bytes apart in the target. A kernel, not the copy engine: that may be busy for long with KV blocks,
// and every step waits for its inputs and its tokens. It begins when all before it has ended, and nothing
// begins before its end. False, and nothing done, if that is much: the caller uses the copy engine.
bool run_small_copy(void* to, size_t pitch, const void* from, size_t width, int64_t rows, const Context& ctx);
void run_scale_logits(const ScaleLogitsParams& p, Context& ctx);
void run_mask_logits(const MaskLogitsParams& p, Context& ctx);
void run_copy_blocks(const CopyBlocksParams& p, Context& ctx);
void run_copy_slots(const CopySlotsParams& p, Context& ctx);
void run_patch_ids(const PatchIdsParams& p, Context& ctx);
void run_sample(const SampleParams& p, Context& ctx);

}  // namespace taco::cuda
