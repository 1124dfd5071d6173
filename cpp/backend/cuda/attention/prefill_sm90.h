// Causal prefill on Hopper: TMA copies of KV pages, wgmma, one producer and two consumer warpgroups.
#pragma once

#include <cstdint>

#include "backend/cuda/context.h"
#include "backend/ops.h"

namespace taco::cuda {

// Query rows of a work item.
inline constexpr int kPrefillSm90Rows = 128;

// Rows [tile * kPrefillSm90Rows, ...) of one sequence's new rows, for all heads.
struct PrefillSm90Item {
  int32_t seq, tile;
};

// Device addresses. Items with more keys to see stand first (the longest work starts first).
struct PrefillSm90Work {
  const PrefillSm90Item* items;
  const int32_t* num_items;  // one number, at most max_items
  int64_t max_items;         // what the host knows at launch: only the size of the grid depends on it
};

// Whether this kernel computes `p`: 16-bit rows and cache of one type, head dims of 64, 128 and 256, no
// ALiBi, sinks or tree. The rest is for the mma.sync kernels.
bool takes_prefill_sm90(const Context& ctx, const AttentionParams& p);
void run_prefill_sm90(Context& ctx, const AttentionParams& p, const PrefillSm90Work& work);

}  // namespace taco::cuda
