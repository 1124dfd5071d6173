// Choosing tokens in two kernels. `scan` reads the logits once, in chunks of a row, and leaves what a row
// needs of each; `finish`, one block a row, chooses: from the chunks' figures alone where the choice is
// greedy, from one chunk where nothing is filtered, and from the elements above a bound where top-k, top-p or
// min-p are asked for.
//
// Sums of floats are taken in an order that depends on the vocabulary alone, so a row's token depends neither
// on the other rows nor on their number.
#pragma once

#include <cstdint>

#include "backend/cuda/launch.cuh"

namespace taco::cuda::sampling {

constexpr int kChunk = 4096;                           // elements that one block of `scan` reads
constexpr int kScanThreads = 256, kScanEach = 16;      // a thread's four times four elements
constexpr int kGroup = 64, kGroups = kChunk / kGroup;  // elements that share a maximum (not neighbours)
constexpr int kMaxLogprobs = 1024;                     // more of them are put in order in global memory
constexpr float kGreedyBelow = 1e-5f, kNoWeight = -88.0f;

// raw: the logits as they came; the others: with the rules applied, sums with the temperature.
struct ChunkStats {
  float raw_max, raw_sum;  // sum of exp(x - raw_max)
  float max, sum;          // sum of exp((x - max) / temperature); 0 for a greedy row
  int32_t arg;             // the lowest index of max
  int32_t raw_nan, nan;
  int32_t unused;
};

struct Layout {                // of the scratch memory
  ChunkStats* stats;           // [rows, chunks]
  float *raw_groups, *groups;  // [rows, chunks, kGroups] maxima; written when the row or the call wants them
  float* ruled;                // [rows, ruled_stride]: rows with rules, applied
  int64_t ruled_stride;
  int chunks;
};

struct SampleArgs {
  SampleParams p;
  Layout s;
  int list_capacity;  // elements of the list in finish's shared memory
  bool has_segments;  // there is room for the list of segments as well
  bool aligned;       // rows of logits start at multiples of 16 bytes
};

__device__ __forceinline__ bool is_random(const SampleRow& row) { return row.temperature >= kGreedyBelow; }
__device__ __forceinline__ bool has_rules(const SampleParams& p, const SampleRow& row) {
  return p.any_rules && (row.num_allowed > 0 || row.num_edits > 0 || row.num_counts > 0);
}

// Unsigned integers in the order of the floats; -0 as +0. Nothing is known of NaN.
__device__ __forceinline__ uint32_t to_key(float x) {
  uint32_t u = __float_as_uint(x == 0.0f ? 0.0f : x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float from_key(uint32_t k) {
  return __uint_as_float(k & 0x80000000u ? k & 0x7fffffffu : ~k);
}

// exp((x - max) * scale) for x <= max, at most 1; 0 where the host's is.
__device__ __forceinline__ float weight_of(float x, float max, float scale) {
  const float e = (x - max) * scale;
  return e < kNoWeight ? 0.0f : __expf(e);
}

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
__device__ __forceinline__ int warp_sum(int v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

// Four neighbours of a row of `n`; -Infinity past its end.
__device__ __forceinline__ float4 load4(const float* row, int at, int n, bool aligned) {
  if (aligned && at + 4 <= n) return *reinterpret_cast<const float4*>(row + at);
  const float none = -INFINITY;
  return make_float4(at < n ? row[at] : none, at + 1 < n ? row[at + 1] : none,
                     at + 2 < n ? row[at + 2] : none, at + 3 < n ? row[at + 3] : none);
}

void launch_finish(const SampleArgs& args, const Context& ctx);

}  // namespace taco::cuda::sampling
