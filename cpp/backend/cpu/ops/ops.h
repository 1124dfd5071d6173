// The CPU backend's ops other than matrix products: they check their parameters, share the work out over the
// threads and call the kernels of the instruction set in use (isa/vector_kernels.h).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "backend/cpu/isa/vector_kernels.h"
#include "backend/cpu/memory.h"
#include "backend/ops.h"
#include "base/thread_pool.h"

namespace taco::cpu {

// Throws kUnimplemented for a dtype that no KV cache can have here.
KvType kv_type(DType dtype);

void run_norm(const NormParams& params, ThreadPool& pool);
void run_rope_and_cache(const RopeAndCacheParams& params, ThreadPool& pool);
void run_gather_rows(const GatherRowsParams& params, ThreadPool& pool);
void run_scale_logits(const ScaleLogitsParams& params, ThreadPool& pool);
void run_mask_logits(const MaskLogitsParams& params);
void run_copy_blocks(const CopyBlocksParams& params, ThreadPool& pool);
void run_copy_slots(const CopySlotsParams& params);

// Paged attention; holds the work list and the threads' scratch between calls.
class Attention {
 public:
  void run(const AttentionParams& params, ThreadPool& pool);

 private:
  struct Item {
    AttentionItem work;
    int merge = -1;  // index into merges_ of the item that this is one split of
  };
  struct Merge {
    AttentionItem work;
    int64_t partials;  // offset into partials_
    int count;
  };
  void plan(const AttentionParams& params, int threads);

  std::vector<Item> items_;
  std::vector<Merge> merges_;
  std::unique_ptr<std::atomic<int>[]> remaining_;  // of each merge: splits not done yet
  size_t remaining_size_ = 0;
  int max_rows_ = 0;
  double cost_ = 0;  // of all items, in keys x (rows + a constant) x head_dim
  int64_t partial_floats_ = 0;
  PageBuffer partials_, scratch_;
};

// Mixture of experts: routes, then runs each expert's linears on the rows that chose it.
class Moe {
 public:
  using RunLinear = std::function<void(const LinearParams&)>;
  void run(const MoeParams& params, ThreadPool& pool, const RunLinear& linear);

 private:
  std::vector<int32_t> experts_, rows_, counts_, starts_;  // [rows * top_k] chosen; rows by expert
  std::vector<float> weights_, sorted_weights_;
  PageBuffer in_, inner_, out_;
};

// The top_k experts of one row, most wanted first, ties by lowest id, and their weights. `params` gives the
// rule; logits: [num_experts].
void route(const MoeParams& params, const float* logits, int32_t* experts, float* weights);

}  // namespace taco::cpu
