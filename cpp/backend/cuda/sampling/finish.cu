// The second pass of sampling: a block for each row.
#include <algorithm>

#include "backend/cuda/sampling/row.cuh"

namespace taco::cuda::sampling {

template <int kThreads>
__device__ int Row<kThreads>::draw_in_chunk() {
  const float* x = view();
  const float top = sh.max, factor = scale();
  const double target = sh.target;
  const int first = sh.chunk * kChunk + t * kScanEach;
  float w[kScanEach];
  double own = 0;
  if (t < kScanThreads) {
#pragma unroll
    for (int i = 0; i < kScanEach; i += 4) {
      const float4 v = load4(x, first + i, a.p.vocab, view_aligned());
      w[i] = weight_of(v.x, top, factor), w[i + 1] = weight_of(v.y, top, factor);
      w[i + 2] = weight_of(v.z, top, factor), w[i + 3] = weight_of(v.w, top, factor);
    }
#pragma unroll
    for (int i = 0; i < kScanEach; ++i) own += w[i];
  }
  double running = before(own, sh.scan);
  int found = INT32_MAX, last = -1;
  if (t < kScanThreads) {
#pragma unroll
    for (int i = 0; i < kScanEach; ++i) {
      running += w[i];
      if (w[i] > 0) {
        last = first + i;
        if (found == INT32_MAX && running > target) found = first + i;
      }
    }
  }
  return first_or_last(found, last);
}

template <int kThreads>
__device__ int Row<kThreads>::draw_from_short(const Source& s, double u, bool top_k, bool top_p) {
  const float top = sh.max, factor = scale();
  const Compared c = compare(s, top, factor);
  const float weight = c.own && (!top_k || c.greater < row.top_k) ? weight_of(c.value, top, factor) : 0.0f;
  bool kept = weight > 0 && weight >= row.min_p;
  if (top_p) {
    const double limit = row.top_p * (top_k ? sum(weight) : sh.total);
    kept &= c.above < limit || c.greater + c.earlier == 0;
  }
  const double mine = kept ? weight : 0.0;
  const double target = u * sum(mine);
  const double running = before(mine, sh.scan) + mine;
  const int i = t / share_of(s);
  const int place = first_or_last(kept && running > target ? i : INT32_MAX, kept ? i : -1);
  return place < 0 ? place : s.ids[place];
}

template <int kThreads>
__device__ int Row<kThreads>::draw_filtered(double u) {
  const SampleParams& p = a.p;
  const float top = sh.max, factor = scale();
  const float* x = view();
  const bool top_k = row.top_k >= 1 && row.top_k < p.vocab, top_p = row.top_p<1.0f, min_p = row.min_p> 0.0f;
  float bound = -INFINITY;
  const float* maxima = (rules() ? a.s.groups : a.s.raw_groups) + int64_t{r} * a.s.chunks * kGroups;
  if (top_k) {
    bound = bound_of_top(maxima, row.top_k, top, factor);
  } else {
    // What is below both bounds cannot be kept: tokens with less than (1 - top_p) / vocab of the mass weigh
    // less than 1 - top_p all together. The margin covers rounding; the exact rules follow.
    float share = -INFINITY;
    if (top_p) share = __logf(static_cast<float>((1.0 - row.top_p) * sh.total / p.vocab)) - 0.01f;
    if (min_p) share = fmaxf(share, __logf(row.min_p) - 0.01f);
    bound = top + share * row.temperature;
    bound = fminf(bound - fabsf(bound) * 1e-6f, top);
  }
  bound = fmaxf(bound, top + (kNoWeight - 0.1f) * row.temperature);  // what is below weighs nothing
  const Source s = collect(x, view_aligned(), bound, maxima);
  if (s.ids != nullptr && s.count <= kShortList) return draw_from_short(s, u, top_k, top_p);
  Keep kept{bound, INT32_MAX};
  if (top_k) kept = keep<false>(s, bound, top, factor, row.top_k);
  if (top_p) {
    double total = sh.total;
    if (top_k) {
      double own = 0;
      for_each(s.values, t, s.count, kThreads, [&](int, float v) {
        if (v >= kept.floor) own += weight_of(v, top, factor);
      });
      total = sum(own);
    }
    kept = keep<true>(s, kept.floor, top, factor, row.top_p * total);
  }
  auto kept_weight = [&](int i, float v) {
    if (!(v > kept.floor || (v == kept.floor && i <= kept.cut))) return 0.0f;
    const float w = weight_of(v, top, factor);
    return w >= row.min_p ? w : 0.0f;
  };
  // Each warp has a stretch, in order. The stretch in which the target lies is divided among the warps again,
  // until it is short enough for one of them.
  int begin = 0, end = s.count, positive = -1;
  double base = 0, target = -1;
  do {
    positive = -1;
    const int each = (end - begin + kThreads * 4 - 1) / (kThreads * 4) * 128;
    const int first = min(begin + warp * each, end), last = min(first + each, end);
    double own = 0;
    for_each(s.values, first + lane, last, 32, [&](int i, float v) {
      const float w = kept_weight(i, v);
      if (w > 0) positive = i;
      own += w;
    });
    own = warp_sum(own);
    double* buffer = sh.scan[turn];
    turn ^= 1;
    if (lane == 0) buffer[warp] = own;
    __syncthreads();
    const double mass = lane < kThreads / 32 ? buffer[lane] : 0.0;
    double up = mass;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const double other = __shfl_up_sync(0xffffffffu, up, d);
      if (lane >= d) up += other;
    }
    if (target < 0) target = u * __shfl_sync(0xffffffffu, up, 31);
    const uint32_t passed = __ballot_sync(0xffffffffu, mass > 0 && base + up > target);
    if (passed == 0) {  // rounding, u close to 1
      begin = end;
      break;
    }
    const int who = __ffs(static_cast<int>(passed)) - 1;
    base += __shfl_sync(0xffffffffu, up - mass, who);
    begin = min(begin + who * each, end);
    end = min(begin + each, end);
  } while (end - begin > 512);
  int found = INT32_MAX;
  for (int start = begin; warp == 0 && start < end; start += 128) {
    float w[4];
    double mine = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = start + lane * 4 + i;
      w[i] = at < end ? kept_weight(at, s.values[at]) : 0.0f;
      mine += w[i];
    }
    double up = mine;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const double other = __shfl_up_sync(0xffffffffu, up, d);
      if (lane >= d) up += other;
    }
    double at = base + up - mine;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      at += w[i];
      if (found == INT32_MAX && w[i] > 0 && at > target) found = start + lane * 4 + i;
    }
    if (__any_sync(0xffffffffu, found != INT32_MAX)) break;
    base += __shfl_sync(0xffffffffu, up, 31);
  }
  // None by rounding at the end of a stretch: the last in it that weighs anything, or of all.
  if (end > begin && (positive < begin || positive >= end)) positive = -1;
  const int place = first_or_last(found, positive);
  return place < 0 || s.ids == nullptr ? place : s.ids[place];
}

