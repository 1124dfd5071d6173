// What a block of `finish` does on its row: sums over the block, collecting what is above a bound, searching
// the value down to which to keep.
#pragma once

#include "backend/cuda/sampling/sample.cuh"

namespace taco::cuda::sampling {

constexpr int kWarps = 32;
constexpr int kSegment = 16;     // neighbours that belong to one group of `scan`
constexpr int kShortList = 512;  // elements that are compared with each other
constexpr int kBins = 2048;      // of equal width in the logit

// Shared by the steps of a row; a step that writes one of the arrays has a barrier before it.
struct Shared {
  double sums[2][kWarps][3];
  double scan[2][kWarps];
  int counts[2][kWarps][4];
  float max, raw_max;
  double total, raw_total;  // sums of weights
  int arg;
  int error;
  int found;
  int chunk;      // where an unfiltered draw ends up
  double target;  // what is left of u * total there
  double above;   // of the bins before the one that matters
  float floor;
  int cut;
};

// The elements that a filter looks at: a list in shared memory, in the order of ids, or where that is too
// small the row itself, where what is below the bound does not count.
struct Source {
  const float* values;
  const int32_t* ids;  // null: the row itself
  int count;
};

template <int kThreads>
struct Row {
  const SampleArgs& a;
  const SampleRow& row;
  Shared& sh;
  float* list;         // [capacity]
  int32_t* list_ids;   // [capacity]
  uint16_t* segments;  // [vocab / kSegment]
  uint32_t* bins;      // [2][kBins]; the short list and the most likely tokens take its place
  const int r, t, lane, warp;
  int turn = 0;

  __device__ Row(const SampleArgs& args, Shared& shared, float* dynamic)
      : a(args),
        row(args.p.rows[blockIdx.x]),
        sh(shared),
        list(dynamic),
        list_ids(reinterpret_cast<int32_t*>(dynamic + args.list_capacity)),
        segments(reinterpret_cast<uint16_t*>(dynamic + 2 * args.list_capacity + 2 * kBins)),
        bins(reinterpret_cast<uint32_t*>(dynamic + 2 * args.list_capacity)),
        r(blockIdx.x),
        t(threadIdx.x),
        lane(threadIdx.x & 31),
        warp(threadIdx.x >> 5) {}

  // fn(i, values[i]) for i from `first` on in steps, below `end`. The loads stand before what is done with
  // them, as a row in global memory needs many in flight.
  template <typename Fn>
  static __device__ __forceinline__ void for_each(const float* values, int first, int end, int step,
                                                  Fn&& fn) {
    constexpr int kLoads = 16;
    for (int start = first; start < end; start += kLoads * step) {
      float v[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) v[j] = start + j * step < end ? values[start + j * step] : -INFINITY;
#pragma unroll
      for (int j = 0; j < kLoads; ++j)
        if (start + j * step < end) fn(start + j * step, v[j]);
    }
  }

  // Three sums over the block, for all threads; one barrier.
  __device__ void sum3(double (&v)[3]) {
    double(*buffer)[3] = sh.sums[turn];
    turn ^= 1;
#pragma unroll
    for (int i = 0; i < 3; ++i) v[i] = warp_sum(v[i]);
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < 3; ++i) buffer[warp][i] = v[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 3; ++i) v[i] = warp_sum(lane < kThreads / 32 ? buffer[lane][i] : 0.0);
  }
  __device__ double sum(double v) {
    double three[3] = {v, 0, 0};
    sum3(three);
    return three[0];
  }

