// How the CPU backend orders the elements of one (block, K or V, head) panel of the paged KV cache.
//
// A panel holds block_size * head_dim elements, as everywhere, but in the order that attention reads them in:
//   K, float32/float16  [head_dim][block_size]: a vector holds neighbouring tokens, so that q.k needs no
//                       horizontal sums and every score is summed over the dims in order
//   K, bfloat16         [head_dim / 2][block_size][2]: pairs of dims, as vdpbf16ps and AMX take them
//   V, float32/float16  [block_size][head_dim]
//   V, bfloat16         [block_size / 2][head_dim][2]: pairs of tokens
// The last row of an odd dimension is not paired.
#pragma once

#include <cstdint>

namespace taco::cpu {

enum class KvType : uint8_t { kF32, kF16, kBF16 };

// Internal linkage: sources of several instruction sets include this.
static inline int64_t k_index(bool paired, int64_t dim, int64_t token, int64_t head_dim, int64_t block_size) {
  if (!paired || dim >= (head_dim & ~int64_t{1})) return dim * block_size + token;
  return (dim / 2 * block_size + token) * 2 + (dim & 1);
}

static inline int64_t v_index(bool paired, int64_t dim, int64_t token, int64_t head_dim, int64_t block_size) {
  if (!paired || token >= (block_size & ~int64_t{1})) return token * head_dim + dim;
  return (token / 2 * head_dim + dim) * 2 + (token & 1);
}

}  // namespace taco::cpu
