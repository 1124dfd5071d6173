// Ways to move KV blocks between pinned host memory and the device: speed, the host's time in the calls, time
// to the first layer, and what they cost kernels that run beside them. Llama-3-8B's shape: 32 layers, 16
// tokens of a layer are 64 KiB; the device holds [layer][block][64 KiB], the host [block][layer][64 KiB] or
// [layer][block][..].
//   cuda_transfer_bench [blocks=1024] [pinned=8]     blocks per transfer, GiB of the allocation tests (0:
//   none)
// Every way's result is verified; random block ids on both sides unless a way says otherwise.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend/cuda/check.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLayers = 32;
constexpr size_t kBytes = 64 << 10;  // of one block of one layer
constexpr size_t kWords = kBytes / 16;
constexpr int kWeights = 16;  // kernels that read 64 MiB each: the beat of a decoding step
constexpr size_t kWeightBytes = 64 << 20;

double ms_since(Clock::time_point t) {
  return std::chrono::duration<double, std::milli>(Clock::now() - t).count();
}

enum class Direction { kLoad, kStore };

struct Pair {
  int host, device;
};

// Where the blocks are on both sides.
struct Layout {
  char *host, *device;
  int64_t host_blocks, device_blocks;
  bool layer_major;  // the host's
  __host__ __device__ size_t host_at(int block, int layer) const {
    return (layer_major ? layer * host_blocks + block : int64_t{block} * kLayers + layer) * kBytes;
  }
  __host__ __device__ size_t device_at(int block, int layer) const {
    return (layer * device_blocks + block) * kBytes;
  }
};

__host__ __device__ uint32_t pattern(uint32_t block, uint32_t layer, uint32_t word, uint32_t salt) {
  uint32_t x = (block * kLayers + layer) * 4096 + word + salt * 0x9e3779b9u;
  x ^= x >> 15, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u;
  return x ^ x >> 16;
}

// Fills one side, or counts what is wrong on it (`bad` not null): the block of pair i as its source's number.
__global__ void fill_kernel(Layout at, const Pair* pairs, bool host, bool by_host_id, uint32_t salt,
                            bool poison, unsigned long long* bad) {
  const Pair p = pairs[blockIdx.x];
  const int layer = blockIdx.y;
  auto* data = reinterpret_cast<uint4*>(host ? at.host + at.host_at(p.host, layer)
                                             : at.device + at.device_at(p.device, layer));
  const uint32_t id = by_host_id ? p.host : p.device;
  for (uint32_t w = threadIdx.x; w < kWords; w += blockDim.x) {
    const uint32_t v = poison ? 0xdeadbeef : pattern(id, layer, w, salt);
    if (bad == nullptr) {
      data[w] = make_uint4(v, v + 1, v + 2, v + 3);
    } else {
      const uint4 x = data[w];
      if (x.x != v || x.y != v + 1 || x.z != v + 2 || x.w != v + 3) atomicAdd(bad, 1ull);
    }
  }
}

// Reads 64 MiB, as a product of few rows reads its weight.
__global__ void __launch_bounds__(512) read_kernel(const uint4* data, size_t count, uint32_t* out) {
  uint32_t sum = 0;
  const size_t step = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = __ldcs(data + i + k * step);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  for (; i < count; i += step) sum += data[i].x;
  if (sum == 0x12345678) *out = sum;
}

// Blocks of `layers` layers by ordinary loads and stores, 8 x 16 bytes of each thread in flight.
__global__ void __launch_bounds__(512)
    copy_kernel(Layout at, const Pair* pairs, int count, int first_layer, int layers, bool load) {
  constexpr int kUnroll = 8;
  for (int item = blockIdx.x; item < count * layers; item += gridDim.x) {
    const Pair p = pairs[item % count];
    const int layer = first_layer + item / count;
    auto* host = reinterpret_cast<uint4*>(at.host + at.host_at(p.host, layer));
    auto* device = reinterpret_cast<uint4*>(at.device + at.device_at(p.device, layer));
    const uint4* from = load ? host : device;
    uint4* to = load ? device : host;
    for (size_t w = threadIdx.x; w < kWords; w += kUnroll * blockDim.x) {
      uint4 v[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) v[k] = __ldcs(from + w + k * blockDim.x);
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) __stcs(to + w + k * blockDim.x, v[k]);
    }
  }
}