  // Sum of what the threads before this one have; the threads' order is that of the sums.
  template <typename T>
  __device__ T before(T v, T (*buffers)[kWarps]) {
    T* buffer = buffers[turn];
    turn ^= 1;
    T up = v;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const T other = __shfl_up_sync(0xffffffffu, up, d);
      if (lane >= d) up += other;
    }
    if (lane == 31) buffer[warp] = up;
    __syncthreads();
    const T base = warp_sum(lane < warp ? buffer[lane] : T{0});
    const T previous = __shfl_up_sync(0xffffffffu, up, 1);
    return base + (lane == 0 ? T{0} : previous);
  }

  __device__ const ChunkStats* stats() const { return a.s.stats + int64_t{r} * a.s.chunks; }
  __device__ const float* raw() const { return a.p.logits + int64_t{row.logits_row} * a.p.vocab; }
  __device__ bool rules() const { return has_rules(a.p, row); }
  __device__ const float* view() const { return rules() ? a.s.ruled + r * a.s.ruled_stride : raw(); }
  __device__ bool view_aligned() const { return rules() || a.aligned; }
  __device__ float scale() const { return __fdiv_rn(1.0f, row.temperature); }

  // The first warp: a row's figures from its chunks', and the chunk of an unfiltered draw.
  __device__ void combine(double u);

  // An unfiltered draw inside sh.chunk. The first 256 threads have sixteen neighbours each.
  __device__ int draw_in_chunk();

  // The lowest `found` of all threads, or where there is none the highest `last`.
  __device__ int first_or_last(int found, int last) {
    int(*buffer)[4] = sh.counts[turn];
    turn ^= 1;
    found = __reduce_min_sync(0xffffffffu, found);
    last = __reduce_max_sync(0xffffffffu, last);
    if (lane == 0) {
      buffer[warp][0] = found;
      buffer[warp][1] = last;
    }
    __syncthreads();
    found = __reduce_min_sync(0xffffffffu, lane < kThreads / 32 ? buffer[lane][0] : INT32_MAX);
    last = __reduce_max_sync(0xffffffffu, lane < kThreads / 32 ? buffer[lane][1] : -1);
    return found != INT32_MAX ? found : last;
  }

  // The segments of 16 neighbours, in order, that belong to a group which reaches `bound`: their number.
  __device__ int find_segments(const float* maxima, float bound) {
    const int count = (a.p.vocab + kSegment - 1) / kSegment;
    const int each = (count + kThreads - 1) / kThreads * 32;  // of a warp
    const int begin = min(warp * each, count), end = min(begin + each, count);
    auto reaches = [&](int segment) {
      const int in_chunk = segment % (kChunk / kSegment);
      return maxima[segment / (kChunk / kSegment) * kGroups + in_chunk % kGroups] >= bound;
    };
    int own = 0;
#pragma unroll 4
    for (int i = begin + lane; i < end; i += 32) own += reaches(i);
    own = __reduce_add_sync(0xffffffffu, own);
    int(*buffer)[4] = sh.counts[turn];
    turn ^= 1;
    if (lane == 0) buffer[warp][0] = own;
    __syncthreads();
    const int of_lane = lane < kThreads / 32 ? buffer[lane][0] : 0;
    int to = __reduce_add_sync(0xffffffffu, lane < warp ? of_lane : 0);
#pragma unroll 4
    for (int i = begin; i < end; i += 32) {
      const bool wanted = i + lane < end && reaches(i + lane);
      const uint32_t votes = __ballot_sync(0xffffffffu, wanted);
      if (wanted) segments[to + __popc(votes & ((1u << lane) - 1))] = static_cast<uint16_t>(i + lane);
      to += __popc(votes);
    }
    __syncthreads();
    return __reduce_add_sync(0xffffffffu, of_lane);
  }

  // All elements of `x` that are at least `bound`, in the order of ids; the row itself where they are too
  // many.
  __device__ Source collect(const float* x, bool aligned, float bound, const float* maxima) {
    const int n = a.p.vocab;
    __syncthreads();  // list and segments may be in use
    const bool listed = a.has_segments;
    const int count = listed ? find_segments(maxima, bound) : (n + kSegment - 1) / kSegment;
    int base = 0;
    for (int start = 0; start < count; start += kThreads) {
      // A warp has 32 segments: in each of four steps, four lanes for each of eight.
      const int mine = start + warp * 32;
      float4 v[4];
      int id[4];
      uint32_t packed = 0;  // counts of the four steps, a byte each: at most 128 in a warp
      if (mine < count) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int segment = mine + i * 8 + lane / 4;
          id[i] = segment < count ? (listed ? segments[segment] : segment) * kSegment + lane % 4 * 4 : n;
          v[i] = load4(x, id[i], n, aligned);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int reach = in(v[i].x, bound) + in(v[i].y, bound) + in(v[i].z, bound) + in(v[i].w, bound);
          packed |= static_cast<uint32_t>(reach) << 8 * i;
        }
      }
      uint32_t up = packed;
