// The first pass of sampling over the logits, and its launch.
#include <cfloat>

#include "backend/cuda/ops/ops.h"
#include "backend/cuda/sampling/sample.cuh"

namespace taco::cuda {
namespace sampling {
namespace {

struct Partial {
  float max, sum;
  int32_t arg, nan;
};

// A thread's sixteen elements: four neighbours at 4 * (thread + 256 * i). `groups`: where the chunk's group
// maxima go, or null. The sums of eight warps, to shared memory.
template <bool kArg>
__device__ __forceinline__ void summarize(const float (&x)[kScanEach], int first, bool sums, float scale,
                                          float* groups, Partial* partials) {
  const int lane = threadIdx.x & 31;
  float top = x[0];
  int arg = first;
  bool nan = false;
#pragma unroll
  for (int i = 0; i < kScanEach; ++i) {
    nan |= x[i] != x[i];
    if (x[i] > top) {
      top = x[i];
      arg = first + (i / 4) * (4 * kScanThreads) + i % 4;
    }
  }
  uint32_t key = to_key(top);
  if (groups != nullptr) {  // four threads share one
    uint32_t shared = max(key, __shfl_xor_sync(0xffffffffu, key, 1));
    shared = max(shared, __shfl_xor_sync(0xffffffffu, shared, 2));
    if (lane % 4 == 0) groups[threadIdx.x / 4] = from_key(shared);
  }
  const uint32_t best = __reduce_max_sync(0xffffffffu, key);
  if (kArg) arg = __reduce_min_sync(0xffffffffu, key == best ? arg : INT32_MAX);
  nan = __any_sync(0xffffffffu, nan);
  top = from_key(best);
  float sum = 0;
  if (sums) {
    const float shift = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int i = 0; i < kScanEach; ++i) sum += weight_of(x[i], shift, scale);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  }
  if (lane == 0) partials[threadIdx.x / 32] = {top, sum, arg, nan};
}

// One warp: the chunk's figures from those of its warps.
__device__ __forceinline__ Partial combine(const Partial* partials, float scale) {
  const int lane = threadIdx.x & 31;
  Partial p = lane < kScanThreads / 32 ? partials[lane] : Partial{-INFINITY, 0.0f, INT32_MAX, 0};
  const uint32_t key = to_key(p.max), best = __reduce_max_sync(0xffffffffu, key);
  const int arg = __reduce_min_sync(0xffffffffu, key == best ? p.arg : INT32_MAX);
  const float top = from_key(best);
  float sum = top == -INFINITY ? 0.0f : p.sum * weight_of(p.max, top, scale);
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  return {top, sum, arg, __any_sync(0xffffffffu, p.nan != 0)};
}

// The rules in the order of exec/sampler.h on a chunk in shared memory, rounded as the host rounds.
__device__ __forceinline__ void apply_rules(const SampleParams& p, const SampleRow& row, int first, int count,
                                            float* x, uint32_t* bits) {
  const int t = threadIdx.x;
  if (row.num_allowed > 0) {
    for (int i = t; i < kChunk / 32; i += kScanThreads) bits[i] = 0;
    __syncthreads();
    for (int i = t; i < row.num_allowed; i += kScanThreads) {
      const int at = p.allowed[row.first_allowed + i] - first;
      if (at >= 0 && at < count) atomicOr(&bits[at / 32], 1u << at % 32);
    }
    __syncthreads();
    for (int i = t; i < count; i += kScanThreads)
      if (!(bits[i / 32] >> i % 32 & 1)) x[i] = -INFINITY;
    __syncthreads();
  }
  // A token may be forbidden and biased, or forbidden twice: at most one finite value is added, so the order
  // of the additions changes nothing.
  for (int i = t; i < row.num_edits; i += kScanThreads) {
    const TokenEdit e = p.edits[row.first_edit + i];
    const int at = e.token - first;
    if (at >= 0 && at < count) atomicAdd(&x[at], e.add);
  }
  __syncthreads();
  const bool counted = row.presence != 0.0f || row.frequency != 0.0f;
  for (int i = t; i < row.num_counts; i += kScanThreads) {
    const TokenCount c = p.counts[row.first_count + i];
    const int at = c.token - first;
    if (at < 0 || at >= count) continue;
    float v = x[at];
    if (row.repetition != 1.0f) v = v > 0 ? __fdiv_rn(v, row.repetition) : __fmul_rn(v, row.repetition);
    if (counted && c.in_output > 0) {
      const float frequency = __fmul_rn(row.frequency, static_cast<float>(c.in_output));
      v = __fsub_rn(v, __fadd_rn(frequency, row.presence));
    }
    x[at] = v;
  }
  __syncthreads();
}

// kRules: room for a chunk in shared memory. Rows without rules take the short way in it as well.
template <bool kRules>
__global__ void __launch_bounds__(kScanThreads, 4) scan_kernel(SampleArgs a) {
  __shared__ Partial partials[2][kScanThreads / 32];
  __shared__ alignas(16) float chunk[kRules ? kChunk : 1];
  __shared__ uint32_t bits[kRules ? kChunk / 32 : 1];
  pdl_launch();
  pdl_wait();
  const SampleParams& p = a.p;
  const int r = blockIdx.x / a.s.chunks, c = blockIdx.x - r * a.s.chunks, t = threadIdx.x;
  const SampleRow& row = p.rows[r];
  const float* logits = p.logits + int64_t{row.logits_row} * p.vocab;
  const int first = c * kChunk + 4 * t;
  float x[kScanEach];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 v = load4(logits, first + i * (4 * kScanThreads), p.vocab, a.aligned);
    x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
  }
  const bool random = p.any_random && is_random(row);
  const bool rules = kRules && has_rules(p, row);
  const int64_t place = int64_t{r} * a.s.chunks + c;
  const bool raw_groups = p.max_logprobs > 0 || (p.any_filter && !rules);
  summarize<true>(x, first, true, 1.0f, raw_groups ? a.s.raw_groups + place * kGroups : nullptr, partials[0]);
  const float scale = random ? __fdiv_rn(1.0f, row.temperature) : 1.0f;
  if (kRules && rules) {
    float4* chunk4 = reinterpret_cast<float4*>(chunk);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      chunk4[t + i * kScanThreads] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    __syncthreads();
    apply_rules(p, row, c * kChunk, min(kChunk, p.vocab - c * kChunk), chunk, bits);
    float4* ruled = reinterpret_cast<float4*>(a.s.ruled + r * a.s.ruled_stride + c * kChunk);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 v = chunk4[t + i * kScanThreads];
      // Infinity: a bias that forces tokens. A NaN stays one.
      v.x = v.x > FLT_MAX ? FLT_MAX : v.x, v.y = v.y > FLT_MAX ? FLT_MAX : v.y;
      v.z = v.z > FLT_MAX ? FLT_MAX : v.z, v.w = v.w > FLT_MAX ? FLT_MAX : v.w;
      if (random) ruled[t + i * kScanThreads] = v;
      x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
    }
    summarize<true>(x, first, random, scale, p.any_filter ? a.s.groups + place * kGroups : nullptr,
                    partials[1]);
  } else if (random) {
    summarize<false>(x, first, true, scale, nullptr, partials[1]);
  }
  __syncthreads();
  if (t >= 32) return;
  const Partial raw = combine(partials[0], 1.0f);
  ChunkStats stats{.raw_max = raw.max,
                   .raw_sum = raw.sum,
                   .max = raw.max,
                   .sum = 0.0f,
                   .arg = raw.arg,
                   .raw_nan = raw.nan,
                   .nan = raw.nan,
                   .unused = 0};
  if (rules || random) {
    const Partial ruled = combine(partials[1], scale);
    stats.sum = ruled.sum;
    if (rules) {
      stats.max = ruled.max;
      stats.arg = ruled.arg;
      stats.nan = ruled.nan;
    }
  }
  if (t == 0) a.s.stats[place] = stats;
}

}  // namespace
}  // namespace sampling