// The elements are spread over bins, which a comparison of two of them never contradicts; only those of the
// bin in which the target is reached are compared.
template <int kThreads>
template <bool kMass>
__device__ typename Row<kThreads>::Keep Row<kThreads>::keep(const Source& s, float low, float top,
                                                            float factor, double target) {
  const float width = fminf(top - low, -kNoWeight / factor);
  const float per_logit = kBins / fmaxf(width, 1e-30f);
  fill_bins<kMass>(s.values, s.count, low, top, per_logit, factor);
  const int bin = crossing_bin<kMass>(s.count, target);
  if (bin < 0) return {low, INT32_MAX};  // rounding: all of it
  auto inside = [&](float v) { return in(v, low) && bin_of(v, top, per_logit) == bin; };
  const int each = (s.count + kThreads - 1) / kThreads * 32;
  const int first = min(warp * each, s.count), end = min(first + each, s.count);
  int own = 0;
  for_each(s.values, first + lane, end, 32, [&](int, float v) { own += inside(v); });
  own = __reduce_add_sync(0xffffffffu, own);
  int to = before_int(lane == 0 ? own : 0) - (lane == 0 ? 0 : own);
  const int count = static_cast<int>(sum(lane == 0 ? own : 0));
  if (count > kShortList) return keep_by_search<kMass>(s, low, top, factor, target);
  float* values = reinterpret_cast<float*>(bins);
  auto* places = reinterpret_cast<int32_t*>(bins + kShortList);
  if (own > 0) {
    constexpr int kLoads = 8;
    for (int start = first; start < end; start += kLoads * 32) {
      float v[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int i = start + j * 32 + lane;
        v[j] = i < end ? s.values[i] : -INFINITY;
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const bool mine = inside(v[j]);
        const uint32_t votes = __ballot_sync(0xffffffffu, mine);
        if (mine) {
          const int at = to + __popc(votes & ((1u << lane) - 1));
          values[at] = v[j];
          places[at] = start + j * 32 + lane;
        }
        to += __popc(votes);
      }
    }
  }
  __syncthreads();
  const Source list{values, places, count};
  const Compared c = compare(list, top, factor);
  const int rank = c.greater + c.earlier;
  const bool kept = c.own && (rank == 0 || sh.above + (kMass ? c.above : c.greater) < target);
  const int last = static_cast<int>(sum(kept)) - 1;
  if (c.own && rank == last) {
    sh.floor = c.value;
    sh.cut = kMass ? places[t / share_of(list)] : INT32_MAX;
  }
  __syncthreads();
  return {sh.floor, sh.cut};
}