// The same by bulk copies through shared memory: one thread, kStages pieces under way.
constexpr int kStages = 6;
constexpr uint32_t kPiece = 32 << 10;
__global__ void __launch_bounds__(32)
    bulk_kernel(Layout at, const Pair* pairs, int count, int first_layer, int layers, bool load) {
  extern __shared__ __align__(128) unsigned char stage_data[];
  __shared__ __align__(8) uint64_t full[kStages];
  if (threadIdx.x != 0) return;
  uint32_t base, bars;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(base) : "l"(stage_data));
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(bars) : "l"(full));
  for (int s = 0; s < kStages; ++s)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bars + 8 * s));
  asm volatile("fence.proxy.async.shared::cta;");
  constexpr int kPieces = static_cast<int>(kBytes / kPiece);
  const int items = count * layers * kPieces;
  const int mine =
      (items - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  auto address = [&](int n, bool source) {
    const int item = static_cast<int>(blockIdx.x) + n * static_cast<int>(gridDim.x);
    const Pair p = pairs[item / kPieces % count];
    const int layer = first_layer + item / kPieces / count;
    const size_t offset = static_cast<size_t>(item % kPieces) * kPiece;
    return source == load ? at.host + at.host_at(p.host, layer) + offset
                          : at.device + at.device_at(p.device, layer) + offset;
  };
  auto fetch = [&](int n) {
    const uint32_t s = n % kStages;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bars + 8 * s), "r"(kPiece));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            base + s * kPiece),
        "l"(address(n, true)), "r"(kPiece), "r"(bars + 8 * s)
        : "memory");
  };
  // The stage of piece n is free for piece n + kStages once n was read out; one write is left under way.
  for (int n = 0; n < min(mine, kStages - 1); ++n) fetch(n);
  for (int n = 0; n < mine; ++n) {
    const uint32_t s = n % kStages;
    asm volatile(
        "{ .reg .pred p; L: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra L; }" ::"r"(bars +
                                                                                                      8 * s),
        "r"(n / kStages & 1)
        : "memory");
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(address(n, false)),
                 "r"(base + s * kPiece), "r"(kPiece)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;");
    asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
    if (n + kStages - 1 < mine) fetch(n + kStages - 1);
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Device-side half of the staged way: blocks [n][layer][64 KiB] to or from their places.
__global__ void __launch_bounds__(512)
    scatter_kernel(Layout at, char* staging, const Pair* pairs, bool load) {
  const Pair p = pairs[blockIdx.x / kLayers];
  auto* place =
      reinterpret_cast<uint4*>(at.device + at.device_at(p.device, static_cast<int>(blockIdx.x % kLayers)));
  auto* staged = reinterpret_cast<uint4*>(staging + blockIdx.x * kBytes);
  for (size_t w = threadIdx.x; w < kWords; w += blockDim.x) {
    if (load)
      place[w] = staged[w];
    else
      staged[w] = place[w];
  }
}

struct Bench {
  Layout at{};
  std::vector<Pair> random_pairs, run_pairs;  // run_pairs: 16 ids in a row on both sides
  Pair *d_random = nullptr, *d_runs = nullptr;
  char* staging = nullptr;  // device, 2 x kStagedBlocks
  cudaStream_t compute = nullptr, streams[2] = {};
  cudaEvent_t events[8] = {};
  uint4* weights = nullptr;
  uint32_t* sink = nullptr;
  unsigned long long* bad = nullptr;  // pinned
  int sms = 0;
  double alone_ms = 0;
};
constexpr int kStagedBlocks = 8;

// Issues one transfer on `stream`; records `first` once what it must bring for the first layer is there.
using Issue = std::function<void(Bench&, Direction, cudaStream_t, cudaEvent_t first)>;
struct Way {
  std::string name;
  bool layer_major, runs;
  Issue issue;
};

void one_copy(const Bench& b, Direction d, Pair p, int layer, int count, cudaStream_t stream) {
  char *host = b.at.host + b.at.host_at(p.host, layer),
       *device = b.at.device + b.at.device_at(p.device, layer);
  if (d == Direction::kLoad)
    TACO_CUDA_CHECK(cudaMemcpyAsync(device, host, kBytes * count, cudaMemcpyHostToDevice, stream));
  else
    TACO_CUDA_CHECK(cudaMemcpyAsync(host, device, kBytes * count, cudaMemcpyDeviceToHost, stream));
}

Issue copies(int run) {  // run: blocks that one copy takes
  return [run](Bench& b, Direction d, cudaStream_t s, cudaEvent_t first) {
    const std::vector<Pair>& pairs = run > 1 ? b.run_pairs : b.random_pairs;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (size_t i = 0; i < pairs.size(); i += run) one_copy(b, d, pairs[i], layer, run, s);
      if (layer == 0) TACO_CUDA_CHECK(cudaEventRecord(first, s));
    }
  };
}

