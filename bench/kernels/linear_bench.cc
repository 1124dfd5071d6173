// Speed of the CPU matrix products against what the machine can read and multiply.
//
//   linear_bench [threads] [seconds per case] [format,...] [rows,...] [shape name,...] [AMX from so many rows
//   on]
//
// Every case cycles through copies of its weight that together exceed the caches (256 MiB and more), as the
// layers of a model do. GB/s counts the weight's packed bytes; "read" is that against the measured roof.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/isa/dispatch.h"
#include "backend/cpu/linear.h"
#include "base/clock.h"

namespace taco {
namespace {

struct Shape {
  const char* name;
  int64_t n, k;
  bool gated;
};

constexpr Shape kShapes[] = {
    {"qkv", 960, 576, false},   {"o", 576, 576, false},      {"gate_up", 3072, 576, true},
    {"down", 576, 1536, false}, {"head", 49152, 576, false}, {"4096", 4096, 4096, false},
};

struct Format {
  const char* name;
  WeightFormat stored;
  DType compute;
};

constexpr Format kFormats[] = {
    {"f32", WeightFormat::kF32, DType::kF32},    {"f16", WeightFormat::kF16, DType::kF16},
    {"bf16", WeightFormat::kBF16, DType::kBF16}, {"q8", WeightFormat::kQ8_0, DType::kBF16},
    {"q4", WeightFormat::kQ4_1, DType::kBF16},
};

bool listed(const std::string& list, const std::string& name) {
  return list.empty() || ("," + list + ",").find("," + name + ",") != std::string::npos;
}

// Reads 256 MiB in pieces on all threads: the most that any kernel could.
double read_bandwidth(ThreadPool& pool) {
  const int64_t bytes = int64_t{256} << 20, piece = bytes / 16;
  cpu::PageBuffer buffer(bytes, true);
  std::memset(buffer.data(), 1, bytes);
  static std::atomic<uint64_t> sinks[64];
  double best = 0;
  for (int round = 0; round < 64; ++round) {
    double start = monotonic_seconds();
    pool.run([&](int thread, int threads) {
      const uint64_t* p = buffer.as<uint64_t>() + (round % 16) * piece / 8 + piece / 8 / threads * thread;
      uint64_t s[8] = {};
      for (int64_t i = 0; i < piece / 8 / threads; i += 8) {
        __builtin_prefetch(p + i + 512, 0, 2);
        for (int j = 0; j < 8; ++j) s[j] += p[i + j];
      }
      sinks[thread % 64] = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
    });
    best = std::max(best, static_cast<double>(piece) / (monotonic_seconds() - start));
  }
  return best;
}

double barrier_cost(ThreadPool& pool) {
  double best = 1;
  for (int round = 0; round < 50; ++round) {
    double start = monotonic_seconds();
    for (int i = 0; i < 500; ++i) pool.run([](int, int) {});
    best = std::min(best, (monotonic_seconds() - start) / 500);
  }
  return best;
}

void bench(const Shape& shape, const Format& format, const std::vector<int64_t>& row_counts, double seconds,
           double roof, ThreadPool& pool) {
  std::mt19937 rng(1);
  HostMatrix m;
  m.format = format.stored;
  m.rows = shape.n;
  m.cols = shape.k;
  std::vector<uint8_t> data(m.bytes());
  // Any bytes will do, but infinities and subnormal numbers would not be typical.
  for (size_t i = 0; i + 1 < data.size(); i += 2) {
    uint16_t v = static_cast<uint16_t>(0x2c00 + (rng() & 0x3ff));
    std::memcpy(data.data() + i, &v, 2);
  }
  m.data = data.data();
  std::vector<std::unique_ptr<CpuLinear>> copies;
  size_t total = 0;
  do {
    copies.push_back(prepare_cpu_linear({&m, 1}, nullptr, format.compute, pool));
    total += copies.back()->bytes();
  } while (total < (size_t{256} << 20));
  for (int64_t rows : row_counts) {
    std::vector<float> x(rows * shape.k), y(rows * shape.n);
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(rng);
    LinearParams p{};
    p.in = x.data();
    p.rows = rows;
    p.in_stride = shape.k;
    p.out_stride = shape.gated ? shape.n / 2 : shape.n;
    p.epilogue = shape.gated ? Epilogue::kGated : Epilogue::kStore;
    p.activation = shape.gated ? Activation::kSilu : Activation::kNone;
    p.out = y.data();
    size_t at = 0;
    auto once = [&] {
      p.weight = copies[at++ % copies.size()].get();
      run_cpu_linear(p, pool);
    };
    for (size_t i = 0; i < std::min<size_t>(copies.size(), 4); ++i) once();
    // The best call: neighbours on the machine only ever slow one down. (The median says how much they did.)
    std::vector<double> times;
    double begin = monotonic_seconds(), start = begin;
    do {
      once();
      double end = monotonic_seconds();
      times.push_back(end - start);
      start = end;
    } while (start - begin < seconds || times.size() < 3);
    std::sort(times.begin(), times.end());
    double best = times[0], median = times[times.size() / 2];
    double bytes = static_cast<double>(copies[0]->bytes());
    std::printf("%-8s %-5s %5lld rows %10.1f us (median %10.1f) %7.2f GB/s %5.1f%% read %8.3f TFLOP/s\n",
                shape.name, format.name, static_cast<long long>(rows), best * 1e6, median * 1e6,
                bytes / best * 1e-9, 100 * bytes / best / roof,
                2.0 * static_cast<double>(rows * shape.n * shape.k) / best * 1e-12);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace taco

int main(int argc, char** argv) try {
  using namespace taco;
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 0);
  double seconds = argc > 2 ? std::atof(argv[2]) : 0.2;
  std::string formats = argc > 3 ? argv[3] : "",
              rows_list = argc > 4 ? argv[4] : "1,2,4,8,16,32,128,512,2048";
  std::string shapes = argc > 5 ? argv[5] : "";
  if (argc > 6) {
    int64_t from = std::atoll(argv[6]);
    linear_tuning() = {from, from, from};
  }
  std::vector<int64_t> rows;
  for (const char* s = rows_list.c_str(); *s;) {
    char* end;
    rows.push_back(std::strtoll(s, &end, 10));
    s = *end ? end + 1 : end;
  }
  double roof = read_bandwidth(pool);
  std::printf("%s, %s, %d threads: reads %.1f GB/s, barrier %.2f us\n", cpu::cpu_model_name().c_str(),
              std::string(cpu::isa_name(cpu::active_isa())).c_str(), pool.size(), roof * 1e-9,
              barrier_cost(pool) * 1e6);
  for (const Shape& shape : kShapes) {
    if (!listed(shapes, shape.name)) continue;
    for (const Format& format : kFormats) {
      if (listed(formats, format.name)) bench(shape, format, rows, seconds, roof, pool);
    }
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "linear_bench: %s\n", e.what());
  return 1;
}