template <int kThreads>
template <bool kMass>
__device__ typename Row<kThreads>::Keep Row<kThreads>::keep_by_search(const Source& s, float low, float top,
                                                                      float factor, double target) {
  const uint32_t least = search<kMass>(s.values, s.count, to_key(low), to_key(top) + 1, target, top, factor);
  const float floor = from_key(least), weight = weight_of(floor, top, factor);
  if (!kMass || !(weight > 0)) return {floor, INT32_MAX};
  double own[3] = {0, 0, 0};
  for (int i = t; i < s.count; i += kThreads) {
    const float v = s.values[i];
    if (v > floor) own[0] += weight_of(v, top, factor);
    own[1] += v == floor;
  }
  sum3(own);
  const double wanted = fmax(ceil((target - own[0]) / weight), 1.0);
  return {floor, wanted < own[1] ? place_of_equal(s, floor, static_cast<int>(wanted)) : INT32_MAX};
}

template <int kThreads>
__device__ int Row<kThreads>::count_above(float value) {
  const ChunkStats* s = stats();
  const float* x = raw();
  int above = 0;
  for (int at = 4 * t; at < a.p.vocab; at += 4 * kThreads) {
    if (!(s[at / kChunk].raw_max > value)) continue;
    const float4 v = load4(x, at, a.p.vocab, a.aligned);
    above += (v.x > value) + (v.y > value) + (v.z > value) + (v.w > value);
  }
  return static_cast<int>(sum(above));
}

template <int kThreads>
__device__ void Row<kThreads>::sort_likeliest(TopToken* x, int n) {
  auto order = [&](int i, int j) {
    if (j >= n) return;
    const TopToken p = x[i], q = x[j];
    if (q.logprob > p.logprob || (q.logprob == p.logprob && q.token < p.token)) {
      x[i] = q;
      x[j] = p;
    }
  };
  for (int size = 2; size < 2 * n; size *= 2) {
    for (int half = size / 2; half > 0; half /= 2) {
      for (int pair = t; pair < (n + size) / 2; pair += kThreads) {
        const int block = pair / half * 2 * half, at = pair % half;
        order(block + at, half == size / 2 ? block + 2 * half - 1 - at : block + half + at);
      }
      __syncthreads();
    }
  }
}

template <int kThreads>
__device__ void Row<kThreads>::most_likely(int k, float log_total) {
  auto* best = reinterpret_cast<TopToken*>(bins);  // [kMaxLogprobs]
  const int vocab = a.p.vocab;
  const int wanted = min(k, vocab);
  const float* maxima = a.s.raw_groups + int64_t{r} * a.s.chunks * kGroups;
  const float bound = bound_of_top(maxima, wanted, sh.raw_max, 1.0f);
  Source s = collect(raw(), a.aligned, bound, maxima);
  if (s.count < wanted) s = {raw(), nullptr, vocab};  // there is not as much above -Infinity
  TopToken* out = a.p.top + int64_t{r} * a.p.max_logprobs;
  if (s.ids != nullptr && s.count <= kShortList) {
    const Compared c = compare(s, sh.raw_max, 1.0f);
    const int rank = c.greater + c.earlier;
    if (c.own && rank < wanted) out[rank] = {s.ids[t / share_of(s)], (c.value - sh.raw_max) - log_total};
    for (int i = wanted + t; i < k; i += kThreads) out[i] = {-1, -INFINITY};
    return;
  }
  const uint32_t least =
      search<false>(s.values, s.count, to_key(bound), to_key(sh.raw_max) + 1, wanted, 0, 0);
  const float floor = from_key(least);
  // Gathered in order: what is above the floor, and as many equal to it as there is room for.
  double above = 0;
  for (int i = t; i < s.count; i += kThreads) above += s.values[i] > floor;
  const int room = wanted - static_cast<int>(sum(above));
  int cut = place_of_equal(s, floor, room);
  if (cut < 0) cut = s.count;
  auto kept = [&](int i) { return s.values[i] > floor || (s.values[i] == floor && i <= cut); };
  const int each = ((s.count + kThreads - 1) / kThreads) | 1;
  const int first = min(t * each, s.count), last = min(first + each, s.count);
  int own = 0;
  for (int i = first; i < last; ++i) own += kept(i);
  int to = before_int(own);
  const bool many = wanted > kMaxLogprobs;
  if (many) best = out;
  for (int i = first; i < last; ++i) {
    if (kept(i) && to < wanted) best[to++] = {s.ids == nullptr ? i : s.ids[i], s.values[i]};
  }
  __syncthreads();
  if (many) sort_likeliest(out, wanted);
  for (int i = t; i < wanted; i += kThreads) {
    if (many) {
      out[i].logprob = (out[i].logprob - sh.raw_max) - log_total;
      continue;
    }
    const TopToken mine = best[i];
    int rank = 0;
    for (int j = 0; j < wanted; ++j)
      rank += best[j].logprob > mine.logprob || (best[j].logprob == mine.logprob && j < i);
    out[rank] = {mine.token, (mine.logprob - sh.raw_max) - log_total};
  }
  for (int i = wanted + t; i < k; i += kThreads) out[i] = {-1, -INFINITY};
}