Issue pitched(int layers) {  // rows of one copy; the host's layout is [block][layer]
  return [layers](Bench& b, Direction d, cudaStream_t s, cudaEvent_t first) {
    const size_t pitch = b.at.device_blocks * kBytes;
    for (int layer = 0; layer < kLayers; layer += layers) {
      for (const Pair& p : b.random_pairs) {
        char *host = b.at.host + b.at.host_at(p.host, layer),
             *device = b.at.device + b.at.device_at(p.device, layer);
        if (d == Direction::kLoad)
          TACO_CUDA_CHECK(
              cudaMemcpy2DAsync(device, pitch, host, kBytes, kBytes, layers, cudaMemcpyHostToDevice, s));
        else
          TACO_CUDA_CHECK(
              cudaMemcpy2DAsync(host, kBytes, device, pitch, kBytes, layers, cudaMemcpyDeviceToHost, s));
      }
      if (layer == 0) TACO_CUDA_CHECK(cudaEventRecord(first, s));
    }
  };
}

Issue batch(int layers, bool overlap, int most = 1 << 30) {  // layers, and copies at most, of one call
  return [=](Bench& b, Direction d, cudaStream_t s, cudaEvent_t first) {
    std::vector<void*> to;
    std::vector<const void*> from;
    std::vector<size_t> sizes;
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    attributes.flags = overlap ? cudaMemcpyFlagPreferOverlapWithCompute : cudaMemcpyFlagDefault;
    size_t start = 0;
    auto flush = [&] {
      if (to.empty()) return;
      TACO_CUDA_CHECK(
          cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), to.size(), &attributes, &start, 1, s));
      to.clear(), from.clear(), sizes.clear();
    };
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const Pair& p : b.random_pairs) {
        void *host = b.at.host + b.at.host_at(p.host, layer),
             *device = b.at.device + b.at.device_at(p.device, layer);
        to.push_back(d == Direction::kLoad ? device : host);
        from.push_back(d == Direction::kLoad ? host : device);
        sizes.push_back(kBytes);
        if (static_cast<int>(to.size()) >= most) flush();
      }
      if ((layer + 1) % layers == 0) flush();
      if (layer + 1 == layers) TACO_CUDA_CHECK(cudaEventRecord(first, s));
    }
    flush();
  };
}

Issue kernel(int ctas) {
  return [ctas](Bench& b, Direction d, cudaStream_t s, cudaEvent_t first) {
    for (int layer = 0; layer < kLayers; ++layer) {
      copy_kernel<<<ctas, 512, 0, s>>>(b.at, b.d_random, static_cast<int>(b.random_pairs.size()), layer, 1,
                                       d == Direction::kLoad);
      if (layer == 0) TACO_CUDA_CHECK(cudaEventRecord(first, s));
    }
  };
}

