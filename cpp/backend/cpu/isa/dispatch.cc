#include "backend/cpu/isa/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <fstream>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace taco::cpu {
namespace {

#if defined(__x86_64__)
struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool bit(uint32_t word, int i) { return (word >> i) & 1; }

// Which register states the operating system saves.
uint64_t xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux grants the 8 KiB tile state to a process that asks, once for all its threads.
bool request_tile_permission() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
}

CpuFeatures detect() {
  CpuFeatures f;
  Registers leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0), leaf7_1 = cpuid(7, 1);
  if (!bit(leaf1.c, 27)) return f;  // OSXSAVE: without it XGETBV faults
  uint64_t saved = xcr0();
  bool ymm = (saved & 0x6) == 0x6, zmm = ymm && (saved & 0xe0) == 0xe0, tiles = (saved & 0x60000) == 0x60000;
  f.avx2 = ymm && bit(leaf7.b, 5);
  f.fma = ymm && bit(leaf1.c, 12);
  f.f16c = ymm && bit(leaf1.c, 29);
  f.avx512f = zmm && bit(leaf7.b, 16);
  f.avx512dq = zmm && bit(leaf7.b, 17);
  f.avx512bw = zmm && bit(leaf7.b, 30);
  f.avx512vl = zmm && bit(leaf7.b, 31);
  f.avx512vnni = zmm && bit(leaf7.c, 11);
  f.avx512bf16 = zmm && bit(leaf7_1.a, 5);
  if (tiles && bit(leaf7.d, 24) && request_tile_permission()) {
    f.amx_tile = true;
    f.amx_bf16 = bit(leaf7.d, 22);
    f.amx_int8 = bit(leaf7.d, 25);
  }
  return f;
}
#else
CpuFeatures detect() { return {}; }
#endif

std::string names_of(const std::vector<Isa>& levels) {
  std::string out;
  for (Isa isa : levels) out += (out.empty() ? "" : ", ") + std::string(isa_name(isa));
  return out;
}

void require_available(Isa isa, std::string_view origin) {
  TACO_REQUIRE(isa_available(isa), origin, "this machine does not have instruction set '", isa_name(isa),
               "' (it has: ", names_of(available_isas()), ")");
}

Isa initial_isa() {
  const char* env = std::getenv("TACO_CPU_ISA");
  if (!env || !*env) return best_isa();
  Isa isa = isa_from_name(env);
  require_available(isa, "TACO_CPU_ISA: ");
  return isa;
}

constexpr int kUnset = -1;
std::atomic<int> active{kUnset};
std::atomic<bool> bf16_allowed{true};

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

bool isa_available(Isa isa) {
  const CpuFeatures& f = cpu_features();
  bool avx2 = f.avx2 && f.fma && f.f16c;
  bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.avx512vnni;
  switch (isa) {
    case Isa::kGeneric:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAmx:
      return avx512 && f.avx512bf16 && f.amx_tile && f.amx_bf16 && f.amx_int8;
  }
  return false;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> out;
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (isa_available(isa)) out.push_back(isa);
  }
  return out;
}

Isa best_isa() { return available_isas().back(); }

Isa active_isa() {
  int isa = active.load(std::memory_order_relaxed);
  if (isa == kUnset) {
    static const Isa initial = initial_isa();
    isa = static_cast<int>(initial);
    int expected = kUnset;
    if (!active.compare_exchange_strong(expected, isa)) isa = expected;
  }
  return static_cast<Isa>(isa);
}

bool use_avx512_bf16() {
  return active_isa() >= Isa::kAvx512 && cpu_features().avx512bf16 &&
         bf16_allowed.load(std::memory_order_relaxed);
}

void force_isa(Isa isa, bool bf16_instructions) {
  require_available(isa, "");
  bf16_allowed.store(bf16_instructions);
  active.store(static_cast<int>(isa));
}

std::string_view isa_name(Isa isa) {
  constexpr std::string_view kNames[] = {"generic", "avx2", "avx512", "amx"};
  return kNames[static_cast<size_t>(isa)];
}

Isa isa_from_name(std::string_view name) {
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (isa_name(isa) == name) return isa;
  }
  fail(ErrorCode::kInvalidArgument, "unknown instruction set '", name,
       "' (choose from generic, avx2, avx512, amx)");
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

std::vector<std::string> cpu_feature_names() {
  const CpuFeatures& f = cpu_features();
  const struct {
    bool present;
    const char* name;
  } all[] = {
      {f.avx2, "avx2"},
      {f.fma, "fma"},
      {f.f16c, "f16c"},
      {f.avx512f, "avx512f"},
      {f.avx512bw, "avx512bw"},
      {f.avx512dq, "avx512dq"},
      {f.avx512vl, "avx512vl"},
      {f.avx512vnni, "avx512_vnni"},
      {f.avx512bf16, "avx512_bf16"},
      {f.amx_tile, "amx_tile"},
      {f.amx_bf16, "amx_bf16"},
      {f.amx_int8, "amx_int8"},
  };
  std::vector<std::string> out;
  for (const auto& feature : all) {
    if (feature.present) out.push_back(feature.name);
  }
  return out;
}

}  // namespace taco::cpu
