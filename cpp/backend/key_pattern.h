// Which keys a query sees beside the causal rule, where that is not all of them. Plain data and arithmetic:
// kernels of every instruction set and CUDA's include it.
#pragma once

#ifdef __CUDACC__
#define TACO_KEY_PATTERN_INLINE static __host__ __device__ __forceinline__
#else
#define TACO_KEY_PATTERN_INLINE static inline
#endif

namespace taco {

// Positions are taken in blocks of `block` tokens. A row sees the blocks of its own token and of the
// local_blocks - 1 before it, and of the older ones each stride-th: head h those with
// (index + 1 + h * head_step) % stride == 0.
struct KeyPattern {
  int block;  // 0: every key
  int local_blocks, stride, head_step;
};

// Whether head `head`'s row at `position` sees the key at `key`, of which the causal rule has been checked.
TACO_KEY_PATTERN_INLINE bool sees_key(const KeyPattern& p, int head, int position, int key) {
  const int index = key / p.block;
  return position / p.block - index < p.local_blocks || (index + 1 + head * p.head_step) % p.stride == 0;
}

}  // namespace taco

#undef TACO_KEY_PATTERN_INLINE