Issue bulk(int ctas) {
  return [ctas](Bench& b, Direction d, cudaStream_t s, cudaEvent_t first) {
    TACO_CUDA_CHECK(
        cudaFuncSetAttribute(bulk_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kStages * kPiece));
    for (int layer = 0; layer < kLayers; ++layer) {
      bulk_kernel<<<ctas, 32, kStages * kPiece, s>>>(
          b.at, b.d_random, static_cast<int>(b.random_pairs.size()), layer, 1, d == Direction::kLoad);
      if (layer == 0) TACO_CUDA_CHECK(cudaEventRecord(first, s));
    }
  };
}

// Whole blocks [layer][64 KiB] by plain copies to a buffer on the device, and from there by a kernel; copy
// and kernel take turns (the kernel's part is 1/50 of the time).
void staged(Bench& b, Direction d, cudaStream_t s, cudaEvent_t first) {
  const int count = static_cast<int>(b.random_pairs.size());
  const size_t whole = kBytes * kLayers;
  for (int begin = 0; begin < count; begin += kStagedBlocks) {
    const int n = std::min(kStagedBlocks, count - begin);
    char* buffer = b.staging + (s == b.streams[1] ? kStagedBlocks * whole : 0);
    auto move = [&] {
      for (int i = 0; i < n; ++i) {
        char* host = b.at.host + b.at.host_at(b.random_pairs[begin + i].host, 0);
        if (d == Direction::kLoad)
          TACO_CUDA_CHECK(cudaMemcpyAsync(buffer + i * whole, host, whole, cudaMemcpyHostToDevice, s));
        else
          TACO_CUDA_CHECK(cudaMemcpyAsync(host, buffer + i * whole, whole, cudaMemcpyDeviceToHost, s));
      }
    };
    if (d == Direction::kLoad) move();
    scatter_kernel<<<n * kLayers, 512, 0, s>>>(b.at, buffer, b.d_random + begin, d == Direction::kLoad);
    if (d == Direction::kStore) move();
  }
  TACO_CUDA_CHECK(cudaEventRecord(first, s));
}

float elapsed(cudaEvent_t from, cudaEvent_t to) {
  float ms = 0;
  TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, from, to));
  return ms;
}

// Kernels that read weights, for about 20 ms; returns what they took.
float run_weights(Bench& b) {
  constexpr int kRounds = 48;
  TACO_CUDA_CHECK(cudaEventRecord(b.events[0], b.compute));
  for (int i = 0; i < kRounds * kWeights; ++i) {
    read_kernel<<<2 * b.sms, 512, 0, b.compute>>>(b.weights + i % kWeights * (kWeightBytes / 16),
                                                  kWeightBytes / 16, b.sink);
  }
  TACO_CUDA_CHECK(cudaEventRecord(b.events[1], b.compute));
  TACO_CUDA_CHECK(cudaEventSynchronize(b.events[1]));
  return elapsed(b.events[0], b.events[1]);
}

void fill(Bench& b, const Way& way, bool host, bool by_host_id, uint32_t salt, bool poison, bool check) {
  const Pair* pairs = way.runs ? b.d_runs : b.d_random;
  const dim3 grid(static_cast<unsigned>(b.random_pairs.size()), kLayers);
  fill_kernel<<<grid, 256, 0, b.compute>>>(b.at, pairs, host, by_host_id, salt, poison,
                                           check ? b.bad : nullptr);
  TACO_CUDA_CHECK(cudaStreamSynchronize(b.compute));
}