template <int kThreads>
__device__ void Row<kThreads>::combine(double u) {
  const ChunkStats* s = stats();
  const int chunks = a.s.chunks;
  uint32_t best = 0, raw_best = 0;
  bool nan = false, raw_nan = false;
  int arg = INT32_MAX;
  for (int c = lane; c < chunks; c += 32) {
    const ChunkStats v = s[c];
    if (to_key(v.max) > best) {
      best = to_key(v.max);
      arg = v.arg;
    }
    raw_best = max(raw_best, to_key(v.raw_max));
    nan |= v.nan != 0;
    raw_nan |= v.raw_nan != 0;
  }
  const uint32_t top_key = __reduce_max_sync(0xffffffffu, best);
  arg = __reduce_min_sync(0xffffffffu, best == top_key ? arg : INT32_MAX);
  const float top = from_key(top_key), raw_top = from_key(__reduce_max_sync(0xffffffffu, raw_best));
  nan = __any_sync(0xffffffffu, nan);
  raw_nan = __any_sync(0xffffffffu, raw_nan);
  SampleError error = SampleError::kNone;
  if (raw_nan) {
    error = SampleError::kNaN;
  } else if (raw_top == -INFINITY) {
    error = SampleError::kAllForbidden;
  } else if (raw_top == INFINITY) {
    error = SampleError::kInfinity;
  } else if (nan) {
    error = SampleError::kNaN;
  } else if (top == -INFINITY) {
    error = SampleError::kAllForbidden;
  }
  const bool random = a.p.any_random && is_random(row);
  const float factor = random ? scale() : 1.0f;
  double total = 0, raw_total = 0;
  if (error == SampleError::kNone) {
    for (int c = lane; c < chunks; c += 32) {
      raw_total += s[c].raw_sum * static_cast<double>(weight_of(s[c].raw_max, raw_top, 1.0f));
      if (random) total += s[c].sum * static_cast<double>(weight_of(s[c].max, top, factor));
    }
  }
  raw_total = warp_sum(raw_total);
  total = warp_sum(total);
  if (random && error == SampleError::kNone) {  // the first chunk in which the running sum passes the target
    const double target = u * total;
    double base = 0, rest = 0;
    int chunk = -1;
    for (int c0 = 0; c0 < chunks && chunk < 0; c0 += 32) {
      const int c = c0 + lane;
      const double mass = c < chunks ? s[c].sum * static_cast<double>(weight_of(s[c].max, top, factor)) : 0.0;
      double up = mass;
#pragma unroll
      for (int d = 1; d < 32; d <<= 1) {
        const double other = __shfl_up_sync(0xffffffffu, up, d);
        if (lane >= d) up += other;
      }
      const double above = __shfl_up_sync(0xffffffffu, up, 1);
      const uint32_t passed = __ballot_sync(0xffffffffu, mass > 0 && base + up > target);
      if (passed != 0) {
        const int who = __ffs(static_cast<int>(passed)) - 1;
        chunk = c0 + who;
        rest = target - (base + (who == 0 ? 0.0 : __shfl_sync(0xffffffffu, above, who)));
      }
      base += __shfl_sync(0xffffffffu, up, 31);
    }
    if (chunk < 0) {  // rounding, u close to 1: the last that weighs anything
      int last = 0;
      for (int c = lane; c < chunks; c += 32)
        if (s[c].sum > 0 && weight_of(s[c].max, top, factor) > 0) last = c;
      chunk = __reduce_max_sync(0xffffffffu, last);
      rest = INFINITY;
    }
    if (lane == 0) {
      sh.chunk = chunk;
      sh.target = rest;
    }
  }
  if (lane == 0) {
    sh.max = top;
    sh.raw_max = raw_top;
    sh.total = total;
    sh.raw_total = raw_total;
    sh.arg = arg;
    sh.error = static_cast<int>(error);
    sh.found = INT32_MAX;
  }
}

