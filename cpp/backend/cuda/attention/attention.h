// Attention over the paged KV cache. A step's sequences are split by their number of new rows: few (decode,
// draft verification) go to the split-KV kernel, many (prefill chunks) to the tiled ones.
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
  // those of the step it is replayed for (until Scratch::generation changes). The shape is what the device's
  // q_start and kv_len say. A graph serves the steps whose sequences have one new row each (max_q_len 1), or
  // those whose sequences have up to 64 (max_q_len 2 to 64): what is launched for each kind depends on
  // nothing else. Each kind of layer runs once before a graph is captured.
  //
  // In the batch-invariant mode a row's bits depend on its own sequence only: keys are split at multiples of
  // 512, and a sequence of up to 64 new rows is computed as if each of them were alone. A chunk of a prompt
  // with more rows than that gives the same bits wherever the chunk begins.
  void begin_step(const StepShape& shape);
  void run(const AttentionParams& p);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace taco::cuda