void measure(Bench& b, const Way& way, Direction d, uint32_t salt) {
  b.at.layer_major = way.layer_major;
  const double gb = static_cast<double>(b.random_pairs.size()) * kLayers * kBytes * 1e-9;
  const bool load = d == Direction::kLoad;
  cudaStream_t s = b.streams[load ? 0 : 1];
  fill(b, way, load, load, salt, false, false);
  fill(b, way, !load, load, salt, true, false);
  double best = 1e30, calls = 0, first = 0;
  for (int run = 0; run < 3; ++run) {
    const auto begin = Clock::now();
    TACO_CUDA_CHECK(cudaEventRecord(b.events[2], s));
    way.issue(b, d, s, b.events[3]);
    const double issued = ms_since(begin);
    TACO_CUDA_CHECK(cudaEventRecord(b.events[4], s));
    TACO_CUDA_CHECK(cudaEventSynchronize(b.events[4]));
    const double ms = elapsed(b.events[2], b.events[4]);
    if (run > 0 && ms < best) best = ms, calls = issued, first = elapsed(b.events[2], b.events[3]);
    if (run == 0) {
      *b.bad = 0;
      fill(b, way, !load, load, salt, false, true);
    }
  }
  const unsigned long long wrong = *b.bad;
  // Beside kernels: transfers again and again until those are through.
  double beside = 0, slower = 0;
  std::atomic<bool> stop{false}, under_way{false};
  std::thread copier([&] {
    int done = 0;
    const auto begin = Clock::now();
    while (!stop) {
      way.issue(b, d, s, b.events[3]);
      under_way = true;
      TACO_CUDA_CHECK(cudaStreamSynchronize(s));
      ++done;
    }
    beside = gb * done / ms_since(begin) * 1e3;
  });
  while (!under_way) std::this_thread::yield();
  slower = run_weights(b) / b.alone_ms - 1;
  stop = true;
  copier.join();
  std::printf(
      "%-5s %-22s %-6s %6.1f GB/s  calls %6.2f ms  first layer %6.2f ms  beside: %5.1f GB/s, kernels %+5.1f "
      "%%%s\n",
      load ? "load" : "store", way.name.c_str(), way.layer_major ? "[l][b]" : "[b][l]", gb / best * 1e3,
      calls, first, beside, slower * 100, wrong == 0 ? "" : "  WRONG");
  std::fflush(stdout);
}

void both(Bench& b, const Way& way) {
  b.at.layer_major = way.layer_major;
  const double gb = static_cast<double>(b.random_pairs.size()) * kLayers * kBytes * 1e-9;
  const auto begin = Clock::now();
  std::thread store([&] {
    way.issue(b, Direction::kStore, b.streams[1], b.events[5]);
    TACO_CUDA_CHECK(cudaStreamSynchronize(b.streams[1]));
  });
  way.issue(b, Direction::kLoad, b.streams[0], b.events[3]);
  TACO_CUDA_CHECK(cudaStreamSynchronize(b.streams[0]));
  store.join();
  std::printf("both  %-22s %-6s %6.1f GB/s together\n", way.name.c_str(),
              way.layer_major ? "[l][b]" : "[b][l]", 2 * gb / ms_since(begin) * 1e3);
  std::fflush(stdout);
}

// A step's copies: 16 KiB to the device, a kernel, 4 KiB back. Microseconds until that is through, sorted.
std::vector<double> round_trips(Bench& b, int count, char* pinned, char* device) {
  std::vector<double> us;
  const auto first = Clock::now();
  for (int i = 0; i < count && ms_since(first) < 900; ++i) {
    const auto begin = Clock::now();
    TACO_CUDA_CHECK(cudaMemcpyAsync(device, pinned, 16 << 10, cudaMemcpyHostToDevice, b.compute));
    read_kernel<<<1, 512, 0, b.compute>>>(b.weights, 512, b.sink);
    TACO_CUDA_CHECK(cudaMemcpyAsync(pinned + (16 << 10), device, 4 << 10, cudaMemcpyDeviceToHost, b.compute));
    TACO_CUDA_CHECK(cudaStreamSynchronize(b.compute));
    us.push_back(ms_since(begin) * 1e3);
    std::this_thread::sleep_for(std::chrono::microseconds(300));
  }
  std::sort(us.begin(), us.end());
  return us;
}