template <int kThreads>
__device__ typename Row<kThreads>::Compared Row<kThreads>::compare(const Source& s, float top, float factor) {
  const int share = share_of(s), i = t / share;
  Compared c{0, 0, -INFINITY, 0.0, i < s.count && t % share == 0};
  if (i < s.count) {
    c.value = s.values[i];
    for (int j = t % share; j < s.count; j += share) {
      const float v = s.values[j];
      const bool equal = v == c.value && j < i;
      c.greater += v > c.value;
      c.earlier += equal;
      if (v > c.value || equal) c.above += weight_of(v, top, factor);
    }
  }
  for (int d = share / 2; d > 0; d /= 2) {
    c.greater += __shfl_xor_sync(0xffffffffu, c.greater, d);
    c.earlier += __shfl_xor_sync(0xffffffffu, c.earlier, d);
    c.above += __shfl_xor_sync(0xffffffffu, c.above, d);
  }
  return c;
}

namespace {

constexpr int kFullThreads = 512;

// Philox4x32-10 as in exec/philox.h: 53 bits, in [0, 1).
__device__ double philox_uniform(uint64_t seed, uint64_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t bits = (static_cast<uint64_t>(c0) << 32 | c1) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

// kFull: with filters and logprobs. Without them the block is small, and a row's result is the same.
template <int kThreads, bool kFull>
__global__ void __launch_bounds__(kThreads, 2) finish_kernel(SampleArgs a) {
  extern __shared__ float4 dynamic[];
  __shared__ Shared sh;
  pdl_launch();
  pdl_wait();
  Row<kThreads> row(a, sh, reinterpret_cast<float*>(dynamic));
  const SampleRow& s = row.row;
  const bool random = a.p.any_random && is_random(s);
  const double u = random ? philox_uniform(s.seed, s.position) : 0.0;
  if (row.warp == 0) row.combine(u);
  __syncthreads();
  SampleResult* result = a.p.results + row.r;
  if (sh.error != static_cast<int>(SampleError::kNone)) {
    if (row.t == 0) *result = {-1, 0.0f, 0, static_cast<SampleError>(sh.error)};
    return;
  }
  int token = sh.arg;
  if (random) {
    const bool filtered = kFull && a.p.any_filter &&
                          ((s.top_k >= 1 && s.top_k < a.p.vocab) || s.top_p < 1.0f || s.min_p > 0.0f);
    token = filtered ? row.draw_filtered(u) : row.draw_in_chunk();
    token = max(token, 0);
  }
  const float value = row.raw()[token];
  const float log_total = __logf(static_cast<float>(sh.raw_total));
  int rank = 0;
  if (kFull && s.logprobs >= 0) {
    rank = row.count_above(value) + 1;
    if (s.logprobs > 0) row.most_likely(min(s.logprobs, a.p.max_logprobs), log_total);
  }
  if (row.t == 0) *result = {token, (value - sh.raw_max) - log_total, rank, SampleError::kNone};
}

}  // namespace

void launch_finish(const SampleArgs& args, const Context& ctx) {
  const dim3 grid(static_cast<unsigned>(args.p.num_rows));
  if (!args.p.any_filter && args.p.max_logprobs < 0) {
    return launch(ctx, finish_kernel<kScanThreads, false>, grid, dim3(kScanThreads), 0, args);
  }
  SampleArgs full = args;
  // Two blocks on a multiprocessor where its shared memory is that large.
  const size_t most = ctx.max_smem >= 160 * 1024 ? ctx.max_smem / 2 : ctx.max_smem;
  const size_t room = (most - sizeof(Shared) - 2048) / 64 * 64, binned = 2 * kBins * sizeof(uint32_t);
  const size_t segments = (static_cast<size_t>(args.p.vocab) / kSegment + 64) / 64 * 64 * sizeof(uint16_t);
  full.has_segments = args.p.vocab <= 65536 * kSegment && segments <= room / 2;
  const size_t element = sizeof(float) + sizeof(int32_t);
  full.list_capacity = static_cast<int>((room - binned - (full.has_segments ? segments : 0)) / element);
  launch(ctx, finish_kernel<kFullThreads, true>, grid, dim3(kFullThreads), room, full);
}

}  // namespace taco::cuda::sampling