#pragma unroll
      for (int d = 1; d < 32; d <<= 1) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, up, d);
        if (lane >= d) up += other;
      }
      const uint32_t all = __shfl_sync(0xffffffffu, up, 31);
      int(*buffer)[4] = sh.counts[turn];
      turn ^= 1;
      if (lane == 0) buffer[warp][0] = (all & 255) + (all >> 8 & 255) + (all >> 16 & 255) + (all >> 24);
      __syncthreads();
      const int of_lane = lane < kThreads / 32 ? buffer[lane][0] : 0;
      int at = base + __reduce_add_sync(0xffffffffu, lane < warp ? of_lane : 0);
      base += __reduce_add_sync(0xffffffffu, of_lane);
      if (base > a.list_capacity) {
        __syncthreads();
        return {x, nullptr, n};
      }
      if (all != 0) {
        const uint32_t before_me = up - packed;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int to = at + (before_me >> 8 * i & 255);
          put(v[i].x, bound, id[i], to);
          put(v[i].y, bound, id[i] + 1, to);
          put(v[i].z, bound, id[i] + 2, to);
          put(v[i].w, bound, id[i] + 3, to);
          at += all >> 8 * i & 255;
        }
      }
    }
    __syncthreads();
    return {list, list_ids, base};
  }
  // -Infinity is never of interest, not even where the bound is.
  static __device__ int in(float x, float bound) { return x >= bound && x > -INFINITY; }
  __device__ void put(float x, float bound, int id, int& to) {
    if (!in(x, bound)) return;
    list[to] = x;
    list_ids[to] = id;
    ++to;
  }

  // The largest key T for which the elements of at least T are `target` or more (kMass: weigh that much); at
  // least `low`, for which that is taken for granted. No element has a key of `high` or more.
  template <bool kMass>
  __device__ uint32_t search(const float* values, int count, uint32_t low, uint32_t high, double target,
                             float top, float factor) {
    double above = 0;  // the mass from `end` on
    float end = INFINITY;
    while (high - low > 1) {
      const uint32_t quarter = max((high - low) / 4, 1u);
      uint32_t pivot[3];
      float bound[3];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        pivot[i] = min(low + quarter * (i + 1), high - 1);
        bound[i] = from_key(pivot[i]);
      }
      double sums[3] = {0, 0, 0};
      if (kMass) {
#pragma unroll 4
        for (int i = t; i < count; i += kThreads) {
          const float x = values[i];
          if (x >= bound[0] && x < end) {
            const double w = weight_of(x, top, factor);
            sums[0] += w;
            if (x >= bound[1]) sums[1] += w;
            if (x >= bound[2]) sums[2] += w;
          }
        }
        sum3(sums);
#pragma unroll
        for (int i = 0; i < 3; ++i) sums[i] += above;
      } else {
        int f[3] = {0, 0, 0};
#pragma unroll 4
        for (int i = t; i < count; i += kThreads) {
          const float x = values[i];
#pragma unroll
          for (int j = 0; j < 3; ++j) f[j] += x >= bound[j];
        }
        int(*buffer)[4] = sh.counts[turn];
        turn ^= 1;
#pragma unroll
        for (int i = 0; i < 3; ++i) f[i] = __reduce_add_sync(0xffffffffu, f[i]);
        if (lane == 0) {
#pragma unroll
          for (int i = 0; i < 3; ++i) buffer[warp][i] = f[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          sums[i] = __reduce_add_sync(0xffffffffu, lane < kThreads / 32 ? buffer[lane][i] : 0);
        }
      }
      const int passed = sums[2] >= target ? 3 : sums[1] >= target ? 2 : sums[0] >= target ? 1 : 0;
      if (passed > 0) low = passed == 3 ? pivot[2] : passed == 2 ? pivot[1] : pivot[0];
      if (passed < 3) {
        high = passed == 2 ? pivot[2] : passed == 1 ? pivot[1] : pivot[0];
        above = passed == 2 ? sums[2] : passed == 1 ? sums[1] : sums[0];
        end = from_key(high);
      }
    }
    return low;
  }

  // Spreads the elements of at least `low` over bins by their distance from `top`, `per_logit` bins to one:
  // how many there are in each, or what they weigh. Integers alone, so the order of the additions does not
  // matter: a weight is split in two parts of half_bits(count) bits, whose sums cannot overflow.
  static __device__ int half_bits(int count) { return __clz(count); }  // count < 2^(32 - bits)
  static __device__ int bin_of(float x, float top, float per_logit) {
    return static_cast<int>(fminf((top - x) * per_logit, kBins - 1.0f));
  }
  template <bool kMass>
  __device__ void fill_bins(const float* values, int count, float low, float top, float per_logit,
                            float factor) {
    __syncthreads();
    for (int i = t; i < 2 * kBins; i += kThreads) bins[i] = 0;
    __syncthreads();
    const float unit = static_cast<float>(1u << half_bits(count));
    for_each(values, t, count, kThreads, [&](int, float x) {
      if (!in(x, low)) return;
      const int bin = bin_of(x, top, per_logit);
      if (kMass) {
        const float w = weight_of(x, top, factor) * unit, high = floorf(w);
        if (high > 0) atomicAdd(&bins[kBins + bin], static_cast<uint32_t>(high));
        atomicAdd(&bins[bin], static_cast<uint32_t>(rintf((w - high) * unit)));
      } else {
        atomicAdd(&bins[bin], 1u);
      }
    });
    __syncthreads();
  }
  // The first bin with which the sum reaches `target`, -1 without one; sh.above: the sum before it.
  template <bool kMass>
  __device__ int crossing_bin(int count, double target) {
    constexpr int kEach = kBins / kThreads;
    const double unit = __hiloint2double((1023 - half_bits(count)) << 20, 0);  // 2^-half_bits
    double mass[kEach], own = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      mass[i] = bins[t * kEach + i];
      if (kMass) mass[i] = (bins[kBins + t * kEach + i] + mass[i] * unit) * unit;
      own += mass[i];
    }
    double running = before(own, sh.scan), above = 0;
    int found = INT32_MAX;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (found == INT32_MAX && mass[i] > 0 && running + mass[i] >= target) {
        found = t * kEach + i;
        above = running;
      }
      running += mass[i];
    }
    const int bin = first_or_last(found, -1);
    if (bin >= 0 && bin == found) sh.above = above;
    __syncthreads();
    return bin;
  }

  // A lower bound for the k-th largest of a row, from maxima of groups: at least k elements reach the k-th
  // largest of them. It need not be tight: the lower end of its bin.
  __device__ float bound_of_top(const float* maxima, int k, float top, float factor) {
    const int n = a.s.chunks * kGroups;
    if (k > n) return -INFINITY;
    const float per_logit = kBins * factor / -kNoWeight;
    fill_bins<false>(maxima, n, -INFINITY, top, per_logit, factor);
    const int bin = crossing_bin<false>(n, k);
    if (bin < 0 || bin == kBins - 1) return -INFINITY;
    const float bound = top - __fdiv_rn(static_cast<float>(bin + 1), per_logit);
    return bound - 1e-6f * (fabsf(top) + fabsf(bound));
  }

  // What to keep of a source, all of it at least `low`: what is above `floor`, and of what equals it the
  // places up to `cut`. By number: the k = target largest and what equals the least of them. By mass: an
  // element whose greater ones, and earlier equals, weigh less than the target.
  struct Keep {
    float floor;
    int cut;
  };
  template <bool kMass>
  __device__ Keep keep(const Source& s, float low, float top, float factor, double target);
  template <bool kMass>
  __device__ Keep keep_by_search(const Source& s, float low, float top, float factor, double target);

  // Of the elements equal to `least`, in order, the place of the j-th (from 1); -1 with fewer than j.
  __device__ int place_of_equal(const Source& s, float least, int j) {
    const int each = ((s.count + kThreads - 1) / kThreads) | 1;  // odd: no two lanes on one bank
    const int first = min(t * each, s.count), last = min(first + each, s.count);
    int own = 0;
    for (int i = first; i < last; ++i) own += s.values[i] == least;
    int running = before_int(own);
    int found = INT32_MAX;
    for (int i = first; i < last && found == INT32_MAX; ++i)
      if (s.values[i] == least && ++running == j) found = i;
    return first_or_last(found, -1);
  }
  __device__ int before_int(int v) {
    int(*buffer)[4] = sh.counts[turn];
    turn ^= 1;
    int up = v;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int other = __shfl_up_sync(0xffffffffu, up, d);
      if (lane >= d) up += other;
    }
    if (lane == 31) buffer[warp][0] = up;
    __syncthreads();
    return up - v + warp_sum(lane < warp ? buffer[lane][0] : 0);
  }

  // A short list compared with itself, element by element. Several neighbours share one element; the first of
  // them, whose result counts, has `own`. greater: how many are greater; earlier: how many equal ones stand
  // before it; above: what both weigh.
  struct Compared {
    int greater, earlier;
    float value;
    double above;
    bool own;
  };
  static __device__ int share_of(const Source& s) {
    int share = max(kThreads / kShortList, 1);
    while (share < 32 && s.count * share * 2 <= kThreads) share *= 2;
    return share;
  }
  __device__ Compared compare(const Source& s, float top, float factor);

  __device__ int draw_from_short(const Source& s, double u, bool top_k, bool top_p);

  __device__ int draw_filtered(double u);

  // Elements of the raw row above `value`.
  __device__ int count_above(float value);

  // Bitonic, in place in global memory; every comparison puts the likelier one first, so that what would
  // stand past the end of a power of two need not be there. For requests of thousands of logprobs.
  __device__ void sort_likeliest(TopToken* x, int n);

  // The k most likely of the raw row.
  __device__ void most_likely(int k, float log_total);
};

}  // namespace taco::cuda::sampling