// `pieces` of 64 KiB in a batch (or that many blocks by pitched copies), `depth` batches in the queue.
void latency(Bench& b, Direction d, int pieces, int depth, bool pitched, char* pinned, char* device) {
  std::atomic<bool> stop{false};
  double speed = 0;
  cudaStream_t s = b.streams[d == Direction::kLoad ? 0 : 1];
  std::thread copier([&] {
    if (pieces == 0) return;
    std::vector<cudaEvent_t> events(depth);
    for (cudaEvent_t& e : events) TACO_CUDA_CHECK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t start = 0;
    std::vector<void*> to(pieces);
    std::vector<const void*> from(pieces);
    std::vector<size_t> sizes(pieces, kBytes);
    const auto begin = Clock::now();
    int64_t n = 0;
    for (; !stop; ++n) {
      if (n >= depth) {
        while (cudaEventQuery(events[n % depth]) == cudaErrorNotReady)
          std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
      for (int i = 0; i < pieces; ++i) {
        const Pair& p = b.random_pairs[(n * pieces + i) % b.random_pairs.size()];
        const int layer = static_cast<int>(n % kLayers);
        void *host = b.at.host + b.at.host_at(p.host, layer),
             *place = b.at.device + b.at.device_at(p.device, layer);
        to[i] = d == Direction::kLoad ? place : host;
        from[i] = d == Direction::kLoad ? host : place;
      }
      if (pitched) {
        for (int i = 0; i < pieces; ++i) {
          const Pair& p = b.random_pairs[(n * pieces + i) % b.random_pairs.size()];
          TACO_CUDA_CHECK(cudaMemcpy2DAsync(
              b.at.host + b.at.host_at(p.host, 0), kBytes, b.at.device + b.at.device_at(p.device, 0),
              b.at.device_blocks * kBytes, kBytes, kLayers, cudaMemcpyDeviceToHost, s));
        }
      } else {
        TACO_CUDA_CHECK(
            cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), to.size(), &attributes, &start, 1, s));
      }
      TACO_CUDA_CHECK(cudaEventRecord(events[n % depth], s));
    }
    TACO_CUDA_CHECK(cudaStreamSynchronize(s));
    speed = static_cast<double>(n) * pieces * (pitched ? kLayers : 1) * kBytes / ms_since(begin) * 1e-6;
    for (cudaEvent_t e : events) cudaEventDestroy(e);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::vector<double> us = round_trips(b, 400, pinned, device);
  stop = true;
  copier.join();
  std::printf(
      "%-5s %4d %s x %2d in the queue (%6.1f MiB): %5.1f GB/s; a step's copies: median %6.1f us, "
      "90 %% %6.1f, 99 %% %6.1f\n",
      pieces == 0             ? "alone"
      : d == Direction::kLoad ? "load"
                              : "store",
      pieces, pitched ? "blocks" : "pieces", depth,
      static_cast<double>(pieces) * (pitched ? kLayers : 1) * depth / 16, speed, us[us.size() / 2],
      us[us.size() * 9 / 10], us[us.size() * 99 / 100]);
  std::fflush(stdout);
}

template <typename Fn>
void in_threads(int threads, size_t bytes, Fn&& fn) {
  std::vector<std::thread> all;
  const size_t part = bytes / threads;
  for (int t = 0; t < threads; ++t) all.emplace_back([&, t] { fn(t * part, part); });
  for (std::thread& t : all) t.join();
}

void touch_pages(char* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 4096) const_cast<volatile char&>(data[i]) = 0;
}

// mmap, touch in parallel, register; the pages of a fresh machine may cost more than those that were used
// before.
void pin(size_t bytes, bool huge, int threads, size_t chunk) {
  const auto begin = Clock::now();
  char* data = static_cast<char*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (data == MAP_FAILED) return;
  if (huge) madvise(data, bytes, MADV_HUGEPAGE);
  in_threads(threads, bytes, [&](size_t at, size_t size) { touch_pages(data + at, size); });
  const double touched = ms_since(begin);
  std::atomic<int> failed{0};
  if (chunk == 0) {
    failed = cudaHostRegister(data, bytes, cudaHostRegisterDefault);
  } else {
    in_threads(4, bytes, [&](size_t at, size_t size) {
      for (size_t i = 0; i < size; i += chunk)
        if (cudaHostRegister(data + at + i, std::min(chunk, size - i), cudaHostRegisterDefault) !=
            cudaSuccess)
          ++failed;
    });
  }
  std::printf("pin %zu GiB: %s pages, %d threads touch %.0f ms, register %s %.0f ms, together %.2f GB/s%s\n",
              bytes >> 30, huge ? "huge" : "plain", threads, touched,
              chunk == 0 ? "whole" : "in 256 MiB by 4 threads", ms_since(begin) - touched,
              static_cast<double>(bytes) / ms_since(begin) * 1e-6, failed == 0 ? "" : "  FAILED");
  std::fflush(stdout);
  cudaGetLastError();
  if (chunk == 0) {
    cudaHostUnregister(data);
  } else {
    for (size_t i = 0; i < bytes; i += chunk) cudaHostUnregister(data + i);
  }
  munmap(data, bytes);
  cudaGetLastError();
}

}  // namespace

