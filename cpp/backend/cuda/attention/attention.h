// Attention over the paged KV cache. A step's sequences are split by their number of new rows: few (decode,
// draft verification) go to the split-KV kernel, many (prefill chunks) to the tiled one.
#pragma once

#include <memory>

#include "backend/cuda/context.h"

namespace taco::cuda {

// The KV cache's panel of one (block, K or V, head) is [block_size][head_dim], row-major.

class Attention {
 public:
  explicit Attention(Context& ctx);
  ~Attention();

  // Plans the step for all layers: work lists go to fixed device addresses, so that a captured graph reads
  // those of the step it is replayed for. Launch sizes depend on what a graph's bucket fixes only: rows,
  // whether there is any sequence of many rows, and tree.
  void begin_step(const StepShape& shape);
  void run(const AttentionParams& p);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace taco::cuda
