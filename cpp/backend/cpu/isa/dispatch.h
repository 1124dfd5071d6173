// Which instruction set the CPU kernels use, found once at run time.
//
// Sources in isa/<level>/ are compiled with that level's flags and nothing else is. They must not define or
// instantiate anything shared (STL, inline functions of common headers): the linker could keep the copy that
// holds instructions the machine lacks. Each level lives in a namespace of its own (taco::cpu::avx2, ...),
// takes raw pointers and plain structs, and is reached through a table of function pointers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace taco::cpu {

// Ordered: a level implies the ones before it.
enum class Isa : uint8_t {
  kGeneric,  // the compiler's baseline
  kAvx2,     // AVX2, FMA, F16C
  kAvx512,   // AVX-512 F, BW, DQ, VL, VNNI
  kAmx,      // kAvx512 and AVX512_BF16, AMX-TILE, AMX-BF16, AMX-INT8
};

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false, avx512vnni = false;
  bool avx512bf16 = false;  // not a level of its own: see `use_avx512_bf16`
  bool amx_tile = false, amx_bf16 = false,
       amx_int8 = false;  // true only where the kernel grants the tile state
};

// What the processor has and the operating system saves (CPUID and XGETBV; for AMX the permission asked of
// Linux).
const CpuFeatures& cpu_features();

// The highest level of this machine.
Isa best_isa();

// The level in use: best_isa(), or the lower one that TACO_CPU_ISA=generic|avx2|avx512|amx names (read once).
// Throws kInvalidArgument for a name it does not know and for a level this machine lacks.
Isa active_isa();

// kAvx512 in use on a machine that has the BF16 instructions (vdpbf16ps): kernels in isa/avx512_bf16/ may be
// called.
bool use_avx512_bf16();

bool isa_available(Isa isa);
std::string_view isa_name(Isa isa);  // "generic", "avx2", "avx512", "amx"
std::vector<Isa> available_isas();   // ascending
Isa isa_from_name(std::string_view name);

// For tests and benchmarks: makes `active_isa` answer `isa` from now on. Throws kInvalidArgument as above.
// Weights already prepared stay valid: their layout is the same at every level. `bf16_instructions` false: as
// on a machine without AVX512_BF16.
void force_isa(Isa isa, bool bf16_instructions = true);

// For people (`taco_llm doctor`).
std::string cpu_model_name();
std::vector<std::string> cpu_feature_names();  // "avx2", "avx512f", ..., those present

// Whether compiled-in kernels of this level exist (false only on other architectures than x86-64).
#if defined(__x86_64__)
inline constexpr bool kHaveX86Kernels = true;
#else
inline constexpr bool kHaveX86Kernels = false;
#endif

}  // namespace taco::cpu