int main(int argc, char** argv) {
  int blocks = 1024, pinned = 8;
  bool only_latency = false;
  for (int i = 1; i < argc; ++i) {
    int n;
    if (std::sscanf(argv[i], "blocks=%d", &n) == 1) blocks = n;
    if (std::sscanf(argv[i], "pinned=%d", &n) == 1) pinned = n;
    if (std::strcmp(argv[i], "latency") == 0) only_latency = true;
  }
  const auto start = Clock::now();
  Bench b;
  cudaDeviceProp properties;
  TACO_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  b.sms = properties.multiProcessorCount;
  b.at.host_blocks = b.at.device_blocks = 2 * blocks;
  const size_t bytes = 2 * size_t(blocks) * kLayers * kBytes;
  TACO_CUDA_CHECK(cudaMalloc(&b.at.device, bytes));
  const auto begin = Clock::now();
  TACO_CUDA_CHECK(cudaHostAlloc(&b.at.host, bytes, cudaHostAllocDefault));
  std::printf("%s; cudaHostAlloc %.1f GiB: %.0f ms, %.2f GB/s; memPitch %zu\n", properties.name,
              static_cast<double>(bytes) / (1 << 30), ms_since(begin),
              static_cast<double>(bytes) / ms_since(begin) * 1e-6, properties.memPitch);
  TACO_CUDA_CHECK(cudaMalloc(&b.weights, kWeights * kWeightBytes));
  TACO_CUDA_CHECK(cudaMemset(b.weights, 1, kWeights * kWeightBytes));
  TACO_CUDA_CHECK(cudaMalloc(&b.staging, 2 * kStagedBlocks * kLayers * kBytes));
  TACO_CUDA_CHECK(cudaMalloc(&b.sink, 4));
  TACO_CUDA_CHECK(cudaHostAlloc(&b.bad, sizeof(*b.bad), cudaHostAllocDefault));
  int least = 0, greatest = 0;
  TACO_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  TACO_CUDA_CHECK(cudaStreamCreateWithPriority(&b.compute, cudaStreamNonBlocking, greatest));
  for (cudaStream_t& s : b.streams)
    TACO_CUDA_CHECK(cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, least));
  for (cudaEvent_t& e : b.events) TACO_CUDA_CHECK(cudaEventCreate(&e));

  std::mt19937 random(7);
  std::vector<int> host(2 * blocks), device(2 * blocks);
  std::iota(host.begin(), host.end(), 0), std::iota(device.begin(), device.end(), 0);
  std::shuffle(host.begin(), host.end(), random), std::shuffle(device.begin(), device.end(), random);
  for (int i = 0; i < blocks; ++i) b.random_pairs.push_back({host[i], device[i]});
  std::vector<int> runs(2 * blocks / 16), runs2(runs.size());
  std::iota(runs.begin(), runs.end(), 0), std::iota(runs2.begin(), runs2.end(), 0);
  std::shuffle(runs.begin(), runs.end(), random), std::shuffle(runs2.begin(), runs2.end(), random);
  for (int i = 0; i < blocks; ++i)
    b.run_pairs.push_back({runs[i / 16] * 16 + i % 16, runs2[i / 16] * 16 + i % 16});
  for (auto [from, to] : {std::pair{&b.random_pairs, &b.d_random}, std::pair{&b.run_pairs, &b.d_runs}}) {
    TACO_CUDA_CHECK(cudaMalloc(to, from->size() * sizeof(Pair)));
    TACO_CUDA_CHECK(cudaMemcpy(*to, from->data(), from->size() * sizeof(Pair), cudaMemcpyHostToDevice));
  }
  if (only_latency) {
    char *small = nullptr, *device_small = nullptr;
    TACO_CUDA_CHECK(cudaHostAlloc(&small, 32 << 10, cudaHostAllocDefault));
    TACO_CUDA_CHECK(cudaMalloc(&device_small, 32 << 10));
    round_trips(b, 50, small, device_small);
    latency(b, Direction::kLoad, 0, 1, false, small, device_small);
    for (auto [pieces, depth] : {std::pair{64, 4}, {128, 8}})
      latency(b, Direction::kLoad, pieces, depth, false, small, device_small);
    for (auto [pieces, depth] : {std::pair{1, 1}, {1, 2}, {1, 3}, {1, 4}, {2, 1}, {2, 2}, {4, 1}, {4, 2}})
      latency(b, Direction::kStore, pieces, depth, true, small, device_small);
    for (auto [pieces, depth] : {std::pair{16, 2}, {16, 3}, {32, 1}, {32, 2}, {32, 3}, {64, 1}})
      latency(b, Direction::kStore, pieces, depth, false, small, device_small);
    return 0;
  }
  run_weights(b);
  std::vector<float> alone;
  for (int i = 0; i < 5; ++i) alone.push_back(run_weights(b));
  std::sort(alone.begin(), alone.end());
  b.alone_ms = alone[2];
  std::printf("weight-reading kernels alone: %.2f ms (%.2f .. %.2f)\n", b.alone_ms, alone[0], alone[4]);

  const std::vector<Way> ways = {
      {"memcpy, each", false, false, copies(1)},
      {"memcpy, each", true, false, copies(1)},
      {"memcpy, runs of 16", true, true, copies(16)},
      {"2d, block", false, false, pitched(kLayers)},
      {"2d, 8 layers", false, false, pitched(8)},
      {"2d, 4 layers", false, false, pitched(4)},
      {"batch, layer", false, false, batch(1, false)},
      {"batch, layer", true, false, batch(1, false)},
      {"batch, layer, overlap", false, false, batch(1, true)},
      {"batch, 128", false, false, batch(1, false, 128)},
      {"batch, all", false, false, batch(kLayers, false)},
      {"staged, 8 blocks", false, false, staged},
      {"kernel, 4 CTAs", false, false, kernel(4)},
      {"kernel, 8 CTAs", false, false, kernel(8)},
      {"kernel, 8 CTAs", true, false, kernel(8)},
      {"kernel, 16 CTAs", false, false, kernel(16)},
      {"kernel, 32 CTAs", false, false, kernel(32)},
      {"bulk, 2 CTAs", false, false, bulk(2)},
      {"bulk, 4 CTAs", false, false, bulk(4)},
      {"bulk, 8 CTAs", false, false, bulk(8)},
  };
  uint32_t salt = 0;
  for (Direction d : {Direction::kLoad, Direction::kStore})
    for (const Way& way : ways) measure(b, way, d, ++salt);
  for (size_t i : {0, 3, 6, 11, 13, 18}) both(b, ways[i]);
  std::printf("copies: %.1f s\n", ms_since(start) * 1e-3);
  if (pinned > 0) {
    const size_t size = size_t(pinned) << 30;
    auto in_time = [&] { return ms_since(start) < 30e3; };
    pin(size, true, 16, 256 << 20);
    if (in_time()) pin(size, true, 16, 0);
    if (in_time()) {
      const auto again = Clock::now();
      void* data = nullptr;
      TACO_CUDA_CHECK(cudaHostAlloc(&data, size, cudaHostAllocDefault));
      std::printf("pin %d GiB: cudaHostAlloc, memory used before: %.2f GB/s\n", pinned,
                  static_cast<double>(size) / ms_since(again) * 1e-6);
      cudaFreeHost(data);
    }
    if (in_time()) pin(size, false, 16, 0);
    if (in_time()) pin(size, true, 1, 0);
  }
  std::printf("all: %.1f s\n", ms_since(start) * 1e-3);
}