void run_sample(const SampleParams& p, Context& ctx) {
  using namespace sampling;
  if (p.num_rows == 0) return;
  TACO_CHECK(p.vocab > 0);
  SampleArgs args{.p = p, .s = {}, .list_capacity = 0, .has_segments = false, .aligned = false};
  args.aligned = p.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(p.logits) % 16 == 0;
  Layout& s = args.s;
  s.chunks = (p.vocab + kChunk - 1) / kChunk;
  s.ruled_stride = int64_t{s.chunks} * kChunk;
  const size_t places = static_cast<size_t>(p.num_rows) * static_cast<size_t>(s.chunks);
  const size_t stats = places * sizeof(ChunkStats), groups = places * kGroups * sizeof(float);
  // Always for all cases, so that the size depends on the rows and the vocabulary alone.
  auto* scratch = static_cast<uint8_t*>(
      ctx.sampling.reserve(stats + 2 * groups + places * kChunk * sizeof(float), ctx.stream));
  s.stats = reinterpret_cast<ChunkStats*>(scratch);
  s.raw_groups = reinterpret_cast<float*>(scratch + stats);
  s.groups = reinterpret_cast<float*>(scratch + stats + groups);
  s.ruled = reinterpret_cast<float*>(scratch + stats + 2 * groups);
  launch(ctx, p.any_rules ? scan_kernel<true> : scan_kernel<false>, dim3(static_cast<unsigned>(places)),
         dim3(kScanThreads), 0, args);
  launch_finish(args, ctx);
}

}  // namespace taco::cuda
